"""Property tests: a few examples in every run, other ones each time; more by HYPOTHESIS_EXAMPLES=1000."""

from __future__ import annotations

import gc
import os

from hypothesis import settings

settings.register_profile("here", max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "6")), deadline=None)
settings.load_profile("here")


def pytest_collection_finish() -> None:
    """What was imported and collected stays: the collector need not walk it again and again."""
    gc.collect()
    gc.freeze()
