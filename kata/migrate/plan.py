"""What a migration would do: rows for people, changes of files for :mod:`kata.changes`.  Nothing is changed here."""

from __future__ import annotations

import os
from hashlib import sha256

from kata import engines, flavors
from kata.changes import Change, change
from kata.config import DROP_INS
from kata.config.edit import edited
from kata.errors import ConfigError, UsageError
from kata.migrate import CHANGED, DROPPED, RENAMED, SAME, UNKNOWN, Row, Setting, carry, keyed, sources, target
from kata.migrate.engines import retarget, shims
from kata.migrate.tables import clear as clear_table
from kata.migrate.tables import kata as kata_table
from kata.migrate.tables import runv as runv_table
from kata.record import Record, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

    from kata.engines import Entry
    from kata.migrate.carry import Carried
    from kata.migrate.engines import Action

SOURCES = ("clear", "runv", "kata")

#: Options that every flavor's program has, and that stay; the others are configuration.
KEPT = ("root", "log", "log-format", "systemd-cgroup")
VALUES = ("root", "log", "log-format", "cc-config", "kata-config", "config", *(
    name for name in sources.OPTIONS if name not in runv_table.FLAGS))
FLAGS = ("systemd-cgroup", "debug")


class Wish(Record):
    """What is asked for."""

    to: str = "unified"
    sources: tuple[str, ...] = ()  #: () = all that are found
    file: str = ""  #: configuration to read instead of the usual place
    command_line: str = ""  #: of runV or cc-runtime
    engines: tuple[str, ...] = ()  #: () = all that are found
    accepted: tuple[str, ...] = ()  #: unknown keys to leave out
    sysroot: str = ""
    image: str = ""  #: path of the asset store's image, "" if it has none


class Plan(Record):
    """The rows of all sources, and what would be done."""

    to: str
    rows: tuple[Row, ...]
    changes: tuple[Change, ...]
    actions: tuple[Action, ...]
    notes: tuple[str, ...]

    @property
    def id(self) -> str:
        """A name for exactly these changes: the same files before, the same after."""
        parts = [f"{c.path}\0{_digest(c.before.data)}\0{_digest(c.after)}" for c in self.changes]
        return sha256("\n".join(parts).encode()).hexdigest()[:12]

    @property
    def unknown(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.kind == UNKNOWN)


class Group(Record):
    """Entries of engines that have the same settings: they get one configuration file."""

    flavor: str
    name: str  #: of the first entry, for a file of its own
    settings: tuple[Setting, ...]
    origin: str
    entries: tuple[Entry, ...] = ()


def make(wish: Wish) -> Plan:
    """The plan.

    :raise ConfigError: a file is wrong, or there is nothing to migrate.
    :raise UsageError: options that do not go together.
    """
    if wish.sysroot and not os.path.isdir(wish.sysroot):
        raise UsageError(f"--sysroot {wish.sysroot}: there is no such folder")
    found = engines.entries(wish.sysroot, wish.engines, _default_flavor(wish))
    return _back(wish, found) if wish.to in flavors.RETIRING else _forward(wish, found)


# --- to unified ---------------------------------------------------------------------------


