"""JSON for programs that live for milliseconds: the interpreter's own scanner and encoder, and nothing else.

``import json`` brings :mod:`re` and :mod:`enum` along, which together cost as
much as the bare interpreter's start.  The compiled parts that the package is
made of are used directly here.
"""

from __future__ import annotations

from _json import encode_basestring_ascii, make_encoder, make_scanner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
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
    object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None
    parse_float = float
    parse_int = int
    parse_constant = staticmethod(_constant)


#: As in json.JSONDecoder, and as json.JSONEncoder(separators=(",", ":")), but that a cycle ends as a RecursionError.
_scanner: Any = make_scanner
_scan = _scanner(_Settings())
_encode = make_encoder(None, _unknown, encode_basestring_ascii, None, ":", ",", False, False, True)


def loads(text: str | bytes, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value that ``text`` (UTF-8) holds.

    :param pairs: makes what stands for an object of its keys and values.
    :raise ValueError: it is not JSON; NaN and infinities are not either.
    """
    scan = _scan
    if pairs is not None:
        settings = _Settings()
        settings.object_pairs_hook = pairs
        scan = _scanner(settings)
    if isinstance(text, bytes):
        text = text.decode()
    text = text.strip(" \t\r\n")
    try:
        value, end = scan(text, 0)
    except StopIteration as e:
        raise ValueError(f"no JSON value at character {e.value}") from None
    except SystemError:  # Python 3.11 has no words for what is wrong as long as json.decoder is not imported
        import json

        json.loads(text)
        raise
    if end != len(text):
        raise ValueError(f"more than one JSON value: character {end}")
    return value


def dumps(value: Any) -> str:
    """``value`` as compact JSON, ASCII only."""
    return "".join(_encode(value, 0))
