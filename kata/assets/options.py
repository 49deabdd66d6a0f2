"""The kernel's configuration: the fragments in ``configs/kernel``, and what the agent requires of any kernel.

A paragraph of a fragment whose first line is ``# Required: REASON`` lists
options that the agent relies on.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

from kata.assets.store import Asset
from kata.errors import ConfigError, HostError

_REQUIRED = "# Required:"
_NAMED = 3  #: missing options that an error names
_KVM_ONLY = "kvm.config"  #: what only a real processor needs


class Option(NamedTuple):
    """One line of a fragment."""

    name: str  #: with ``CONFIG_``
    value: str  #: as Kconfig writes it: ``y``, a number, or a text in quotes
    reason: str  #: why the agent needs it; "" when only containers may
    place: str  #: ``FILE:LINE``


def folder() -> Path:
    """Directory of the fragments: of the checkout, or of the installed package.

    :raise HostError: there is none.
    """
    places = (Path(__file__).parents[2] / "configs/kernel", Path(sys.prefix) / "share/kata/kernel")
    for place in places:
        if place.is_dir():
            return place
    raise HostError(f"the kernel's configuration is missing: there is no {places[0]}", "install Kata again")


def fragments(*, kvm: bool = True) -> list[Option]:
    """Every option that a fragment sets, in the order of the files' names.

    :param kvm: False leaves out what a kernel for emulated processors does without.
    :raise HostError: a line is not ``CONFIG_NAME=VALUE`` or a comment, or an option is set twice.
    """
    found: dict[str, Option] = {}
    for path in sorted(folder().glob("*.config")):
        if path.name == _KVM_ONLY and not kvm:
            continue
        reason = ""
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            place = f"{path.name}:{number}"
            if not line.strip():
                reason = ""
            elif line.startswith(_REQUIRED):
                reason = line.removeprefix(_REQUIRED).strip()
            elif not line.startswith("#"):
                name, sep, value = line.partition("=")
                if not sep or not name.startswith("CONFIG_"):
                    raise HostError(f"{place}: {line!r} is not CONFIG_NAME=VALUE")
                if name in found:
                    raise HostError(f"{place}: {name} is set in {found[name].place}, too")
                found[name] = Option(name, value.strip(), reason, place)
    return list(found.values())


def parse(config: str) -> dict[str, str]:
    """Name to value of the options that a kernel's ``.config`` sets."""
    pairs = (line.strip().partition("=") for line in config.splitlines() if line.startswith("CONFIG_"))
    return {name: value for name, _, value in pairs}


def missing(config: str) -> list[Option]:
    """What the agent requires and a kernel with this ``.config`` neither has built in nor as a module."""
    have = parse(config)
    return [option for option in fragments() if option.reason and have.get(option.name) not in ("y", "m")]


def check(kernel: Asset) -> None:
    """
    :raise ConfigError: the kernel lacks what the agent requires; names option and reason.
    :raise HostError: its configuration cannot be read.
    """
    path = Path(kernel.path) / "config"
    try:
        config = path.read_text(encoding="utf-8", errors="replace")
    except OSError as e:
        raise HostError(f"cannot read {path}: {e.strerror}", f"remove {kernel.path} and build it again") from e
    if lacks := missing(config):
        named = "; ".join(f"{option.name} ({option.reason})" for option in lacks[:_NAMED])
        more = f"; and {len(lacks) - _NAMED} more" if len(lacks) > _NAMED else ""
        raise ConfigError(f"kernel {kernel.id} ({kernel.name}) cannot serve as a guest: it lacks {named}{more}",
                          "use another kernel: kata kernel list")
