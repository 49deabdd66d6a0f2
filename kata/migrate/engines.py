"""Runtimes of engines: whose they are, and which program and options they get."""

from __future__ import annotations

import os
import shutil
import sys

from kata import flavors
from kata.changes import Change, change
from kata.errors import ConfigError, UsageError
from kata.migrate import CHANGED, RENAMED, Row, enginefiles
from kata.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kata.migrate.enginefiles import File

ENGINES = tuple(enginefiles.PLACES)
NONE = "none"
OURS = ("kata", "kata-runtime")
#: Flavor -> program, name of the runtime that is added for it.
PROGRAMS = {"unified": ("kata-runtime", "kata"), "clear": ("cc-runtime", "cc-runtime"), "runv": ("runv", "runv")}
FOLDERS = ("/usr/bin", "/usr/local/bin", "/opt/kata/bin")
PACKAGES = "/usr/"  #: files below are a package's, and no place for a host's settings


class Action(Record):
    """What an engine needs so that it knows of the change.  ``how``: SIGHUP | restart | nothing."""

    engine: str
    how: str
    why: str


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


class Result(Record):
    """Rows, changes of files, and what comes after them."""

    rows: tuple[Row, ...]
    changes: tuple[Change, ...]
    actions: tuple[Action, ...]
    notes: tuple[str, ...]


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
    found = []
    for engine in names or ENGINES:
        files = enginefiles.files(sysroot, [engine]) if engine != NONE else []
        _check(engine, files)
        chosen = [f.default for f in files if f.default]
        for file in files:
            for named in file.runtimes:
                if flavor := flavor_of(named.program, named.args, default):
                    found.append(Entry(engine, named.name, named.program, named.args, flavor,
                                       named.name == (chosen[-1] if chosen else ""), file.shown, named.line,
                                       named.fixed, file))
    return found


def _check(engine: str, files: Sequence[File]) -> None:
    """dockerd does not start when an option is in its unit and in its file."""
    if engine != "docker":
        return
    for what, places in (("the default runtime", [f"{f.shown}:{f.default_line}" for f in files if f.default]),
                         ("a runtime", [f"{f.shown}:{f.runtimes[0].line}" for f in files if f.runtimes])):
        kinds = {isinstance(f, enginefiles.DaemonJson) for f in files if (f.default if "def" in what else f.runtimes)}
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


def retarget(sysroot: str, wanted: Sequence[tuple[Entry, Sequence[str]]], flavor: str) -> Result:
    """Runtimes get the program of another flavor; names stay, since containers are recorded with them.

    :param wanted: entries and their new options, the most important first.
    :raise ConfigError: the flavor's program is not installed.
    """
    rows: list[Row] = []
    changes: list[Change] = []
    notes: list[str] = []
    actions: dict[str, Action] = {}
    for file in {id(e.source): e.source for e, _args in wanted}.values():
        here = [(e, args) for e, args in wanted if e.source is file]
        if file.path.startswith(PACKAGES):
            notes.append(f"{file.shown} is a package's and stays as it is: it names "
                         f"{', '.join(e.name for e, _a in here)}; say otherwise in a file below /etc")
            continue
        path, added = PROGRAMS[flavor]
        target = program(path, sysroot)
        every = {r.name for f in enginefiles.files(sysroot, [file.engine]) for r in f.runtimes}
        like = next((e.name for e, args in here if e.default), "") or next(
            (e.name for e, args in here if option(args, "kata-config") == "" and not (e.fixed and args)), "")
        new = {added: like} if like and added not in every else {}
        default = added if file.default in {e.name for e, _args in here if e.default} and (
            new or file.default == added) else ""
        text = file.changed({e.name: (target, args) for e, args in here}, new, default)
        rows += _rows(here, target, new, default, file)
        made = change(file.path, text.encode(), sysroot=sysroot)
        if made.changes:
            changes.append(made)
            actions[file.engine] = _action(file, actions.get(file.engine))
    return Result(tuple(rows), tuple(changes), tuple(actions.values()), tuple(notes))


def _rows(here: Sequence[tuple[Entry, Sequence[str]]], target: str, new: Mapping[str, str], default: str,
          file: File) -> list[Row]:
    rows = []
    for entry, args in here:
        before, after = " ".join([entry.program, *entry.args]), " ".join([target, *([] if entry.fixed else args)])
        lost = entry.fixed and args
        rows.append(Row(
            source=entry.engine, key=f"runtime {entry.name}", old=before, kind=CHANGED if lost else RENAMED,
            new_key=f"runtime {entry.name}", new=after, file=entry.file, line=entry.line,
            why=f"it gets the default configuration, since this file has no place for options: {' '.join(args)} is lost"
            if lost else "the name stays: containers are recorded with it",
            instead="a script that calls kata-runtime with --kata-config, named here" if lost else ""))
    for name, like in new.items():
        after = next(r.new for r in rows if r.new_key == f"runtime {like}")
        rows.append(Row(source=file.engine, key=f"runtime {name}", old=None, kind=RENAMED, new_key=f"runtime {name}",
                        new=after, file=file.shown, why=f"new: as {like}"))
    if default and default != file.default:
        rows.append(Row(source=file.engine, key="default runtime", old=file.default, kind=RENAMED,
                        new_key="default runtime", new=default, file=file.shown, line=file.default_line))
    return rows


def _action(file: File, before: Action | None) -> Action:
    if before is not None and before.how == "restart":
        return before
    match file.engine:
        case "docker" if isinstance(file, enginefiles.DaemonJson):
            return Action("docker", "SIGHUP", "dockerd reads runtimes and default-runtime again at SIGHUP")
        case "docker":
            return Action("docker", "restart", "options of a unit are read when dockerd starts: `systemctl "
                          "daemon-reload && systemctl restart docker`; containers go on only with live-restore")
        case "podman":
            return Action("podman", "nothing", "podman reads its files at every call")
        case _:
            return Action(file.engine, "restart", f"`systemctl restart {file.engine}` makes it read its files; "
                          "containers go on, their shims are processes of their own")
