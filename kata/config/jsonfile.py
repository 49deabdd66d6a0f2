"""JSON files changed in place: whatever is not changed stays byte for byte, blanks and order too.

What a value is replaced by is written into the text where the value stood.  Keys that are set twice are refused,
since programs disagree on which of them counts.
"""

from __future__ import annotations

import json
import re
from json.decoder import scanstring  # type: ignore[attr-defined]

from kata.errors import ConfigError
from kata.record import Record

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

_BLANK = re.compile(r"[ \t\r\n]*")
_SCALAR = re.compile(r"true|false|null|-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?")
MAX_DEPTH = 100
REMOVE: Any = object()  #: in place of a value: the key goes


class Node(Record):
    """A value and where it stands; ``members`` of an object: key -> (where the key begins, value)."""

    value: Any
    start: int
    end: int
    members: Mapping[str, tuple[int, Node]] = {}


def parse(text: str, path: str) -> Node:
    """The file's value with the places of all values.

    :raise ConfigError: it is not JSON, or a key is set twice; the text has file and line.
    """
    try:
        node = _value(text, _skip(text, 0), 0)
        if (end := _skip(text, node.end)) != len(text):
            raise _Wrong(end, "more than one value")
    except _Wrong as e:
        raise ConfigError(f"{path}:{line(text, e.at)}: {e}") from e
    except ValueError as e:
        raise ConfigError(f"{path}: {e}") from e
    return node


def line(text: str, at: int) -> int:
    """The number of the line that an offset is on."""
    return text.count("\n", 0, at) + 1


def edited(text: str, changes: Mapping[tuple[str, ...], Any], path: str = "") -> str:
    """``text`` with values set, keys -> value, or removed where the value is :data:`REMOVE`.

    Objects on the way are made.  An empty text is an empty object.

    :raise ConfigError: it is not JSON, or something on the way is no object.
    """
    text = text if text.strip() else "{}\n"
    for keys, value in changes.items():
        text = _set(text, keys, value, path)
    return text


class _Wrong(Exception):
    def __init__(self, at: int, text: str) -> None:
        super().__init__(text)
        self.at = at


def _skip(text: str, at: int) -> int:
    match = _BLANK.match(text, at)
    assert match is not None
    return match.end()


def _value(text: str, at: int, depth: int) -> Node:
    if depth > MAX_DEPTH:
        raise _Wrong(at, "nested too deeply")
    first = text[at : at + 1]
    if first == '"':
        try:
            value, end = scanstring(text, at + 1, True)
        except json.JSONDecodeError as e:
            raise _Wrong(e.pos, e.msg) from e
        return Node(value, at, end)
    if first == "{":
        return _object(text, at, depth)
    if first == "[":
        items: list[Any] = []
        position = _skip(text, at + 1)
        while text[position : position + 1] != "]" or items:
            item = _value(text, position, depth + 1)
            items.append(item.value)
            position, more = _next(text, item.end, "]")
            if not more:
                return Node(items, at, position)
        return Node(items, at, position + 1)
    match = _SCALAR.match(text, at)
    if match is None:
        raise _Wrong(at, "a value is expected" if at < len(text) else "it ends too early")
    return Node(json.loads(match[0]), at, match.end())


def _object(text: str, at: int, depth: int) -> Node:
    values: dict[str, Any] = {}
    members: dict[str, tuple[int, Node]] = {}
    position = _skip(text, at + 1)
    if text[position : position + 1] == "}":
        return Node(values, at, position + 1)
    while True:
        if text[position : position + 1] != '"':
            raise _Wrong(position, "a key in quotes is expected")
        key = _value(text, position, depth)
        if key.value in members:
            raise _Wrong(position, f"{key.value!r} is set twice, first on line {line(text, members[key.value][0])}")
        colon = _skip(text, key.end)
        if text[colon : colon + 1] != ":":
            raise _Wrong(colon, "':' is expected")
        value = _value(text, _skip(text, colon + 1), depth + 1)
        values[key.value], members[key.value] = value.value, (position, value)
        position, more = _next(text, value.end, "}")
        if not more:
            return Node(values, at, position, members)


def _next(text: str, at: int, closing: str) -> tuple[int, bool]:
    """Where the next item begins, or the end of the list."""
    at = _skip(text, at)
    if text[at : at + 1] == closing:
        return at + 1, False
    if text[at : at + 1] != ",":
        raise _Wrong(at, f"',' or '{closing}' is expected")
    return _skip(text, at + 1), True


def _set(text: str, keys: Sequence[str], value: Any, path: str) -> str:
    node = parent = parse(text, path)
    for depth, key in enumerate(keys):
        if not isinstance(node.value, dict):
            raise ConfigError(f"{path}:{line(text, node.start)}: {'.'.join(keys[:depth]) or 'it'} is no object")
        if key not in node.members and value is REMOVE:
            return text
        if key not in node.members:
            for inner in reversed(keys[depth + 1 :]):
                value = {inner: value}
            return _inserted(text, node, key, value)
        parent, node = node, node.members[key][1]
    if value is REMOVE:
        return _removed(text, parent, keys[-1])
    if node.value == value and type(node.value) is type(value):
        return text
    return text[: node.start] + _dumps(value, text, node.start) + text[node.end :]


def _inserted(text: str, node: Node, key: str, value: Any) -> str:
    """The object with one more member, behind its last one and as that is indented."""
    if node.members:
        start, last = list(node.members.values())[-1]
        begin = text.rfind("\n", 0, start) + 1
        blank = text[begin:start]
        between = ",\n" + blank if not blank.strip() else ", "
        piece = f"{between}{json.dumps(key)}: {_dumps(value, text, start)}"
        return text[: last.end] + piece + text[last.end :]
    indent, step = _indent(text, node.start), _step(text)
    return (f"{text[: node.start]}{{\n{indent}{step}{json.dumps(key)}: "
            f"{_reindent(value, step, indent + step)}\n{indent}}}{text[node.end :]}")


def _removed(text: str, node: Node, key: str) -> str:
    """The object without a member, and without the comma that parted it from its neighbour."""
    names = list(node.members)
    number = names.index(key)
    start, value = node.members[key]
    if len(names) == 1:
        return f"{text[: node.start]}{{}}{text[node.end :]}"
    if number:
        return text[: node.members[names[number - 1]][1].end] + text[value.end :]
    return text[:start] + text[node.members[names[1]][0] :]


def _dumps(value: Any, text: str, at: int) -> str:
    """``value`` as it would stand at ``at``."""
    return _reindent(value, _step(text), _indent(text, at))


def _reindent(value: Any, step: str, indent: str) -> str:
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        return json.dumps(value, ensure_ascii=False)  # lists of words stand on a line
    if not isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    inner = indent + step
    members = [f"{inner}{json.dumps(k)}: {_reindent(v, step, inner)}" for k, v in value.items()]
    return "{\n" + ",\n".join(members) + f"\n{indent}}}" if members else "{}"


def _indent(text: str, at: int) -> str:
    begin = text.rfind("\n", 0, at) + 1
    blank = re.match(r"[ \t]*", text[begin:at])
    return blank[0] if blank else ""


def _step(text: str) -> str:
    """One level of indentation: that of the first indented line."""
    match = re.search(r"\n([ \t]+)\S", text)
    return match[1] if match else "    "
