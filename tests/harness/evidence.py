"""What a failed test shows: consoles of guests, logs of proxies and engines."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from .leaks import SANDBOXES, sandbox_key
from .proc import TAG_VARIABLE

#: Bytes of each log's end that are shown.
TAIL = 6000

_captured: list[tuple[str, str]] = []
_logs: set[Path] = set()


def watch(log: Path) -> None:
    """Show the end of this log whenever a test fails (an engine's, say)."""
    _logs.add(log)


def unwatch(log: Path) -> None:
    _logs.discard(log)


def tail(path: Path, size: int = TAIL) -> str:
    """The end of a file; "" when it cannot be read."""
    try:
        with open(path, "rb") as f:
            f.seek(0, 2)
            f.seek(max(0, f.tell() - size))
            return f.read().decode(errors="replace")
    except OSError:
        return ""


def _sandbox_logs(folder: Path) -> Iterable[Path]:
    return (folder / "console.log", folder / "proxy.log", folder / "qemu.log")


def capture(root: Path | None = None, id: str = "", files: Iterable[Path] = ()) -> None:
    """Keep what is about to be cleaned up: a container's sandbox, and ``files``."""
    folders: list[Path] = []
    if root is not None and (SANDBOXES / sandbox_key(root, id)).exists():
        folders = [SANDBOXES / sandbox_key(root, id)]
    elif SANDBOXES.exists():  # an engine's: those that name this run
        tag = os.environ.get(TAG_VARIABLE, "")
        folders = [f for f in sorted(SANDBOXES.iterdir()) if tag and tag in tail(f / "sandbox.json", 1 << 20)]
    for path in [*files, *(log for folder in folders for log in _sandbox_logs(folder))]:
        text = tail(path)
        if text:
            _captured.append((str(path), text))


def collect() -> list[tuple[str, str]]:
    """Everything captured since the last call, and the watched logs' ends."""
    if not _captured:
        capture()
    sections = [*_captured, *((str(log), tail(log, 2000)) for log in sorted(_logs))]
    _captured.clear()
    return sections


def forget() -> None:
    """A new test begins: what was captured before is not its own."""
    _captured.clear()
