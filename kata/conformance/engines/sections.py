"""Many observations from one container: sections in a shell script's output."""

from __future__ import annotations


def script(**commands: str) -> str:
    """A shell script whose output :func:`sections` splits; what fails in it is shown, not fatal."""
    return "\n".join(f"echo '@@{name}'; {{ {command}\n}} 2>&1; echo" for name, command in commands.items())


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


def status(field: str) -> str:
    """Shell: a field of /proc/self/status."""
    return f"sed -n 's/^{field}:[[:space:]]*//p' /proc/self/status"


def cgroup(v1: str, v2: str) -> str:
    """Shell: the first word of a control file, by its place in either version of cgroups."""
    return f"cat /sys/fs/cgroup/{v1} 2>/dev/null || cut -d' ' -f1 /sys/fs/cgroup/{v2}"
