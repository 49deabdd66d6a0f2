"""JSON for programs that live for milliseconds: the interpreter's own scanner and encoder, and nothing else.

``import json`` brings :mod:`re` and :mod:`enum` along, which together cost as
much as the bare interpreter's start.  The compiled parts that the package is
made of are used directly here; where an interpreter lacks them, the package is.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["dumps", "loads"]


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _unknown(value: object) -> Any:
    raise TypeError(f"a {type(value).__name__} has no form in JSON")


class _Settings:
    """What json.JSONDecoder keeps for its scanner."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = staticmethod(_constant)


try:
    from _json import encode_basestring_ascii, make_encoder, make_scanner
except ImportError:  # another implementation of Python
    import json

    _scan: Any = json.JSONDecoder(parse_constant=_constant).scan_once  # type: ignore[attr-defined]
    _encode: Any = json.JSONEncoder(separators=(",", ":")).iterencode
else:
    _scan = make_scanner(_Settings)  # type: ignore[arg-type]
    # As json.JSONEncoder(separators=(",", ":")) makes it, but that a cycle ends as a RecursionError.
    _encode = make_encoder(None, _unknown, encode_basestring_ascii, None, ":", ",", False, False, True)


def loads(text: str | bytes) -> Any:
    """The value that ``text`` (UTF-8) holds.

    :raise ValueError: it is not JSON; NaN and infinities are not either.
    """
    if isinstance(text, bytes):
        text = text.decode()
    text = text.strip(" \t\r\n")
    try:
        value, end = _scan(text, 0)
    except StopIteration as e:
        raise ValueError(f"no JSON value at character {e.value}") from None
    if end != len(text):
        raise ValueError(f"more than one JSON value: character {end}")
    return value


def dumps(value: Any) -> str:
    """``value`` as compact JSON, ASCII only."""
    return "".join(_encode(value, 0))
