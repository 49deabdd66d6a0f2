"""proxy.log: the proxy's standard output."""

from __future__ import annotations

import time


def log(message: str) -> None:
    """One line."""
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {message}", flush=True)
