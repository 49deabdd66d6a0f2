"""What the engines' cases have in common: a decorator for each engine's suite."""

from __future__ import annotations

from functools import partial

from kata.conformance.case import Seen, Skip, case

__all__ = ["Seen", "Skip", "containerd", "cri", "docker", "needs_all_capabilities", "podman"]


def needs_all_capabilities(said: str) -> None:
    """Skip a case that failed because this host has not all capabilities to give.

    :param said: the error.
    :raise Skip: that is why.
    """
    if "operation not permitted" in said.lower() and "cap" in said:
        raise Skip("the host has not all capabilities to give to a privileged container")


docker = partial(case, "docker")
podman = partial(case, "podman")
containerd = partial(case, "containerd")
cri = partial(case, "cri")
