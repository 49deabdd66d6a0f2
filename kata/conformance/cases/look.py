"""Cases that share a container: it runs once per subject, and each case names what must have been seen in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kata.conformance.case import Case, Seen, add, case
from kata.conformance.engines.oci import Change, OciRuntime

oci = partial(case, "oci")


@dataclass(frozen=True, slots=True)
class Look:
    """A container, and what is looked at in it: ``scripts``, each a piece of shell.

    ``changes`` and ``prepare``: as of :meth:`OciRuntime.bundle`.
    """

    key: str
    scripts: Mapping[str, str]
    changes: Mapping[str, Any] | Change | None = None
    prepare: Callable[[Path], object] | None = None

    def seen(self, o: OciRuntime) -> dict[str, str]:
        """What each script printed."""
        return o.looks(self.key, self.scripts, self.changes, self.prepare)

    def case(self, name: str, promise: str, *also: str, needs: Sequence[str] = (), **expected: object) -> None:
        """Make a case of scripts by name: those with an expected output, and ``also``, whose output is compared."""
        unknown = {*also, *expected} - set(self.scripts)
        assert not unknown, f"{name} names {unknown}, which nobody looks at"

        def run(o: OciRuntime) -> Seen:
            seen = self.seen(o)
            return {key: seen[key] for key in (*expected, *also)}

        add(Case("oci", name, promise, expected, run, tuple(needs)))


def mask(*capabilities: int) -> str:
    """A set of capabilities as /proc/PID/status shows it."""
    return f"{sum(1 << c for c in capabilities):016x}"


def options_of(place: str) -> str:
    """Shell: the per-mount options of the topmost mount at a place, sorted (mountinfo, field 6)."""
    return (f"awk '$5 == \"{place}\" {{ o = $6 }} END {{ print o }}' /proc/self/mountinfo | tr , '\\n' | sort"
            " | tr '\\n' ' '")


def attempt(command: str, word: str = "done") -> str:
    """Shell: ``word`` if the command does it, else ``refused``."""
    return f"{{ {command}; }} >/dev/null 2>&1 && echo {word} || echo refused"
