"""Runtimes of Kata's into an engine, and out of it again.

A file is changed as a set of :mod:`kata.changes`, named ``engine-NAME-NUMBER``.  The engine's own check, the reload and
the proof follow; when one of them fails the file is at once what it was, byte for byte.
"""

from __future__ import annotations

import os
import shutil

from kata import engines, flavors, loader
from kata.changes import FOLDER, NEW, Changes, change
from kata.engines import proof, reload
from kata.engines.docker import Unit
from kata.errors import ConfigError, HostError, KataError, UsageError
from kata.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any

    from kata.engines.files import File

    Say = Callable[[str], None]

#: Where entries go if no file is named; CRI-O and podman read drop-ins, and such a one is ours alone.
TARGETS = {"docker": "/etc/docker/daemon.json", "containerd": "/etc/containerd/config.toml",
           "crio": "/etc/crio/crio.conf.d/60-kata.conf", "podman": "/etc/containers/containers.conf.d/60-kata.conf"}
#: Programs without which an engine is not installed.
ENGINE_PROGRAMS = {"docker": ("dockerd", "docker"), "containerd": ("containerd", "ctr"), "crio": ("crio",),
                   "podman": ("podman",)}
SYSTEMD = "/run/systemd/system"  #: exists where systemd is the init
#: What makes an engine read its files where this program cannot do it.
BY_HAND = {
    "containerd": "containerd reads its file when it starts: `systemctl restart containerd`, or end it and start it "
                  "again; containers go on, their shims are processes of their own",
    "crio": "CRI-O reads its files at SIGHUP: `systemctl reload crio`, or `kill -HUP $(pidof crio)`; "
            "one older than 1.26 has to be restarted",
}


class Wish(Record):
    """What is asked for.  With a ``sysroot``, files are changed and no engine is spoken to."""

    engine: str
    flavors: tuple[str, ...] = ()  #: () = the runtime `kata`, and one for each flavor of this host
    default: bool = False
    file: str = ""  #: in place of the usual ones
    address: str = ""  #: containerd's socket
    pidfile: str = ""  #: dockerd's
    verify: bool = True
    sysroot: str = ""


def install(wish: Wish, say: Say) -> None:
    """The engine has the runtimes, and was shown to run containers with them; or nothing is changed.

    :raise UsageError: there is no such flavor.
    :raise ConfigError: a file is wrong or cannot hold them, a program is missing, a flavor is retired.
    :raise HostError: the engine is missing, refuses the file or the reload, or the proof failed.
    """
    programs = _programs(wish)
    _ready(wish)
    sets, before = _sets(wish, say)
    name = _next(sets, wish.engine)
    here = engines.files(wish.sysroot, [wish.engine], wish.file)
    engines.check(wish.engine, here)
    target = _target(wish, here)
    default = next(iter(programs)) if wish.default else ""
    _overridden(here, target, programs, default)
    _started_with(wish)
    after = type(target)(wish.engine, target.path, wish.sysroot, target.installed(programs, default))
    if not after.holds(programs):
        raise HostError(f"the runtimes could not be written into {target.shown}", "please report it, with that file")
    made = change(target.path, after.text.encode(), sysroot=wish.sysroot)
    if made.changes:
        sets.apply(name, [made], _note(wish, here, sets, before, programs))
        for runtime, program in programs.items():
            say(f"{target.shown}: runtime {runtime} is {program}{', the default' if runtime == default else ''}")
    else:
        say(f"{target.shown}: has the runtimes already")
    try:
        _tell(wish, target, programs, say)
        _prove(wish, programs, say)
    except BaseException as e:
        if not made.changes:
            raise
        sets.rollback(name)
        _tell_again(wish, say)
        if isinstance(e, KataError):
            raise type(e)(f"{e.text}; {target.shown} is what it was", e.hint) from e
        raise
    if made.changes:
        for old in before:
            sets.forget(old)


