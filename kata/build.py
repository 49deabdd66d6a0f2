"""Which commit this is: of the checkout it runs from, or as recorded when it was packaged."""

from __future__ import annotations

import os


def _commit() -> str:
    """The commit checked out beside the package, read from git's files; "unknown" elsewhere."""
    git = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), ".git")
    try:
        with open(f"{git}/HEAD", encoding="ascii") as f:
            head = f.read().strip()
        if not head.startswith("ref: "):
            return head
        ref = head[5:]
        try:
            with open(f"{git}/{ref}", encoding="ascii") as f:
                return f.read().strip()
        except FileNotFoundError:
            with open(f"{git}/packed-refs", encoding="ascii") as f:
                return next((line.split()[0] for line in f if line.rstrip().endswith(f" {ref}")), "unknown")
    except OSError:
        return "unknown"


COMMIT = _commit()
