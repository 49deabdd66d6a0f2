"""Runtimes of engines: whose they are, and which program and options they get."""

from __future__ import annotations

import re

from kata.changes import Change, change
from kata.engines import ENGINES, NONE, files, option, program
from kata.engines.docker import DaemonJson
from kata.migrate import CHANGED, DROPPED, RENAMED, Row
from kata.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kata.engines import Entry
    from kata.engines.files import File

#: Flavor -> program, name of the runtime that is added for it.
PROGRAMS = {"unified": ("kata-runtime", "kata"), "clear": ("cc-runtime", "cc-runtime"), "runv": ("runv", "runv")}
_SHIM = re.compile(r"io\.containerd\.kata|containerd-shim-kata")
PACKAGES = "/usr/"  #: files below are a package's, and no place for a host's settings


class Action(Record):
    """What an engine needs so that it knows of the change.  ``how``: SIGHUP | restart | nothing."""

    engine: str
    how: str
    why: str


class Result(Record):
    """Rows, changes of files, and what comes after them."""

    rows: tuple[Row, ...]
    changes: tuple[Change, ...]
    actions: tuple[Action, ...]
    notes: tuple[str, ...]


def retarget(sysroot: str, wanted: Sequence[tuple[Entry, Sequence[str]]], flavor: str) -> Result:
    """Runtimes get the program of another flavor; names stay, since containers are recorded with them.

    One that has options keeps some: docker makes a script for such a runtime, named after it, by which containers that
    run are driven; without options the script would go.

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
        every = {r.name for f in files(sysroot, [file.engine]) for r in f.runtimes}
        like = next((e.name for e, args in here if e.default), "") or next(
            (e.name for e, args in here if option(args, "kata-config") == "" and not (e.fixed and args)), "")
        told = any(row.source == file.engine and row.new_key == f"runtime {added}" for row in rows)  # in another file
        new = {added: like} if like and added not in every and not told else {}
        default = added if file.default in {e.name for e, _args in here if e.default} and (
            new or told or file.default == added) else ""
        here = [(e, args or (["--flavor", flavor] if e.args and not e.fixed else [])) for e, args in here]
        if more := [e.name for e, args in here if args and not e.args and not e.fixed]:
            notes.append(f"end the containers that docker makes with {', '.join(more)} before a rollback: up to its "
                         "version 24 it calls a runtime with options by a script, which goes with the options")
        text = file.changed({e.name: (target, args) for e, args in here}, new, default)
        rows += _rows(here, target, new, default, file)
        made = change(file.path, text.encode(), sysroot=sysroot)
        if made.changes:
            changes.append(made)
            actions[file.engine] = _action(file, actions.get(file.engine))
    return Result(tuple(rows), tuple(changes), tuple(actions.values()), tuple(notes))


def shims(sysroot: str, names: Sequence[str]) -> list[Row]:
    """Where engines ask for the shim of Kata 2.x and later, which is a program of its own and stays."""
    return [Row(source=file.engine, key="shim of Kata", old=line.strip(), kind=DROPPED, file=file.shown, line=number,
                why="this runtime is called by containerd's own shim, not by one of its own: the entry stays Kata's, "
                    "which may read the same configuration.toml",
                instead=f"kata engine install {file.engine} adds this runtime beside it")
            for file in files(sysroot, [n for n in names if n != NONE] if names else ENGINES)
            for number, line in enumerate(file.text.splitlines(), 1)
            if _SHIM.search(line) and not line.lstrip().startswith("#")]


def _rows(here: Sequence[tuple[Entry, Sequence[str]]], target: str, new: Mapping[str, str], default: str,
          file: File) -> list[Row]:
    rows = []
    for entry, args in here:
        before, after = " ".join([entry.program, *entry.args]), " ".join([target, *([] if entry.fixed else args)])
        lost = entry.fixed and args
        rows.append(Row(
            source=entry.engine, key=f"runtime {entry.name}", old=before, kind=CHANGED if lost else RENAMED,
            new_key=f"runtime {entry.name}", new=after, file=entry.file, line=entry.line,
            why=f"it gets the default configuration, since this file has no place for options; it had {' '.join(args)}"
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
        case "docker" if isinstance(file, DaemonJson):
            return Action("docker", "SIGHUP", "dockerd reads runtimes and default-runtime again at SIGHUP")
        case "docker":
            return Action("docker", "restart", "options of a unit are read when dockerd starts: `systemctl "
                          "daemon-reload && systemctl restart docker`; containers go on only with live-restore")
        case "podman":
            return Action("podman", "nothing", "podman reads its files at every call")
        case _:
            return Action(file.engine, "restart", f"`systemctl restart {file.engine}` makes it read its files; "
                          "containers go on, their shims are processes of their own")
