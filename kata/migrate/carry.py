"""One source's settings carried over: its rows, and the values of the target.  Pure."""

from __future__ import annotations

from kata.config import kata1
from kata.migrate import CHANGED, DROPPED, RENAMED, SAME, Behaviour, Row, Rule, Setting, keyed
from kata.migrate.rules import Sorted, classify, converted
from kata.migrate.tables import clear as clear_table
from kata.migrate.tables import kata as kata_table
from kata.migrate.tables import reverse
from kata.migrate.tables import runv as runv_table
from kata.record import Record, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any


class Carried(Record):
    """What becomes of one source."""

    source: str
    rows: tuple[Row, ...]
    values: Mapping[tuple[str, str], Any]


def clear(settings: Sequence[Setting], *, image: str = "", accepted: Sequence[str] = ()) -> Carried:
    """Clear's configuration.

    :param image: path of the asset store's image, which Clear's machines boot where a file names none.
    :raise ConfigError: a value is not one that its key can have.
    """
    found = classify(settings, "clear", clear_table.RULES, kata1.LANGUAGE, clear_table.MOVED, accepted)
    _defaults(found, "clear", settings, clear_table.DEFAULTS)
    if image and not found.values.get(("hypervisor.qemu", "image")):
        _default(found, "clear", "hypervisor.qemu", "image", "Clear's image", image, RENAMED,
                 "Clear boots an image; unified boots an initrd unless an image is named: remove the key for quicker "
                 "starts out of a template")
    return Carried("clear", (*found.rows, *_behaviours("clear", clear_table.BEHAVIOURS)), found.values)


def runv(settings: Sequence[Setting], *, accepted: Sequence[str] = ()) -> Carried:
    """runV's options, of one command line.

    :raise ConfigError: as above.
    """
    own = [s for s in settings if s.key not in runv_table.COMMON]
    found = classify(own, "runv", runv_table.RULES, kata1.LANGUAGE, {}, accepted)
    # As runV spells them; and what engines give every runtime stays where it is.
    found.rows = [replace(row, key=f"--{row.key}") for row in found.rows]
    found.rows += [Row(source="runv", key=f"--{s.key}", old=s.value, kind=SAME, new_key=f"--{s.key}", new=s.value,
                       file=s.file, line=s.line, why="it stays on the command line")
                   for s in settings if s.key in runv_table.COMMON]
    given = {s.key for s in own}
    if "debug" in given:
        found.values.update({(table, "enable_debug"): True for table in runv_table.DEBUG})
    if "default_memory" not in given:
        _default(found, "runv", "hypervisor.qemu", "default_memory", runv_table.DEFAULT_MEMORY, runv_table.LEAST_MEMORY,
                 CHANGED, f"our guest needs {runv_table.LEAST_MEMORY} MiB to come up",
                 ("sandbox.machine.memory", "sandbox.base_memory"))
    if "template" in given:
        found.values["factory", "enable_template"] = True
    _defaults(found, "runv", (), runv_table.DEFAULTS)
    return Carried("runv", (*found.rows, *_behaviours("runv", runv_table.BEHAVIOURS)), found.values)


def kata(settings: Sequence[Setting], *, accepted: Sequence[str] = ()) -> Carried:
    """Kata's configuration, of any version.

    :raise ConfigError: as above.
    """
    tables = [s.table for s in settings]
    other = next((t for t in tables if t in kata_table.HYPERVISORS), "")
    moved, rules = dict(kata_table.MOVED), dict(kata_table.RULES)
    for table in kata_table.HYPERVISORS:
        taken = table == other and "hypervisor.qemu" not in tables
        moved[table] = "hypervisor.qemu"
        rules[table, "*"] = Rule(DROPPED, why=f"QEMU is the only hypervisor: machines are QEMU's, not [{table}]'s",
                                 instead="[hypervisor.qemu]")
        if taken:
            rules |= {(table, key): replace(rules.get(("hypervisor.qemu", key), Rule(RENAMED)), kind=RENAMED,
                                            table="hypervisor.qemu", why="it means the same for QEMU")
                      for key in kata_table.OF_ANY}
    found = classify(settings, "kata", rules, kata1.LANGUAGE, moved, accepted)
    given = {(s.table, s.key) for s in settings}
    for (table, key), (old, new, why) in kata_table.DEFAULTS.items():
        if (table, key) not in given and (table, key) not in found.values:
            name = keyed(table, key)
            found.rows.append(Row(source="kata", key=name, old=old, kind=CHANGED, new_key=name, new=new,
                                  why=f"not set, and the default is another: {why}", instead="set the key"))
    return Carried("kata", tuple(found.rows), found.values)


def to_clear(settings: Sequence[Setting], *, accepted: Sequence[str] = ()) -> Carried:
    """Unified's configuration in Clear's language.

    :raise ConfigError: as above.
    """
    _check(settings)
    found = classify(settings, "unified", reverse.TO_CLEAR, reverse.LANGUAGE_OF_CLEAR, reverse.TABLES_OF_CLEAR,
                     accepted)
    _defaults(found, "unified", settings, reverse.DEFAULTS_FOR_CLEAR)
    return Carried("unified", (*found.rows, *_behaviours("unified", reverse.behaviours(clear_table.BEHAVIOURS))),
                   found.values)


def to_runv(settings: Sequence[Setting], *, accepted: Sequence[str] = ()) -> Carried:
    """Unified's configuration as runV's options; the values' table is "".

    :raise ConfigError: as above.
    """
    _check(settings)
    found = classify(settings, "unified", reverse.TO_RUNV, {}, {}, accepted)
    # An option has no table.
    found.values = {("", key): value for (_table, key), value in found.values.items()}
    found.rows = [replace(row, new_key="--" + row.new_key.rpartition(" ")[2]) if row.new_key else row
                  for row in found.rows]
    _defaults(found, "unified", settings, reverse.DEFAULTS_FOR_RUNV)
    return Carried("unified", (*found.rows, *_behaviours("unified", reverse.behaviours(runv_table.BEHAVIOURS))),
                   found.values)


def _check(settings: Iterable[Setting]) -> None:
    """:raise ConfigError: a value is not one that unified would take."""
    for setting in settings:
        if key := kata1.LANGUAGE.get(setting.table, {}).get(setting.key):
            converted(key, setting)


def _defaults(found: Sorted, source: str, settings: Iterable[Setting], defaults: Mapping[tuple[str, str], Any]) -> None:
    """The source's defaults that are not the target's: they are written."""
    given = {(s.table, s.key) for s in settings}
    for (table, key), value in defaults.items():
        if (table, key) not in found.values:
            kind = RENAMED if (table, key) not in given else CHANGED
            _default(found, source, table, key, value, value, kind, f"{source}'s default, which is another here")


def _default(found: Sorted, source: str, table: str, key: str, old: Any, new: Any, kind: str, why: str,
             fields: tuple[str, ...] = ()) -> None:
    found.values[table, key] = new
    name = keyed(table, key) if table else f"--{key}"
    found.rows.append(Row(source=source, key=name, old=old, kind=kind, new_key=name, new=new, why=why, fields=fields))


def _behaviours(source: str, table: Iterable[Behaviour]) -> list[Row]:
    return [Row(source=source, key=b.what, old=b.old, kind=CHANGED, new=b.new, why=b.why, instead=b.instead,
                fields=b.fields) for b in table]
