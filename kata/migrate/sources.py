"""What a host has: configuration files and command lines, as settings with their places."""

from __future__ import annotations

import os
import shlex

from kata.changes import resolve
from kata.config import document, nearest
from kata.errors import ConfigError
from kata.migrate import Setting
from kata.migrate.tables import runv
from kata.record import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

    from kata.config.document import Document

#: Programs that were runV's or are ours, whose words are read as runV's.
OPTIONS = ("driver", "agent", "default_cpus", "default_memory", "kernel", "initrd", "bios", "cbfs", "template", "vsock",
           "debug", "log_dir", *runv.COMMON)


def first(places: Sequence[str], sysroot: str = "") -> str:
    """The first of the files that exists, as seen from here; "" if none does."""
    return next((f"{sysroot}{place}" for place in places if os.path.lexists(f"{sysroot}{place}")), "")


def real(path: str, sysroot: str) -> str:
    """The file behind a path below the sysroot (or anywhere else): links lead nowhere outside."""
    below = path.removeprefix(sysroot) if path.startswith(f"{sysroot}/") else ""
    return resolve(below, sysroot) if below else path


def read(path: str, sysroot: str = "") -> Document:
    """A configuration file.

    :raise ConfigError: it is missing, cannot be read, or is not TOML; keys that are set twice are not.
    """
    try:
        return replace(document.read(real(path, sysroot)), path=path)
    except FileNotFoundError as e:
        raise ConfigError(f"cannot read {path}: there is no such file", "check the path") from e


def settings(doc: Document) -> list[Setting]:
    """Every key of a file, in its order."""
    return list(_flat("", doc.data, doc))


def _flat(table: str, values: Mapping[str, Any], doc: Document) -> Iterator[Setting]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(f"{table}.{name}" if table else name, value, doc)
            continue
        line = doc.lines.get((table, name)) or doc.lines.get((table, "")) or 0
        yield Setting(table, name, value, doc.path, line)


def runv_options(words: Sequence[str], file: str = "", line: int = 0) -> list[Setting]:
    """runV's global options on a command line, up to its verb; ``words`` is without the program.

    :raise ConfigError: an option is not runV's, lacks its value, or is given twice.
    """
    where = f"{file}:{line}: " if line else f"{file}: " if file else ""
    found: dict[str, Setting] = {}
    left = list(words)
    while left:
        word = left.pop(0)
        if not word.startswith("-") or word == "--":
            break  # a verb: what follows is not the runtime's
        name, equals, value = word.lstrip("-").partition("=")
        if name not in OPTIONS:
            raise ConfigError(f"{where}{word}: runV has no such option", nearest(name, OPTIONS))
        if name in runv.FLAGS:
            given: Any = not equals or value == "true"
        elif equals:
            given = value
        elif left:
            given = left.pop(0)
        else:
            raise ConfigError(f"{where}--{name} lacks its value")
        if name in found:
            raise ConfigError(f"{where}--{name} is given twice", "remove one")
        if name in ("default_cpus", "default_memory"):
            if not given.isdecimal():
                raise ConfigError(f"{where}--{name}: a whole number is expected, found {given!r}")
            given = int(given)
        found[name] = Setting("", name, given, file, line)
    return list(found.values())


def split(command: str, file: str = "") -> list[str]:
    """A command line as words.

    :raise ConfigError: a quote is not closed.
    """
    try:
        return shlex.split(command)
    except ValueError as e:
        raise ConfigError(f"{file or '--command-line'}: {e}: {command!r}") from e
