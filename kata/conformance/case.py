"""What a case is: a function from a subject to what was seen, and what is promised of it.

::

    @case("docker", "logs", "logs tell output and errors apart", errors="to stderr")
    def logs(d: DockerSubject) -> Seen:
        ...
        return {"errors": both.stderr.strip()}

The keyword arguments are what the promise demands, by the name of the observed
value.  A value without a demand is compared with the reference's.  Observed
values are such that they can be compared: no pids, ids, times or paths of the host.

A case says nothing of what differs between flavors: each flavor declares that
itself (:mod:`kata.conformance.declared`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kata.errors import KataError

#: The suites, in the order in which they run.
SUITES = ("oci", "docker", "podman", "containerd", "cri")

#: What a case saw, by name; values that JSON can hold.
Seen = Mapping[str, object]
#: A case's function; its argument is what the suite gives to its cases: one subject under one engine.
Run = Callable[[Any], Seen]


class Skip(KataError):
    """The case cannot be tried here; the text says why."""

    kind = "skip"


@dataclass(frozen=True, slots=True)
class Case:
    """``promise``: the clause of the specification, or what the engine's user relies on.

    ``needs`` names what the machine must have (:mod:`kata.conformance.needs`).
    """

    suite: str
    name: str
    promise: str
    expected: Mapping[str, object]
    run: Run
    needs: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return f"{self.suite}/{self.name}"


CASES: list[Case] = []


def add(new: Case) -> None:
    """Make a case known."""
    assert new.suite in SUITES and all(new.id != old.id for old in CASES), new.id
    CASES.append(new)


def case(
    suite: str, name: str, promise: str, /, *, needs: tuple[str, ...] = (), **expected: object
) -> Callable[[Run], Run]:
    """Make a function a case of a suite; see above."""

    def decorate(run: Run) -> Run:
        add(Case(suite, name, promise, expected, run, needs))
        return run

    return decorate
