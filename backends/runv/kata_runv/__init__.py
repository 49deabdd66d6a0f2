"""The runv flavor: runV 1.0 on the common components."""

from kata_runv.backend import RunvBackend

__all__ = ["RunvBackend"]