def _forward(wish: Wish, found: Sequence[Entry]) -> Plan:
    groups = [*_of_command_line(wish), *_clears(wish, found), *_runvs(wish, found)]
    base = _base(wish)
    if not groups and not base:
        raise ConfigError("there is nothing to migrate: no configuration of "
                          f"{', '.join(wish.sources or SOURCES)} is at its place, and no engine names their runtimes",
                          "name a file with --from and --file, or runV's options with --command-line")
    # The default place is that of runtimes that are unified's already, else of what the host runs by default; others
    # get a file of their own.
    ordered: list[Group | None] = [*sorted(groups, key=lambda g: not any(e.default for e in g.entries))]
    if any(e.flavor == wish.to and not engines.option(e.args, "kata-config", "config") for e in found):
        asked = wish.sources or wish.command_line
        ordered = [g for g in ordered if asked or (g and g.entries)]  # a file that nobody uses is left alone
        if any(g and g.entries for g in ordered):
            ordered = [None, *ordered]
    rows: list[Row] = []
    changes: list[Change] = []
    notes: list[str] = []
    wanted: list[tuple[Entry, list[str]]] = []
    paths: list[str] = []
    for number, group in enumerate(ordered or [None]):
        own = number > 0
        if own and group and group.entries and all(e.fixed for e in group.entries):
            # None of them could be told of a file: they get the default one.
            lost = [_lost(row, group) for row in _carry(wish, group).rows if row.file]
            rows += [row for row in lost if row not in rows]
            wanted += [(e, _as_options(group)) for e in group.entries]
            continue
        settings = () if own else base
        carried = _carry(wish, group) if group else None
        kept = carry.kata(settings, accepted=wish.accepted)
        path = _config_path(group.name, paths, wish.sysroot) if own and group else target.CONFIGURATION
        paths.append(path)
        made, of_file = _configuration(wish, path, kept, settings, carried, group)
        rows += [r for r in of_file if r not in rows]  # a flavor's ways once
        changes += made
        if own and group:
            who = ", ".join(e.name for e in group.entries) or "it"
            notes.append(f"{group.origin} has settings of its own: {who} gets {wish.sysroot}{path} by --kata-config")
        for entry in group.entries if group else ():
            wanted.append((entry, [*_kept_options(entry), *(["--kata-config", path] if own else [])]))
    by_engines = retarget(wish.sysroot, wanted, "unified")
    host = _host_default(wish, {g.flavor for g in groups})
    others = shims(wish.sysroot, wish.engines)
    return Plan(wish.to, (*rows, *by_engines.rows, *others, *host[0]), (*changes, *host[1], *by_engines.changes),
                by_engines.actions, (*notes, *by_engines.notes))


def _configuration(wish: Wish, path: str, kept: Carried, settings: Sequence[Setting], carried: Carried | None,
                   group: Group | None) -> tuple[list[Change], list[Row]]:
    """One configuration file.

    :param kept: what stays of what it says already, ``settings``.
    """
    values = {**kept.values, **(carried.values if carried else {})}
    rows = list(kept.rows) if settings else []
    if "kata" not in wish.sources and all(r.kind == SAME for r in rows if r.file):
        rows = [r for r in rows if r.file]  # it is this runtime's file already, and so are the defaults
    own = {r.new_key: r for r in rows if r.place}
    for row in carried.rows if carried else ():
        replaced = own.get(row.new_key)
        if replaced is not None and replaced.new != row.new:
            also = f"it replaces {replaced.new} of {replaced.place}"
            rows.append(replace(row, why=f"{row.why}; {also}" if row.why else also))
        else:
            rows.append(row)
    if any(r.kind == UNKNOWN for r in rows):
        return [], rows  # nothing can be written before somebody has decided
    if settings:
        text = target.changed(_text(settings[0].file, wish.sysroot), f"{wish.sysroot}{path}", settings, values)
    elif not values:
        return [], rows
    else:
        text = target.new(values, group.origin if group else "nothing")
    rows += target.check(text, f"{wish.sysroot}{path}", values, group.flavor if group else "kata")
    return [c for c in (change(path, text.encode(), sysroot=wish.sysroot),) if c.changes], rows


def _carry(wish: Wish, group: Group) -> Carried:
    if group.flavor == "clear":
        return carry.clear(group.settings, image=wish.image, accepted=wish.accepted)
    return carry.runv(group.settings, accepted=wish.accepted)


def _base(wish: Wish) -> Sequence[Setting]:
    """What unified's own configuration says now, or the one of another Kata that --from names."""
    named = "kata" in wish.sources
    if wish.file and named:
        path = wish.file
    else:
        path = sources.first(kata_table.PLACES if named else kata_table.PLACES[:2], wish.sysroot)
    if not path:
        return ()
    found = sources.settings(sources.read(path, wish.sysroot))
    if os.path.dirname(path) != f"{wish.sysroot}{os.path.dirname(target.CONFIGURATION)}":
        found = _with_drop_ins(path, found, wish.sysroot)  # those at the target's place stay where they are
    return found


def _with_drop_ins(path: str, settings: list[Setting], sysroot: str) -> list[Setting]:
    """The settings with those of ``config.d`` beside the file; a later value counts."""
    merged = {(s.table, s.key): s for s in settings}
    folder = f"{os.path.dirname(path)}/{DROP_INS}"
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    for name in names:
        if name.endswith(".toml") and not name.startswith("."):
            merged |= {(s.table, s.key): s for s in sources.settings(sources.read(f"{folder}/{name}", sysroot))}
    return list(merged.values())


