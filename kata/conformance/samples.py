"""Times and sizes that are taken on the way, by subject: many of each, so that their spread can be told."""

from __future__ import annotations

import statistics
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence

#: Subject -> what (``exec``, ``memory`` ...) -> values; seconds, or bytes for ``memory``.
Samples = dict[str, dict[str, list[float]]]


class Sampler:
    """Takes samples from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken: Samples = defaultdict(lambda: defaultdict(list))

    def take(self, subject: str, what: str, value: float) -> None:
        with self._lock:
            self._taken[subject][what].append(value)

    def all(self) -> Samples:
        with self._lock:
            return {subject: {what: list(v) for what, v in of.items()} for subject, of in self._taken.items()}


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, the quartiles around it, and how many there are."""
    ordered = sorted(values)
    low, middle, high = statistics.quantiles(ordered, n=4, method="inclusive") if len(ordered) > 1 else ordered * 3
    return {"median": middle, "low": low, "high": high, "count": float(len(ordered))}


def ratio(mine: Mapping[str, float], other: Mapping[str, float]) -> tuple[float, float, float]:
    """Of the medians, and the least and greatest that the quartiles allow; 0 where there is nothing to divide by."""

    def divided(a: float, b: float) -> float:
        return a / b if b else 0.0

    return (divided(mine["median"], other["median"]), divided(mine["low"], other["high"]),
            divided(mine["high"], other["low"]))
