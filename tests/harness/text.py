"""Many checks from one container start: sections in a script's output."""

from __future__ import annotations


def sections(output: str) -> dict[str, str]:
    """Split at lines ``@@name``; each section without white space at its ends."""
    found: dict[str, list[str]] = {}
    current: list[str] = []
    for line in output.splitlines():
        if line.startswith("@@"):
            current = found.setdefault(line[2:].strip(), [])
        else:
            current.append(line)
    return {name: "\n".join(lines).strip() for name, lines in found.items()}


def script(**commands: str) -> str:
    """A shell script whose output :func:`sections` splits; failures are shown, not fatal."""
    return "\n".join(f"echo '@@{name}'; {{ {command}\n}} 2>&1; echo" for name, command in commands.items())


def compare(got: dict[str, str], expected: dict[str, object]) -> None:
    """Compare all sections at once, so that a failure names every wrong one."""
    wrong = []
    for name, want in expected.items():
        have = got.get(name, "(section missing)")
        if callable(want):
            if not want(have):
                wrong.append(f"{name}: {have!r} is not as asked")
        elif have != str(want):
            wrong.append(f"{name}: expected {want!r}, got {have!r}")
    assert not wrong, "\n".join(wrong)


def mask(bits: int) -> str:
    """A capability set as /proc shows it."""
    return f"{bits:016x}"


def status(field: str) -> str:
    """Shell: a field of /proc/self/status."""
    return f"sed -n 's/^{field}:[[:space:]]*//p' /proc/self/status"
