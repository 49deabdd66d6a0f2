"""What both programs share: their start, their log, the guest's console."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import kata
from kata.agent_client import printable
from kata.build import COMMIT
from kata.components.flags import Flags, HelpWanted, parse, usage
from kata.errors import HostError, KataError, UsageError
from kata.log import logrus

#: Kata 1.x's names of levels, from the most talkative, -> syslog's numbers.
LEVELS = {"debug": 7, "info": 6, "warn": 4, "warning": 4, "error": 3, "fatal": 2, "panic": 1}
LINE = 4096  #: bytes of a line of the guest's console


class Logger:
    """Lines in logrus's shape on standard error, and to syslog, where Kata 1.x's programs write."""

    def __init__(self, program: str, level: str, **fields: str) -> None:
        if level not in LEVELS:
            raise UsageError(f"not a valid log level: {level!r}", "one of " + ", ".join(LEVELS))
        self._threshold = LEVELS[level]
        self._fields = {"name": program, **fields}
        import syslog

        self._syslog = syslog.syslog
        syslog.openlog(program, syslog.LOG_PID, syslog.LOG_USER)

    def write(self, level: str, message: str, **more: str) -> None:
        if LEVELS[level] > self._threshold:
            return
        line = logrus(time.time(), level, message, **{**self._fields, **more})
        print(line, file=sys.stderr, flush=True)
        self._syslog(LEVELS[level], line)

    def warning(self, message: str) -> None:
        self.write("warning", message)


def start(program: str, flags: Flags, run: Callable[[dict[str, Any]], Coroutine[Any, Any, int]],
          words: Sequence[str]) -> int:
    """Parse the command line and run the program; its exit status: 2 is a wrong command line, 1 a failure."""
    try:
        options = parse(flags, words)
    except HelpWanted:
        print(usage(program, flags), file=sys.stderr)
        return 0
    except UsageError as e:
        print(f"{e}\n{usage(program, flags)}", file=sys.stderr)
        return 2
    if options["version"]:
        print(f"{program} version {kata.__version__}, commit {COMMIT}")
        return 0
    try:
        return asyncio.run(run(options))
    except KataError as e:
        print(f"{program}: {e}", file=sys.stderr)
        return 2 if isinstance(e, UsageError) else 1


def unix_path(option: str, value: str) -> str:
    """The path in ``unix:///path``, ``unix:path`` or ``path``.

    :raise UsageError: it is none of these.
    """
    if not value:
        raise UsageError(f"-{option} is not set")
    path = value.removeprefix("unix:")
    if path.startswith("//") and path != value:
        path = path[2:]
    if "://" in path or not path:
        raise UsageError(f"-{option} {value}: only unix sockets are supported", "give unix:///path")
    return path


async def follow_console(path: str, logger: Logger) -> asyncio.Task[None]:
    """Log what the guest writes to its console, a line each.

    :raise HostError: nobody listens at ``path``.
    """
    try:
        reader, writer = await asyncio.open_unix_connection(path, limit=LINE)
    except OSError as e:
        raise HostError(f"cannot connect to the guest's console {path}: {e.strerror}") from e

    async def follow() -> None:
        rest = b""
        try:
            while data := await reader.read(LINE):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    logger.write("info", printable(line.decode(errors="replace").rstrip("\r"), LINE), source="agent")
                rest = rest[:LINE]
        except ConnectionError:
            pass  # the machine has ended
        finally:
            writer.close()

    return asyncio.ensure_future(follow())
