"""Many checks from one container start: sections in a script's output."""

from __future__ import annotations

from kata.conformance.engines.sections import script, sections, status

__all__ = ["compare", "mask", "script", "sections", "status"]


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
