"""What a key of a configuration language is: its type, where it goes, and whether it can hold.

A language is a table of tables of :class:`Key`; :mod:`kata.config.kata1` has
Kata 1.x's, and another flavor's is made the same way.
"""

from __future__ import annotations

from kata.record import Record

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    #: A value as the file has it -> as :class:`~kata.contract.RuntimeConfig` has it, or ValueError("what is expected").
    Convert = Callable[[Any], Any]
    Table = Mapping[str, "Key"]
    Language = Mapping[str, Table]
else:
    Convert = Table = Language = object


class Key(Record):
    """One key.

    ``target`` is a field of RuntimeConfig, or ``extra.NAME``.  A key whose
    every value changes nothing here has a ``note`` that says why.  With
    ``refused``, values other than ``neutral`` are an error that gives this
    reason.  ``annotation``: a container may set it, if the file allows.
    """

    convert: Convert
    target: str = ""
    note: str = ""
    refused: str = ""
    neutral: tuple[Any, ...] = ()
    annotation: bool = False




def boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def integer(low: int, high: int = 2**31 - 1) -> Convert:
    def convert(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"a whole number of at least {low}" if high == 2**31 - 1
                             else f"a whole number from {low} to {high}")
        return value

    return convert


def seconds(low: float, high: float) -> Convert:
    def convert(value: Any) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"a number of seconds from {low:g} to {high:g}")
        return float(value)

    return convert


def text(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError("a string on one line")
    return value


def path(value: Any) -> str:
    """An absolute path or the empty string."""
    if not isinstance(value, str) or "\0" in value or (value and not value.startswith("/")):
        raise ValueError("an absolute path, or an empty string for the default")
    return value


def program(value: Any) -> str:
    """A path, or a name that is looked for in PATH."""
    if not isinstance(value, str) or not value.isprintable() or (value[:1] != "/" and "/" in value):
        raise ValueError("an absolute path or the name of a program")
    return value


def choice(*values: str, aliases: Mapping[str, str] | None = None) -> Convert:
    names = {**{v: v for v in values}, **(aliases or {})}

    def convert(value: Any) -> str:
        if not isinstance(value, str) or value not in names:
            raise ValueError("one of " + ", ".join(repr(v) for v in values))
        return names[value]

    return convert


def strings(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(v, str) and v.isprintable() for v in value):
        raise ValueError("an array of strings")
    return tuple(value)


def folders(value: Any) -> tuple[str, ...]:
    """An array of absolute paths."""
    if not all(folder.startswith("/") for folder in strings(value)):
        raise ValueError("an array of absolute paths")
    return tuple(value)


def patterns(value: Any) -> tuple[str, ...]:
    """An array of regular expressions."""
    import re  # most files have none

    for v in strings(value):
        try:
            re.compile(v)
        except re.error as e:
            raise ValueError(f"an array of regular expressions ({v!r}: {e})") from e
    return tuple(value)


def words(value: Any) -> tuple[str, ...]:
    """A string of words, as for a kernel command line."""
    return tuple(text(value).split())


def from_text(convert: Convert, value: str) -> Any:
    """The value of an annotation, which is always a string, as the file would have it."""
    for parsed in _readings(value):
        try:
            return convert(parsed)
        except ValueError as e:
            error = e
    raise error


def _readings(value: str) -> list[Any]:
    readings: list[Any] = []
    if value.lower() in ("true", "t", "1"):
        readings.append(True)
    elif value.lower() in ("false", "f", "0"):
        readings.append(False)
    digits = value[1:] if value[:1] in ("+", "-") else value
    if digits.isdecimal() and len(digits) <= 18:
        readings.append(int(value))
    # kernel_modules: "e1000e InterruptThrottleRate=3000; i915"
    return [*readings, value, [v.strip() for v in value.split(";") if v.strip()]]
