"""Where container engines name their runtimes: docker, containerd, CRI-O, podman.

Each engine has a module: its places, and how such a file is read and changed (:mod:`kata.engines.files`).  Nothing
here changes a host; :mod:`kata.engines.setup` does, and `kata migrate`.
"""

from __future__ import annotations

import glob
import os
import shutil
import sys

from kata import flavors
from kata.engines import containerd, crio, docker, podman
from kata.errors import ConfigError, UsageError
from kata.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from kata.engines.files import File

#: Engine -> kind of file -> places, in the order in which they count.  A glob names drop-ins.
PLACES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "docker": docker.PLACES, "containerd": containerd.PLACES, "crio": crio.PLACES, "podman": podman.PLACES,
}
KINDS: dict[str, type[File]] = {
    "daemon.json": docker.DaemonJson, "unit": docker.Unit, "containerd": containerd.Containerd, "crio": crio.Crio,
    "podman": podman.Podman,
}
ENGINES = tuple(PLACES)
NONE = "none"
OURS = ("kata", "kata-runtime")
FOLDERS = ("/usr/bin", "/usr/local/bin", "/opt/kata/bin")


class Entry(Record):
    """A runtime of an engine that is one of ours or of the originals."""

    engine: str
    name: str
    program: str
    args: tuple[str, ...]
    flavor: str
    default: bool
    file: str
    line: int
    fixed: bool  #: it cannot be given options there
    source: File


def files(sysroot: str, names: Sequence[str], only: str = "") -> list[File]:
    """The files of the engines ``names`` that exist, in the order in which they count.

    :param only: the one file that is looked at, in place of the usual ones.
    :raise ConfigError: one cannot be read or is wrong.
    """
    found = []
    for engine in names:
        for kind, places in PLACES[engine].items():
            if only and kind != next(iter(PLACES[engine])):
                continue
            for place in (glob.escape(only),) if only else places:
                for path in sorted(glob.glob(f"{glob.escape(sysroot)}{place}")):
                    if not os.path.basename(path).startswith(".") and not os.path.isdir(path):
                        found.append(KINDS[kind](engine, path.removeprefix(sysroot), sysroot))
    return found


def flavor_of(program: str, args: Sequence[str], default: str) -> str:
    """The flavor that a command line asks for; "" if it is none of ours.

    :param default: of the host, for the program that is no flavor's own.
    """
    name = os.path.basename(program)
    if name in flavors.PROGRAMS:
        return flavors.PROGRAMS[name]
    return (option(args, "flavor") or default or flavors.DEFAULT) if name in OURS else ""


def option(args: Sequence[str], *names: str) -> str:
    """The value of an option, as ``--name VALUE`` or ``--name=VALUE``; "" if it is not there."""
    for number, word in enumerate(args):
        name, equals, value = word.partition("=")
        if name.startswith("-") and name.lstrip("-") in names:
            return value if equals else args[number + 1] if number + 1 < len(args) else ""
    return ""


def without_flavor(args: Sequence[str]) -> list[str]:
    """The words without ``--flavor``."""
    left, kept = list(args), []
    while left:
        word = left.pop(0)
        if word == "--flavor":
            left[:1] = []
        elif not word.startswith("--flavor="):
            kept.append(word)
    return kept


def entries(sysroot: str, names: Sequence[str], default: str) -> list[Entry]:
    """The runtimes of the engines ``names`` (all, if none is named) that are ours or the originals'.

    :param default: the host's default flavor.
    :raise UsageError: there is no such engine.
    :raise ConfigError: a file is wrong, or two say the same thing.
    """
    wrong = sorted({*names} - {*ENGINES, NONE})
    if wrong:
        raise UsageError(f"--engine {wrong[0]}: there is no such engine", f"it is {', '.join(ENGINES)} or {NONE}")
    found: list[Entry] = []
    for engine in names or ENGINES:
        of_engine = files(sysroot, [engine]) if engine != NONE else []
        check(engine, of_engine)
        found += ours(of_engine, default)
    return found


def ours(of_engine: Sequence[File], default: str) -> Iterator[Entry]:
    """The runtimes in the files of one engine that are ours or the originals'."""
    chosen = default_runtime(of_engine)
    for file in of_engine:
        for named in file.runtimes:
            if flavor := flavor_of(named.program, named.args, default):
                yield Entry(file.engine, named.name, named.program, named.args, flavor, named.name == chosen,
                            file.shown, named.line, named.fixed, file)


def default_runtime(of_engine: Sequence[File]) -> str:
    """The runtime that an engine uses if none is named; "" if no file says."""
    return next((file.default for file in reversed(of_engine) if file.default), "")


def check(engine: str, files: Sequence[File]) -> None:
    """dockerd does not start when an option is in its unit and in its file.

    :raise ConfigError: it is in both.
    """
    if engine != "docker":
        return
    for what, places in (("the default runtime", [f"{f.shown}:{f.default_line}" for f in files if f.default]),
                         ("a runtime", [f"{f.shown}:{f.runtimes[0].line}" for f in files if f.runtimes])):
        kinds = {isinstance(f, docker.DaemonJson) for f in files if (f.default if "def" in what else f.runtimes)}
        if len(kinds) > 1:
            raise ConfigError(f"{what} is named in {' and in '.join(places)}: dockerd takes no option from both a "
                              "file and its command line", "remove it from one of them")


def program(name: str, sysroot: str) -> str:
    """Where a program of ours is, as the host itself will see it."""
    for folder in FOLDERS if sysroot else ():
        if os.path.exists(f"{sysroot}{folder}/{name}"):
            return f"{folder}/{name}"
    beside = os.path.join(os.path.dirname(os.path.realpath(sys.argv[0])), name)
    found = shutil.which(name) or (beside if os.path.exists(beside) else os.path.join(sys.prefix, "bin", name))
    if not os.path.exists(found):
        raise ConfigError(f"the program {name} is not installed",
                          f"it comes with its flavor's distribution; looked for in PATH and {sys.prefix}/bin")
    return os.path.abspath(found)


