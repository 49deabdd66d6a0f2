"""Names of the interfaces that Kata makes inside a sandbox's network namespace."""

from __future__ import annotations

PREFIX = "kata_"


def tap(ifindex: int) -> str:
    """The tap that stands for interface ``ifindex``; at most 15 bytes, as the kernel wants."""
    return f"{PREFIX}t{ifindex}"


def bridge(ifindex: int) -> str:
    """The bridge that joins interface ``ifindex`` and its tap."""
    return f"{PREFIX}b{ifindex}"


def is_ours(name: str) -> bool:
    return name.startswith(PREFIX)