def _clears(wish: Wish, found: Sequence[Entry]) -> Iterator[Group]:
    """A group for each configuration that cc-runtime is called with, the default one first."""
    if wish.sources and "clear" not in wish.sources:
        return
    entries: dict[str, list[Entry]] = {"": []}
    for entry in found:
        if entry.flavor == "clear":
            named = engines.option(entry.args, "cc-config", "kata-config", "config")
            entries.setdefault(f"{wish.sysroot}{named}" if named else "", []).append(entry)
    named_file = wish.file if "clear" in wish.sources else ""
    default = named_file or sources.first(clear_table.PLACES, wish.sysroot)
    for path, group in entries.items():
        file = path or default
        if not file and not group:
            continue
        settings = sources.settings(sources.read(file, wish.sysroot)) if file else []
        yield Group("clear", group[0].name if group else "clear", tuple(settings),
                    file or "Clear Containers' defaults", tuple(group))


def _runvs(wish: Wish, found: Sequence[Entry]) -> Iterator[Group]:
    """A group for each set of options that runv is called with."""
    if wish.sources and "runv" not in wish.sources:
        return
    groups: dict[tuple[Any, ...], list[tuple[Entry, list[Setting]]]] = {}
    for entry in found:
        if entry.flavor != "runv":
            continue
        settings = sources.runv_options(engines.without_flavor(entry.args), entry.file, entry.line)
        key = tuple(sorted((s.key, str(s.value)) for s in settings if s.key not in runv_table.COMMON))
        groups.setdefault(key, []).append((entry, settings))
    for members in groups.values():
        first, settings = members[0]
        yield Group("runv", first.name, tuple(settings), f"the runtime {first.name} of {first.engine}",
                    tuple(entry for entry, _settings in members))


def _of_command_line(wish: Wish) -> Iterator[Group]:
    """The settings that a command line names."""
    if not wish.command_line:
        return
    words = sources.split(wish.command_line)
    program = os.path.basename(words[0]) if words else ""
    flavor = engines.flavor_of(program, words[1:], "")
    if flavor not in flavors.RETIRING:
        raise UsageError(f"--command-line {wish.command_line!r} calls neither runv nor cc-runtime",
                         "begin it with the program's name, as: runv --default_memory 256")
    words = engines.without_flavor(words[1:])
    if flavor == "runv":
        yield Group("runv", "runv", tuple(sources.runv_options(words, "--command-line")), "a command line of runV")
        return
    named = engines.option(words, "cc-config", "kata-config", "config")
    if not named:
        raise UsageError(f"--command-line {wish.command_line!r} names no file of cc-runtime",
                         "use --from clear, which looks at the usual places")
    yield Group("clear", "clear", tuple(sources.settings(sources.read(f"{wish.sysroot}{named}", wish.sysroot))), named)


def _kept_options(entry: Entry) -> list[str]:
    """What every flavor's program has, and stays on the command line.

    :raise ConfigError: an option is not known.
    """
    kept: list[str] = []
    left = engines.without_flavor(entry.args)
    while left:
        word = left.pop(0)
        name, equals, _value = word.lstrip("-").partition("=")
        takes_value = name in VALUES
        if not word.startswith("-") or not (takes_value or name in (*FLAGS, *runv_table.FLAGS)):
            raise ConfigError(f"{entry.file}:{entry.line}: the runtime {entry.name} has the option {word!r}, which "
                              f"{entry.flavor} has not", "remove it")
        more = [left.pop(0)] if takes_value and not equals and left else []
        if name in KEPT:
            kept += [word, *more]
    return kept


def _lost(row: Row, group: Group) -> Row:
    """A setting of runtimes that cannot be given options."""
    return replace(row, kind=DROPPED, new_key="", new=None, instead="",
                   why=f"{group.name} of {group.entries[0].engine} gets the default configuration")


def _as_options(group: Group) -> list[str]:
    """The settings of a group that gets no file, for the row that says so."""
    if group.flavor == "clear":
        return [group.origin]
    options = [f"--{s.key}" if s.value is True else f"--{s.key}={s.value}"
               for s in group.settings if s.key not in KEPT]
    return options or ["runV's defaults"]


