"""SHA-256, of which short names are made, without :mod:`hashlib`, which loads all of OpenSSL."""

from __future__ import annotations

try:
    from _sha256 import sha256  # type: ignore[import-not-found]
except ImportError:  # Python 3.12 has it elsewhere
    from hashlib import sha256

__all__ = ["hexdigest"]


def hexdigest(text: str) -> str:
    """64 hex digits."""
    digest: str = sha256(text.encode()).hexdigest()
    return digest
