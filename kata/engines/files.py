"""A file in which an engine names its runtimes: what it says, and its text with other entries.

What is not changed stays as it is: comments, order, blanks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from kata.changes import resolve
from kata.config import document
from kata.config.edit import edited
from kata.errors import ConfigError
from kata.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from typing import Any


class Named(Record):
    """A runtime that a file names.  ``fixed``: it cannot be given options there."""

    name: str
    program: str
    args: tuple[str, ...]
    line: int
    fixed: bool = True


class File(ABC):
    """One file; ``path`` is below the sysroot, ``shown`` with it."""

    def __init__(self, engine: str, path: str, sysroot: str, text: str | None = None) -> None:
        """:param text: what it shall say, in place of what it says."""
        self.engine = engine
        self.path = path
        self.shown = f"{sysroot}{path}"
        self.text = text if text is not None else self._text(resolve(path, sysroot))
        self.default, self.default_line = "", 0
        self.runtimes = list(self._read())

    def _text(self, target: str) -> str:
        hint = "leave the engine out with --engine, or make it readable"
        try:
            return document.text_of(target, self.shown)
        except FileNotFoundError as e:
            raise ConfigError(f"cannot read {self.shown}: {(e.strerror or str(e)).lower()}", hint) from e
        except ConfigError as e:
            raise ConfigError(e.text, hint) from e

    @abstractmethod
    def _read(self) -> Iterator[Named]:
        """The runtimes; sets ``default`` too.

        :raise ConfigError: the file is wrong.
        """

    @abstractmethod
    def changed(self, programs: Mapping[str, tuple[str, Sequence[str]]], new: Mapping[str, str], default: str) -> str:
        """The text with other programs and options.

        :param programs: name -> program, options.
        :param new: name of a runtime that is added -> the one whose entry it gets, as it is after the change.
        :param default: name of the default runtime, "" to leave it.
        """

    @abstractmethod
    def installed(self, programs: Mapping[str, str], default: str = "") -> str:
        """The text with runtimes of these names and programs, without options.

        :param default: name of the default runtime, "" to leave it.
        :raise ConfigError: it cannot hold them.
        """

    @abstractmethod
    def removed(self, names: Collection[str], default: str = "") -> str:
        """The text without these runtimes.

        :param default: what the default becomes if it was one of them; "" for the engine's own.
        """

    def holds(self, programs: Mapping[str, str]) -> bool:
        """Whether it says what :meth:`installed` makes it say."""
        return programs.items() <= {r.name: r.program for r in self.runtimes}.items()


class Toml(File):
    """A TOML file.  ``_find`` yields what names a program: its tables, key, and the program."""

    def _read(self) -> Iterator[Named]:
        doc = document.parse(self.text, self.shown)
        self.found: dict[str, tuple[tuple[str, ...], str]] = {}
        self.tables: dict[str, Any] = {}
        for name, tables, key, program in self._find(doc.data):
            line = doc.lines.get((".".join(tables), key)) or doc.lines.get((".".join(tables), "")) or 0
            self.found[name] = (tables, key)
            yield Named(name, program, (), line)
        tables, key = self.default_key
        value: Any = doc.data
        for table in tables:
            value = value.get(table, {}) if isinstance(value, dict) else {}
        if isinstance(value, dict) and isinstance(value.get(key), str):
            self.default, self.default_line = value[key], doc.lines.get((".".join(tables), key), 0)

    default_key: tuple[tuple[str, ...], str]

    def _table(self, data: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
        """A table below ``data``, empty if it is not there.

        :raise ConfigError: one on the way is a value.
        """
        for number, name in enumerate(names):
            found = data.get(name, {})
            if not isinstance(found, dict):
                raise ConfigError(f"{self.shown}: {'.'.join(names[: number + 1])} is no table")
            data = found
        return data

    @abstractmethod
    def _find(self, data: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...], str, str]]: ...

    def _value(self, name: str, program: str) -> Any:
        """What the key of a runtime holds for a program."""
        return program

    def _added(self, name: str, like: str, program: str) -> tuple[tuple[tuple[str, ...], str], Any]:
        """The key and value that add a runtime."""
        tables, _key = self.found[like]
        return (tables, name), self._value(like, program)

    def changed(self, programs: Mapping[str, tuple[str, Sequence[str]]], new: Mapping[str, str], default: str) -> str:
        changes: dict[Any, Any] = {self.found[name]: self._value(name, program)
                                   for name, (program, _args) in programs.items()}
        for name, like in new.items():
            place, value = self._added(name, like, programs[like][0])
            changes[place] = value
        if default:
            changes[self.default_key] = default
        return edited(self.text, changes, self.shown)

    @abstractmethod
    def _place(self, name: str, program: str) -> tuple[tuple[tuple[str, ...], str], Any]:
        """The key and value of a runtime that is made from nothing."""

    def installed(self, programs: Mapping[str, str], default: str = "") -> str:
        changes: dict[Any, Any] = {}
        for name, program in programs.items():
            if name in self.found:
                changes[self.found[name]] = self._value(name, program)
            else:
                place, value = self._place(name, program)
                changes[place] = value
        if default:
            changes[self.default_key] = default
        return edited(self.text, changes, self.shown)

    def removed(self, names: Collection[str], default: str = "") -> str:
        changes: dict[Any, Any] = {self._place(name, "")[0]: None for name in names if name in self.found}
        if self.default in names:
            changes[self.default_key] = default or None
        return edited(self.text, changes, self.shown)
