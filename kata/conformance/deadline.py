"""The end of a case's time.  Whatever a case waits for, it waits no longer than is left."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from contextvars import ContextVar

_end: ContextVar[float] = ContextVar("end", default=math.inf)


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """What is done in this block may wait for ``seconds`` in all."""
    before = _end.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _end.reset(before)


def left(at_most: float) -> float:
    """Seconds to wait: ``at_most``, or what is left; a tenth of a second when nothing is."""
    return min(at_most, max(0.1, _end.get() - time.monotonic()))
