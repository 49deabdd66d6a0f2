"""Logging of short-lived programs: one line per message to ``--log``.

containerd and docker read the last ``error`` line of a JSON log to report why
a runtime failed (``level``, ``msg``, ``time``), so the shape is fixed.
"""

from __future__ import annotations

import os
import sys
import time

from kata.jsontext import dumps

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Callable

LEVELS = ("debug", "info", "warning", "error", "fatal")


class Log:
    """Lines of one invocation.

    :param path: file to append to; "" or ``/dev/stderr`` for standard error.
    :param form: ``text`` or ``json``.
    """

    def __init__(self, path: str = "", form: str = "text", level: str = "info", name: str = "kata") -> None:
        self.path = path
        self.form = form
        self.threshold = LEVELS.index(level)
        self.name = name
        #: a line of text of (time, level, message); None = logrus's shape, as Kata 1.x writes it
        self.text: Callable[[float, str, str], str] | None = None
        #: when which phase was reached (monotonic clock, who, what), if somebody wants to know
        self.phases: list[tuple[float, str, str]] | None = None

    def phase(self, name: str) -> None:
        """Note that a phase of this invocation is over; see :mod:`kata.cli.timings`."""
        if self.phases is not None:
            self.phases.append((time.monotonic(), "verb", name))

    def debug(self, message: str) -> None:
        self.write("debug", message)

    def info(self, message: str) -> None:
        self.write("info", message)

    def warning(self, message: str) -> None:
        self.write("warning", message)

    def error(self, message: str) -> None:
        self.write("error", message)

    def write(self, level: str, message: str) -> None:
        if LEVELS.index(level) < self.threshold or not self.path:
            return
        now = time.time()
        if self.form == "json":
            line = dumps({"level": level, "msg": message, "time": rfc3339(now), "name": self.name, "pid": os.getpid()})
        elif self.text is not None:
            line = self.text(now, level, message)
        else:
            line = logrus(now, level, message, name=self.name, pid=os.getpid(), source="runtime")
        self._append(line + "\n")

    def _append(self, line: str) -> None:
        if self.path == "/dev/stderr":
            sys.stderr.write(line)
            return
        try:
            fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as e:
            sys.stderr.write(f"kata: cannot write the log {self.path}: {e.strerror}\n{line}")
            return
        with os.fdopen(fd, "w", errors="replace") as f:
            f.write(line)


def logrus(seconds: float, level: str, message: str, **fields: object) -> str:
    """A line of text as Go's logrus writes it."""
    more = "".join(f" {name}={value}" for name, value in fields.items())
    return f"time={dumps(rfc3339(seconds))} level={level} msg={_quoted(message)}{more}"


def _quoted(text: str) -> str:
    """As a JSON string whose other characters stay what they are."""
    import json  # nothing is logged in most calls

    return json.dumps(text, ensure_ascii=False)


def rfc3339(seconds: float) -> str:
    """A time as RFC 3339 in UTC with nanoseconds, as Go programs write it."""
    whole = int(seconds)
    fraction = int((seconds - whole) * 1e9)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{fraction:09d}Z"
