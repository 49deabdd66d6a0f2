"""Building blocks that check parsed JSON in place.

A *check* takes a value, its JSON path and a list of notes.  It raises
:class:`~kata.errors.BundleError` with the path in the text, as in
``process.args[1]: a string is expected, found a number``.  Records also drop
what is ``null`` (Go writes it for "absent") and what they do not know: the
runtime-spec ("Extensibility") forbids an error for an unknown property, so it
is named in the notes instead.
"""

from __future__ import annotations

from kata.errors import BundleError

TYPE_CHECKING = False  # as in typing, without importing it
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from typing import Any

    Check = Callable[[Any, str, list[str]], None]

MAX_NOTES = 50  #: notes kept of one file; a hostile one could hold a million
UINT32 = 2**32 - 1
UINT64 = 2**64 - 1
INT64 = 2**63 - 1


def wrong(at: str, expected: str, value: Any) -> BundleError:
    """The error for a value that is not what it should be."""
    return BundleError(f"{at}: {expected} is expected, found {describe(value)}")


def describe(value: Any) -> str:
    """What a JSON value is, short enough for an error."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        text = str(value) if isinstance(value, float) or abs(value) < 10**30 else "a huge integer"
        return f"a number ({text})"
    if isinstance(value, str):
        return f"the string {shown(value)}"
    return "an array" if isinstance(value, list) else "an object"


def shown(text: str) -> str:
    """A string as it may stand in an error: quoted, escaped, at most 80 characters."""
    return ascii(text if len(text) <= 80 else text[:77] + "...")


def note(notes: list[str], text: str) -> None:
    """Add a note, unless there are too many already."""
    if len(notes) < MAX_NOTES:
        notes.append(text)
    elif len(notes) == MAX_NOTES:
        notes.append("there are more notes of this kind than are shown")


def clean_string(value: Any, at: str) -> str:
    """``value`` if it is a string that can be handed to a kernel and to protobuf."""
    if not isinstance(value, str):
        raise wrong(at, "a string", value)
    if "\0" in value:
        raise BundleError(f"{at}: holds a NUL byte")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise BundleError(f"{at}: holds half of a surrogate pair, which is not a character") from None
    return value


def string(value: Any, at: str, notes: list[str]) -> None:
    clean_string(value, at)


def text(limit: int) -> Check:
    """A string of at most ``limit`` bytes."""

    def check(value: Any, at: str, notes: list[str]) -> None:
        if len(clean_string(value, at).encode()) > limit:
            raise BundleError(f"{at}: is longer than {limit} bytes")

    return check


def boolean(value: Any, at: str, notes: list[str]) -> None:
    if not isinstance(value, bool):
        raise wrong(at, "a boolean", value)


def integer(low: int, high: int) -> Check:
    """A whole number from ``low`` to ``high``."""

    def check(value: Any, at: str, notes: list[str]) -> None:
        if not isinstance(value, int) or isinstance(value, bool):
            raise wrong(at, "a whole number", value)
        if not low <= value <= high:
            raise wrong(at, f"a number from {low} to {high}", value)

    return check


uint32 = integer(0, UINT32)
uint64 = integer(0, UINT64)
int64 = integer(-INT64 - 1, INT64)


def choice(what: str, values: Collection[str], hint: str = "") -> Check:
    """One of ``values``; ``what`` names the kind of thing, as in ``capability``."""

    def check(value: Any, at: str, notes: list[str]) -> None:
        if clean_string(value, at) not in values:
            known = hint or ("known are " + ", ".join(sorted(v for v in values if v)) if len(values) <= 20 else "")
            raise BundleError(f"{at}: unknown {what} {shown(value)}", known)

    return check


def array(item: Check, least: int = 0) -> Check:
    """An array of at least ``least`` items."""

    def check(value: Any, at: str, notes: list[str]) -> None:
        if not isinstance(value, list):
            raise wrong(at, "an array", value)
        if len(value) < least:
            raise BundleError(f"{at}: is empty")
        for i, v in enumerate(value):
            item(v, f"{at}[{i}]", notes)

    return check


def table(item: Check) -> Check:
    """An object with free keys."""

    def check(value: Any, at: str, notes: list[str]) -> None:
        if not isinstance(value, dict):
            raise wrong(at, "an object", value)
        for key, v in value.items():
            if not clean_string(key, f"a key of {at}"):
                raise BundleError(f"{at}: has an empty key")
            item(v, f"{at}[{shown(key)}]", notes)

    return check


def record(fields: Mapping[str, Check], required: Sequence[str] = (), also: Check | None = None) -> Check:
    """An object with fixed keys; ``also`` checks it as a whole."""

    def check(value: Any, at: str, notes: list[str]) -> None:
        if not isinstance(value, dict):
            raise wrong(at, "an object", value)
        prefix = f"{at}." if at else ""
        for key in list(value):
            field = fields.get(key)
            if field is None:
                note(notes, f"{prefix}{shown(key)[1:-1]}: is not known and was ignored")
                del value[key]
            elif value[key] is None:
                del value[key]
            else:
                field(value[key], prefix + key, notes)
        for key in required:
            if key not in value:
                raise BundleError(f"{prefix}{key}: is missing")
        if also is not None:
            also(value, at, notes)

    return check


def named(item: Check, key: str) -> Check:
    """``item``, whose errors also say which one it is by the value of ``key``."""

    def check(value: Any, at: str, notes: list[str]) -> None:
        name = value.get(key) if isinstance(value, dict) else None
        try:
            item(value, at, notes)
        except BundleError as e:
            if not isinstance(name, str) or shown(name) in e.text:
                raise
            raise BundleError(f"{e.text} (it is about {shown(name)})", e.hint) from None

    return check


def inner_path(value: Any, at: str, notes: list[str]) -> None:
    """An absolute path inside the container, without ``..``."""
    if not clean_string(value, at).startswith("/"):
        raise BundleError(f"{at}: an absolute path is expected, found {shown(value)}")
    no_dots(value, at)


def no_dots(value: str, at: str) -> None:
    if ".." in value.split("/"):
        raise BundleError(f"{at}: {shown(value)} holds '..'", "write the path without it")


def host_path(value: Any, at: str, notes: list[str]) -> None:
    """An absolute path on the host."""
    if not clean_string(value, at).startswith("/"):
        raise BundleError(f"{at}: an absolute path is expected, found {shown(value)}")
