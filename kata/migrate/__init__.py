"""Migration: what a host has of Clear Containers, runV and Kata, carried over to the unified flavor, or back.

A source's settings are classified key by key by tables (:mod:`kata.migrate.tables`); every key becomes a
:class:`Row` of one of four classes, and nothing is dropped without one.  From the rows follow the values of the
new configuration, and from these the changes of files, which :mod:`kata.changes` carries out.
"""

from __future__ import annotations

from kata.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SAME = "same"
RENAMED = "renamed"  #: or retyped, or moved: says the same in another way
CHANGED = "changed"  #: in meaning; ``why`` says what and why
DROPPED = "dropped"  #: ``why`` is the consequence, ``instead`` the alternative
UNKNOWN = "unknown"  #: in no table: keeps a plan from being applied, unless it is named
CLASSES = (SAME, RENAMED, CHANGED, DROPPED, UNKNOWN)


class Row(Record):
    """One key, and what becomes of it.

    ``file`` and ``line`` are where it is written; a row without a file is a default or a behaviour of the source.
    ``fields`` are the fields of the plans in which source and target may differ because of it.
    """

    source: str  #: clear | runv | kata | unified, or an engine
    key: str  #: ``[table] key``, or ``--option``
    old: Any
    kind: str
    new_key: str = ""  #: "" = nothing is written for it
    new: Any = None
    file: str = ""
    line: int = 0
    why: str = ""
    instead: str = ""
    fields: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


def keyed(table: str, key: str) -> str:
    """``[table] key``."""
    return f"[{table}] {key}" if table else key


class Setting(Record):
    """A key of a source as it was read."""

    table: str
    key: str
    value: Any
    file: str = ""
    line: int = 0


class Rule(Record):
    """What becomes of one key.

    ``convert`` makes the new value of the old one; None for the old value itself.  What it returns may also be a
    ``Rule`` (values differ in what becomes of them) or :data:`NOTHING`.  ``table`` and ``key`` are where it goes, ""
    for where it was.
    """

    kind: str
    table: str = ""
    key: str = ""
    convert: Any = None
    why: str = ""
    instead: str = ""
    fields: tuple[str, ...] = ()


class Behaviour(Record):
    """What no key says: a habit of the source that the target has not, or has in another way."""

    what: str
    old: str
    new: str
    why: str
    instead: str = ""
    fields: tuple[str, ...] = ()