def remove(wish: Wish, say: Say) -> None:
    """The engine has the runtimes no more; a file that nobody else has changed since is what it was before.

    :raise ConfigError: a file is wrong, or they are options of a unit.
    :raise HostError: the engine refuses the file or the reload.
    """
    sets, before = _sets(wish, say)
    here = engines.files(wish.sysroot, [wish.engine], wish.file)
    wanted = {f"kata-{f}" for f in wish.flavors} or _all()
    found = [e for e in engines.ours(here, "") if e.name in wanted
             and (wish.file or not e.source.path.startswith("/usr/"))]  # these are a package's
    if not found:
        say(f"{wish.engine}: has no runtime {' or '.join(sorted(wanted))}")
        return
    note = _noted(sets, before)
    names = {e.name for e in found}
    if len(before) == 1 and note.get("clean") and names == set(note["runtimes"]) and _untouched(sets, before[0]):
        changed = sets.rollback(before[0])
    else:
        made = []
        for file in here:
            if mine := [e.name for e in found if e.file == file.shown]:
                text = file.removed(mine, note.get("default", ""))
                gone = note.get("new") == file.path and not _left(text)
                made.append(change(file.path, None if gone else text.encode(), sysroot=wish.sysroot))
        name = _next(sets, wish.engine)
        sets.apply(name, made, {})
        left = {e.name for e in engines.ours(here, "") if e.name in _all()} - names
        for old in (name,) if left else (*before, name):
            sets.forget(old)
        changed = [c.path for c in made]
    target = next((f for f in engines.files(wish.sysroot, [wish.engine], wish.file) if f.shown in changed), None)
    for path in changed:
        say(f"{path}: without {', '.join(sorted(names))}")
    _tell(wish, target, {}, say)


def status(engine: str, sysroot: str, file: str, default_flavor: str) -> dict[str, Any]:
    """What an engine has: ``installed``, ``runtimes`` with flavor, place and what is wrong, the ``default``."""
    here: list[File] = []
    problems = []
    try:
        here = engines.files(sysroot, [engine], file)
        engines.check(engine, here)
    except ConfigError as e:
        problems.append(str(e))
    found: list[dict[str, Any]] = []
    for entry in engines.ours(here, default_flavor):
        program = f"{sysroot}{entry.program}" if entry.program.startswith("/") else shutil.which(entry.program) or ""
        there = os.access(program, os.X_OK)
        found.append({"name": entry.name, "program": entry.program, "args": list(entry.args), "flavor": entry.flavor,
                      "default": entry.default, "file": entry.file, "line": entry.line,
                      "problem": "" if there else "its program is missing"})
    sets = Changes(f"{sysroot}{FOLDER}")
    interrupted = [n for n in _names(sets, engine) if (s := sets.status(n)) and s.state != "applied"]
    problems += [f"{n} was killed half way: the next install or remove undoes it" for n in interrupted]
    return {"engine": engine, "installed": bool(sysroot) or not _missing(engine),
            "default": engines.default_runtime(here), "runtimes": found, "problems": problems}


# --- what is asked for --------------------------------------------------------------------


def _all() -> set[str]:
    """Names of all runtimes that this verb makes."""
    return {"kata", *(f"kata-{f}" for f in flavors.PROGRAMS.values())}


def _programs(wish: Wish) -> dict[str, str]:
    """Runtime -> program, the default one first."""
    settings = flavors.host(flavors.host_file(os.environ))
    known = [f for p, f in flavors.PROGRAMS.items() if p == f"kata-{f}"]
    for flavor in wish.flavors:
        if flavor not in known:
            raise UsageError(f"--flavor {flavor}: there is no program kata-{flavor}", f"it is {', '.join(known)}")
        loader.load(flavor, "--flavor")
        flavors.refuse_retired(flavor, settings)
    if wish.flavors:
        names = [f"kata-{f}" for f in wish.flavors]
    else:
        retired = flavors.RETIRING if settings.phase >= flavors.RETIRED else ()
        there = loader.available()
        names = ["kata", *(f"kata-{f}" for f in known if f in there and f not in retired)]
    return {name: engines.program(name, wish.sysroot) for name in names}


