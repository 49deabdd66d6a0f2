"""A network namespace of a worker's own: engines' bridges, rules and ports live and vanish with it."""

from __future__ import annotations

from pathlib import Path

from .proc import Result, run


class NetworkNamespace:
    """A named network namespace with its loopback up."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = Path("/run/netns") / name

    def create(self) -> NetworkNamespace:
        run("ip", "netns", "add", self.name).ok()
        self.run("ip", "link", "set", "lo", "up").ok()
        return self

    def argv(self, *argv: str) -> list[str]:
        """A command inside.  Not `ip netns exec`: that one also remounts /sys and so hides the cgroups."""
        return ["nsenter", f"--net={self.path}", "--", *argv]

    def run(self, *argv: str, input: bytes | str | None = None, timeout: float = 60) -> Result:
        return run(*self.argv(*argv), input=input, timeout=timeout)

    def delete(self) -> None:
        run("ip", "netns", "delete", self.name).ok()
