"""Property tests: few examples in every run, other ones each time; more by HYPOTHESIS_EXAMPLES=1000."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("here", max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "40")), deadline=None)
settings.load_profile("here")
