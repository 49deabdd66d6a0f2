"""Logs that a guest can write to stay small, and their end is kept."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from kata.proxy import logs


def test_a_short_log_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    path.write_bytes(b"x" * logs.LIMIT)
    logs.bound(str(path))
    assert path.stat().st_size == logs.LIMIT
    assert os.listdir(tmp_path) == ["console.log"]


def test_a_writer_that_appends_goes_on_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    with open(path, "ab", buffering=0) as writer:
        writer.write(b"x" * logs.LIMIT + b"the end\n")
        logs.bound(str(path))
        writer.write(b"more\n")
    assert path.read_bytes() == b"more\n"
    kept = (tmp_path / "console.log.1").read_bytes()
    assert len(kept) == logs.KEPT and kept.endswith(b"the end\n")


def test_growth_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "REST", 0.05)
    for name in logs.NAMES:
        (tmp_path / name).write_bytes(b"")

    async def main() -> None:
        watched = logs.BoundedLogs(str(tmp_path))
        try:
            with open(tmp_path / "qemu.log", "ab", buffering=0) as writer:
                for _ in range(2):
                    writer.write(b"x" * (logs.LIMIT + 1))
                    async with asyncio.timeout(10):
                        while (tmp_path / "qemu.log").stat().st_size:
                            await asyncio.sleep(0.01)
        finally:
            watched.close()

    asyncio.run(main())
    assert (tmp_path / "qemu.log.1").stat().st_size == logs.KEPT
