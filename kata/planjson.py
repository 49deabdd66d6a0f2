"""Plans to JSON and back, for state files, the proxy's control socket and hashes."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def to_json(plan: Any) -> dict[str, Any]:
    """A plan as plain dicts and lists."""
    result: dict[str, Any] = dataclasses.asdict(plan)
    return result


def from_json(cls: type[T], data: Mapping[str, Any]) -> T:
    """The plan of type ``cls`` that :func:`to_json` made ``data`` from.

    :raise ValueError: a field is missing or unknown.
    """
    hints = _hints(cls)
    unknown = set(data) - set(hints)
    missing = set(hints) - set(data)
    if unknown or missing:
        raise ValueError(f"{cls.__name__}: unknown fields {sorted(unknown)}, missing fields {sorted(missing)}")
    return cls(**{name: _value(hints[name], data[name]) for name in hints})


def _hints(cls: type) -> dict[str, Any]:
    names = {f.name for f in dataclasses.fields(cls)}
    namespace = {**vars(typing), "Mapping": Mapping, "Sequence": Sequence, "Any": Any}
    hints = typing.get_type_hints(cls, localns=namespace)
    return {k: v for k, v in hints.items() if k in names}


def _value(hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_json(hint, value)
    if typing.get_origin(hint) is tuple:
        (item, *_rest) = typing.get_args(hint)
        return tuple(_value(item, v) for v in value)
    if isinstance(hint, types.UnionType) and value is not None:
        return _value(typing.get_args(hint)[0], value)
    return value
