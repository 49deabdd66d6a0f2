"""Which flavor an invocation has, and where the host stands on the way to one runtime.

The road has three phases (``[roadmap] phase`` of /etc/kata/host.toml):

1. *coexist*: clear, runv and unified side by side;
2. *merged*: clear and runv still work and say what they would be in unified;
3. *retired*: they make no new containers; existing ones can be driven to their end.
"""

from __future__ import annotations

import os

from kata.errors import ConfigError, UsageError
from kata.record import Record

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Mapping

HOST_FILE = "/etc/kata/host.toml"
HOST_VARIABLE = "KATA_HOST_FILE"
DEFAULT = "unified"
VARIABLE = "KATA_FLAVOR"
#: Program names -> flavor: those of the originals, and links for engines that can give a runtime no options.
PROGRAMS = {"cc-runtime": "clear", "runv": "runv",
            "kata-clear": "clear", "kata-runv": "runv", "kata-unified": "unified"}
#: Flavors that the road leads away from.
RETIRING = ("clear", "runv")
COEXIST, MERGED, RETIRED = PHASES = (1, 2, 3)
#: Besides the asset store, where the kernels and images lie that a container may choose from.
GUEST_FOLDERS = ("/usr/share/clear-containers", "/usr/share/kata-containers", "/var/lib/hyper")
PHASE_NAMES = {COEXIST: "coexist", MERGED: "merged", RETIRED: "retired"}


class Host(Record):
    """``place`` is where ``default_flavor`` was set, for errors."""

    default_flavor: str = ""
    place: str = ""
    phase: int = COEXIST
    guest_folders: tuple[str, ...] = GUEST_FOLDERS


class Choice(Record):
    """A flavor and who asked for it; ``by_host``: nobody but the host's default.

    ``problem``: the host's file is wrong.  It keeps nobody from driving what runs, only from making more.
    """

    name: str
    origin: str
    by_host: bool = False
    problem: ConfigError | None = None


def host_file(environ: Mapping[str, str]) -> str:
    return environ.get(HOST_VARIABLE) or HOST_FILE


def host(path: str) -> Host:
    """The host's settings; all defaults if there is no file.

    :raise ConfigError: the file is wrong.
    """
    if not os.path.lexists(path):
        return Host()  # most hosts; saves the import of a TOML parser
    from kata.config import hostfile

    values, places = hostfile.read(path)
    return Host(place=places.get("default_flavor", ""), **values)


def choose(option: str, environ: Mapping[str, str], program: str) -> Choice:
    """The flavor: ``--flavor``, KATA_FLAVOR, the program's name, the host's default, ``unified``.

    :raise UsageError: option and program name ask for different flavors.
    """
    name = os.path.basename(program)
    by_program = PROGRAMS.get(name, "")
    if option:
        if by_program and by_program != option:
            raise UsageError(f"--flavor {option} and the program name {name!r} ask for different flavors",
                             f"use `kata --flavor {option}`")
        return Choice(option, "--flavor")
    if environ.get(VARIABLE):
        return Choice(environ[VARIABLE], VARIABLE)
    if by_program:
        return Choice(by_program, f"the program name {name!r}")
    try:
        settings = host(host_file(environ))
    except ConfigError as e:
        return Choice(DEFAULT, "the default", by_host=True, problem=e)
    if settings.default_flavor:
        return Choice(settings.default_flavor, settings.place, by_host=True)
    return Choice(DEFAULT, "the default")


def refuse_retired(name: str, settings: Host) -> None:
    """:raise ConfigError: no new containers are made with the flavor ``name`` on this host."""
    if settings.phase >= RETIRED and name in RETIRING:
        raise ConfigError(f"flavor {name} is retired on this host (roadmap phase {settings.phase}): "
                          f"it makes no new containers",
                          "`kata migrate plan` shows what it is in unified, `kata migrate apply` changes the engines; "
                          f"`kata roadmap set {MERGED}` goes back a phase")
