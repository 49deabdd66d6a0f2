"""One line per message on the guest's console."""

from __future__ import annotations

import os
import time

ERROR, WARNING, INFO, DEBUG = 0, 1, 2, 3
LEVELS = {"error": ERROR, "warn": WARNING, "warning": WARNING, "info": INFO, "debug": DEBUG}
_NAMES = ("error", "warning", "info", "debug")
_MAX_LINE = 4096

_fd = 2
_level = INFO


def setup(fd: int, level: int) -> None:
    """Write to ``fd`` what is at most ``level``."""
    global _fd, _level
    _fd = fd
    _level = level


def set_level(level: int) -> None:
    """Drop what is above ``level``."""
    global _level
    _level = level


def write(level: int, text: str) -> None:
    """One message; line ends in it become " | ".  A console that cannot take it is no error."""
    if level > _level:
        return
    flat = " | ".join(text.splitlines())[:_MAX_LINE]
    line = f"kata-agent[{time.monotonic():.3f}] {_NAMES[level]}: {flat}\n"
    try:
        os.write(_fd, line.encode(errors="replace"))
    except OSError:
        pass


def error(text: str) -> None:
    write(ERROR, text)


def warning(text: str) -> None:
    write(WARNING, text)


def info(text: str) -> None:
    write(INFO, text)


def debug(text: str) -> None:
    write(DEBUG, text)


def exception(text: str, error: BaseException) -> None:
    """``text``, the exception, and where it was raised."""
    places = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        places.append(f"{os.path.basename(code.co_filename)}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    write(ERROR, f"{text}: {type(error).__name__}: {error} [{' < '.join(reversed(places[-8:]))}]")
