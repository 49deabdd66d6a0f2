"""The clear flavor: Clear Containers 3.0 on the common components."""

from kata_clear.backend import ClearBackend

__all__ = ["ClearBackend"]
