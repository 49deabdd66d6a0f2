"""What the cases of a suite share: made once per subject, by the first case that asks for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar
from weakref import WeakKeyDictionary

from kata.errors import KataError

T = TypeVar("T")

_made: WeakKeyDictionary[object, dict[str, object]] = WeakKeyDictionary()


def shared(side: object, key: str, make: Callable[[], T]) -> T:
    """What ``make`` returned the first time; if it failed then, the same error again.

    :param side: a subject's side of an engine.  Its cases run one after the other.
    """
    made = _made.setdefault(side, {})
    if key not in made:
        try:
            made[key] = make()
        except KataError as e:
            made[key] = e
    found = made[key]
    if isinstance(found, KataError):
        raise found
    return found  # type: ignore[return-value]
