"""Plans to JSON and back, for state files, the proxy's control socket and hashes."""

from __future__ import annotations

import sys

from kata.errors import StateError
from kata.record import Record

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, TypeVar

    T = TypeVar("T", bound=Record)


def to_json(plan: Record) -> dict[str, Any]:
    """A plan as plain dicts and lists."""
    return {name: _plain(value) for name, value in plan.__dict__.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return to_json(value)
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def from_json(cls: type[T], data: Mapping[str, Any]) -> T:
    """The plan of type ``cls`` that :func:`to_json` made ``data`` from.

    :raise StateError: a field is missing or unknown: another version of the runtime has written it.
    """
    unknown = sorted(set(data) - set(cls.FIELDS))
    missing = sorted(set(cls.FIELDS) - set(data))
    if unknown or missing:
        raise StateError(f"a {cls.__name__} of another version of this runtime: unknown fields {unknown}, "
                         f"missing fields {missing}", "let that version delete its containers, or use delete --force")
    known = vars(sys.modules[cls.__module__])  # what the annotations may name
    return cls(**{name: _value(annotation, known, data[name]) for name, annotation in cls.FIELDS.items()})


def _value(annotation: str, known: Mapping[str, Any], value: Any) -> Any:
    if annotation.startswith("tuple["):
        item = annotation.removeprefix("tuple[").removesuffix(", ...]")
        return tuple(_value(item, known, v) for v in value)
    named = known.get(annotation)
    return from_json(named, value) if isinstance(named, type) and issubclass(named, Record) else value