def _ready(wish: Wish) -> None:
    """:raise HostError: the engine is not installed, or does not run and so proves nothing."""
    if wish.sysroot:
        return
    if missing := _missing(wish.engine):
        raise HostError(f"{wish.engine} is not installed: {' and '.join(missing)} not found in PATH",
                        "install it; --sysroot DIR prepares a system that is not this one")
    if wish.verify and wish.engine == "docker" and not _docker(wish)[0]:
        raise HostError("docker does not run, so it can prove nothing",
                        "start it, or --no-verify; --pidfile says where it wrote its process id")


def _missing(engine: str) -> list[str]:
    return [p for p in ENGINE_PROGRAMS[engine] if shutil.which(p) is None]


def _docker(wish: Wish) -> tuple[int, str]:
    return reload.running_docker("", wish.file or TARGETS["docker"], wish.pidfile)


# --- files --------------------------------------------------------------------------------


def _target(wish: Wish, here: Sequence[File]) -> File:
    """The file that takes the entries; docker's unit must not have any, since dockerd does not take both."""
    for file in here:
        if isinstance(file, Unit) and file.runtimes:
            raise ConfigError(f"{file.shown}:{file.runtimes[0].line} adds the runtime {file.runtimes[0].name}: dockerd "
                              "takes runtimes from its command line or its file, not from both",
                              f"move it to `runtimes` of {TARGETS['docker']}")
        if isinstance(file, Unit) and file.default and wish.default:
            raise ConfigError(f"{file.shown}:{file.default_line} sets the default runtime: dockerd takes it from its "
                              "command line or its file, not from both", f"move it to {TARGETS['docker']}")
    path = wish.file or TARGETS[wish.engine]
    found = next((f for f in here if f.path == path), None)
    return found or engines.KINDS[next(iter(engines.PLACES[wish.engine]))](wish.engine, path, wish.sysroot, "")


def _started_with(wish: Wish) -> None:
    """:raise ConfigError: the dockerd that runs has an option that its file would have, too."""
    pid = _docker(wish)[0] if wish.engine == "docker" and not wish.sysroot else 0
    for word in reload.words_of(pid) if pid else ():
        option = word.partition("=")[0]
        if option == "--add-runtime" or (option == "--default-runtime" and wish.default):
            raise ConfigError(f"dockerd (pid {pid}) was started with {option}: it takes this from its command line or "
                              "its file, not from both", f"move it to {wish.file or TARGETS['docker']}")


def _overridden(here: Sequence[File], target: File, programs: Mapping[str, str], default: str) -> None:
    """:raise ConfigError: a file that is read later says otherwise."""
    paths = [f.path for f in here]
    later = here[paths.index(target.path) + 1 :] if target.path in paths else [f for f in here if f.path > target.path]
    for file in later:
        for named in file.runtimes:
            if named.name in programs and named.program != programs[named.name]:
                raise ConfigError(f"{file.shown}:{named.line} has a runtime {named.name} already, and is read later "
                                  f"than {target.shown}", "remove it there, or name that file with --file")
        if default and file.default and not isinstance(file, Unit):
            raise ConfigError(f"{file.shown}:{file.default_line} sets the default runtime, and is read later than "
                              f"{target.shown}", "remove it there, or name that file with --file")


