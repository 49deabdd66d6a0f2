"""The unified flavor: Kata 1.x's behaviour, with what was learned since."""

from kata_unified.backend import UnifiedBackend

__all__ = ["UnifiedBackend"]
