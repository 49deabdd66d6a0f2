"""Processes: arguments, streams, ends."""

from __future__ import annotations

import pytest

from kata_agent.protocol import codes
from tests.agent.client import RpcError


def test_runs_with_streams_apart(box):
    assert box("sh", "-c", "echo out; echo err >&2; exit 3").run() == (3, "out\n", "err\n")


def test_stdin_until_its_end(box):
    assert box("cat").run(b"hello") == (0, "hello", "")


def test_missing_executable(box):
    with pytest.raises(RpcError) as info:
        box("nonesuch").create()
    assert info.value.message == 'exec: "nonesuch": executable file not found in $PATH'
    assert info.value.code == codes.INVALID_ARGUMENT


def test_exec(box):
    b = box("sleep", "100").create().start()
    assert b.exec(["sh", "-c", "echo $$; ps | head -3; exit 4"])[0] == 4