def _config_path(name: str, taken: Sequence[str], sysroot: str) -> str:
    """A file of a runtime's own that is none of ``taken``, and none of somebody else's."""
    plain = "".join(c if c.isalnum() or c in "._-" else "-" for c in name)
    stem = f"{os.path.dirname(target.CONFIGURATION)}/configuration-{plain}"
    paths = (f"{stem}{suffix}.toml" for suffix in ("", *(f"-{n}" for n in range(2, 1000))))
    return next(path for path in paths if path not in taken and not os.path.lexists(f"{sysroot}{path}"))


# --- and back -----------------------------------------------------------------------------


def _back(wish: Wish, found: Sequence[Entry]) -> Plan:
    if wish.sources or wish.command_line:
        raise UsageError(f"--to {wish.to} reads unified's configuration", "leave --from and --command-line out")
    path = wish.file or sources.first(kata_table.PLACES[:2], wish.sysroot)
    settings = _with_drop_ins(path, sources.settings(sources.read(path, wish.sysroot)), wish.sysroot) if path else []
    carried = (carry.to_clear if wish.to == "clear" else carry.to_runv)(settings, accepted=wish.accepted)
    rows, options = list(carried.rows), list[str]()
    changes: list[Change] = []
    if wish.to == "clear":
        changes, more = _clears_file(wish, carried.values, path)
        rows += more
    else:
        for (_table, name), value in carried.values.items():
            options += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    own = {e.name: named for e in found if (named := engines.option(e.args, "kata-config", "config"))}
    wanted = [(e, [*_kept_options(e), *options]) for e in found if e.flavor == "unified" and e.name not in own]
    by_engines = retarget(wish.sysroot, wanted, wish.to)
    notes = [*by_engines.notes, *(f"the runtime {name} stays: it has a configuration of its own, {named}"
                                  for name, named in own.items())]
    if wish.to == "runv":
        notes.append(f"runV's command line: {' '.join(['runv', *options])}")
    return Plan(wish.to, (*rows, *by_engines.rows), (*changes, *by_engines.changes), by_engines.actions, tuple(notes))


def _clears_file(wish: Wish, values: Mapping[tuple[str, str], Any], origin: str) -> tuple[list[Change], list[Row]]:
    """Clear's configuration; what an existing one says beyond it is taken out, and told."""
    path = f"{wish.sysroot}{target.CLEARS}"
    rows = []
    if os.path.lexists(path):
        before = sources.settings(sources.read(path, wish.sysroot))
        for s in before:
            new = values.get((s.table, s.key))
            if new != s.value:
                name = keyed(s.table, s.key)
                rows.append(Row(source="clear", key=name, old=s.value, kind=DROPPED if new is None else CHANGED,
                                new_key="" if new is None else name, new=new, file=s.file, line=s.line,
                                why="what the file said before gives way to unified's settings"))
        text = target.changed(_text(path, wish.sysroot), path, before, values)
    else:
        text = target.new(values, origin or "the defaults of the flavor unified")
    return [c for c in (change(target.CLEARS, text.encode(), sysroot=wish.sysroot),) if c.changes], rows


# --- the host's default flavor ------------------------------------------------------------


def _host_file(wish: Wish) -> str:
    return flavors.HOST_FILE if wish.sysroot else flavors.host_file(os.environ)


def _default_flavor(wish: Wish) -> str:
    return flavors.host(f"{wish.sysroot}{_host_file(wish)}").default_flavor or flavors.DEFAULT


def _host_default(wish: Wish, gone: set[str]) -> tuple[list[Row], list[Change]]:
    """A host whose default flavor is migrated has unified as default from then on."""
    default = _default_flavor(wish)
    if default not in gone:
        return [], []
    path = f"{wish.sysroot}{_host_file(wish)}"
    place, _colon, line = flavors.host(path).place.rpartition(":")
    text = edited(_text(path, wish.sysroot), {("runtime", "default_flavor"): flavors.DEFAULT}, path)
    key = keyed("runtime", "default_flavor")
    row = Row(source="kata", key=key, old=default, kind=RENAMED, new_key=key, new=flavors.DEFAULT, file=place,
              line=int(line or 0), why="engines that name kata alone get this flavor")
    return [row], [change(_host_file(wish), text.encode(), sysroot=wish.sysroot)]


def _text(path: str, sysroot: str) -> str:
    with open(sources.real(path, sysroot), encoding="utf-8", newline="") as f:
        return f.read()


def _digest(data: bytes | None) -> str:
    return "-" if data is None else sha256(data).hexdigest()
