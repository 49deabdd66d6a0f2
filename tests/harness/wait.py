"""Waiting with a deadline that says what was awaited."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: Seconds.  Emulated machines on a shared host are slow; a hang is a hang all the same.
DEADLINE = 60.0


class Late(AssertionError):
    """What was awaited did not happen in time."""


def eventually(what: str, probe: Callable[[], T], timeout: float = DEADLINE, interval: float = 0.05) -> T:
    """Ask until the answer is true, and return it.

    For things whose only outside sign is a question (``docker ps``); where an
    event exists (a pidfd, a socket, a pipe) wait for that instead.

    :raise Late: no true answer after ``timeout`` seconds; carries the last one.
    """
    end = time.monotonic() + timeout
    last: object = None
    while True:
        try:
            answer = probe()
            if answer:
                return answer
            last = answer
        except (AssertionError, OSError, LookupError, ValueError) as exc:
            if isinstance(exc, Late):
                raise
            last = exc
        if time.monotonic() > end:
            raise Late(f"after {timeout:g} s still waiting for {what}; last answer: {last!r}")
        time.sleep(interval)


def process_end(pid: int, what: str, timeout: float = DEADLINE) -> None:
    """Wait until a process has ended (it may still be a zombie)."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        readable, _, _ = select.select([fd], [], [], timeout)
    finally:
        os.close(fd)
    if not readable:
        raise Late(f"after {timeout:g} s still waiting for process {pid} to end: {what}")


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
