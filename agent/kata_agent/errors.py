"""Errors that become the status of a reply."""

from __future__ import annotations

import os

from kata_agent.protocol import codes


class AgentError(Exception):
    """A request that cannot be met.

    :param code: a gRPC status code of :mod:`kata_agent.protocol.codes`.
    :param text: what failed and why, without a full stop.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


def invalid(text: str) -> AgentError:
    """The request itself is wrong."""
    return AgentError(codes.INVALID_ARGUMENT, text)


def not_found(text: str) -> AgentError:
    return AgentError(codes.NOT_FOUND, text)


def precondition(text: str) -> AgentError:
    """Right request, wrong moment."""
    return AgentError(codes.FAILED_PRECONDITION, text)


def internal(text: str) -> AgentError:
    return AgentError(codes.INTERNAL, text)


def unsupported(text: str) -> AgentError:
    return AgentError(codes.UNIMPLEMENTED, text)


def describe(error: OSError) -> str:
    """``call: path: reason`` without Python's decoration."""
    reason = error.strerror or str(error)
    names = [os.fsdecode(n) for n in (error.filename, error.filename2) if n and not str(n).startswith("/proc/self/fd/")]
    return " ".join([*(f"{n}:" for n in names), reason])