def _left(text: str) -> bool:
    """Whether a file that this program made says anything more than it had put there."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("[")]
    return not all(line in ("{}", "version = 2") for line in lines)


# --- sets of changes ----------------------------------------------------------------------


def _sets(wish: Wish, say: Say) -> tuple[Changes, list[str]]:
    """All sets, and the names of those of the file that is asked for; what was killed half way is undone."""
    sets = Changes(f"{wish.sysroot}{FOLDER}")
    for name in _names(sets, wish.engine):
        if sets.recover(name):
            say(f"{name} was killed half way, and is undone")
    path = wish.file or TARGETS[wish.engine]
    return sets, [n for n in _names(sets, wish.engine) if _noted(sets, [n]).get("file") == path]


def _names(sets: Changes, engine: str) -> list[str]:
    prefix = f"engine-{engine}-"
    return sorted((n for n in sets.names() if n.removeprefix(prefix).isdecimal()),
                  key=lambda n: int(n.removeprefix(prefix)))


def _next(sets: Changes, engine: str) -> str:
    return f"engine-{engine}-{1 + max((int(n.rpartition('-')[2]) for n in _names(sets, engine)), default=0)}"


def _noted(sets: Changes, before: Sequence[str]) -> Mapping[str, Any]:
    found = sets.status(before[-1]) if before else None
    return found.note if found is not None else {}


def _untouched(sets: Changes, name: str) -> bool:
    found = sets.status(name)
    return found is not None and found.now == NEW


def _note(wish: Wish, here: Sequence[File], sets: Changes, before: Sequence[str], programs: Mapping[str, str],
          ) -> dict[str, Any]:
    """What :func:`remove` needs to know: the default before Kata, whether the file was new, and had none of Kata's."""
    old = _noted(sets, before)
    path = wish.file or TARGETS[wish.engine]
    there = next((f for f in here if f.path == path), None)
    default = there.default if there is not None and there.default not in _all() else ""
    return {"file": path, "new": old.get("new") or ("" if there else path),
            "default": default or old.get("default", ""),
            "clean": not any(e.name in _all() for e in engines.ours(here, "")), "runtimes": list(programs)}


# --- the engine ---------------------------------------------------------------------------


def _environ(wish: Wish) -> dict[str, str]:
    return {**os.environ, **({"CONTAINERS_CONF": wish.file} if wish.file else {})}


def _tell(wish: Wish, target: File | None, programs: Mapping[str, str], say: Say) -> None:
    """The engine checks its file and reads it again."""
    if wish.sysroot:
        say(f"{wish.engine}: not told, since {wish.sysroot} is not this system")
        return
    if _missing(wish.engine):  # only removing comes so far
        say(f"{wish.engine}: not told, since it is not installed")
        return
    path = target.path if target is not None else ""
    match wish.engine:
        case "docker":
            if path:
                reload.check_docker(path, wish.pidfile)
            say(reload.docker("", wish.file or TARGETS["docker"], wish.pidfile))
        case "containerd":
            if path and (note := reload.check_containerd(path, programs)):
                say(note)
            say(BY_HAND["containerd"])
        case "podman":
            reload.check_podman(programs, _environ(wish))
            say("podman reads its files at every call")
        case "crio" if os.path.isdir(SYSTEMD):
            from kata import process

            process.run(["systemctl", "reload", "crio"], timeout=reload.CHECK, hint=BY_HAND["crio"])
            say("CRI-O has reloaded")
        case _:
            say(BY_HAND["crio"])


def _tell_again(wish: Wish, say: Say) -> None:
    """After a roll back: docker may have read the new file."""
    if wish.engine != "docker" or wish.sysroot:
        return
    try:
        say(reload.docker("", wish.file or TARGETS["docker"], wish.pidfile))
    except KataError as e:
        say(f"docker has its old file and did not say that it reads it: {e.text}")


def _prove(wish: Wish, programs: Mapping[str, str], say: Say) -> None:
    if not wish.verify or wish.sysroot:
        return
    if wish.engine == "crio":
        say("not proven: CRI-O runs containers for its clients only. `crictl runp --runtime kata POD.json` is one")
        return
    for line in _proofs(wish, programs):
        say(line)


def _proofs(wish: Wish, programs: Mapping[str, str]) -> Iterator[str]:
    if wish.engine == "docker":
        return proof.docker(_docker(wish)[1], list(programs))
    if wish.engine == "containerd":
        return proof.containerd(wish.address, programs)
    return proof.podman(list(programs), _environ(wish))
