"""The new configuration file: its text, and whether the runtime takes it."""

from __future__ import annotations

import os
import tempfile

from kata.config import DROP_INS, Settings, kata1
from kata.config.edit import edited
from kata.errors import ConfigError
from kata.migrate import CHANGED, Row, keyed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from kata.migrate import Setting

CONFIGURATION = "/etc/kata-containers/configuration.toml"
CLEARS = "/etc/clear-containers/configuration.toml"


def new(values: Mapping[tuple[str, str], Any], origin: str) -> str:
    """A file that did not exist.

    :param origin: what its values come from, for its first line.
    """
    head = (f"# Made by `kata migrate apply` from {origin}.\n"
            "# `kata migrate rollback` takes it away; docs/migration.md says what became of each key.\n\n")
    return head + edited("", values)


def changed(text: str, path: str, settings: Iterable[Setting], values: Mapping[tuple[str, str], Any]) -> str:
    """A file that exists, with ``values`` set and what it says beyond them taken out.

    :param settings: what of it was classified; the rest of the file stays as it is.
    """
    settings = list(settings)
    gone: dict[tuple[str, str], Any] = {(s.table, s.key): None for s in settings if (s.table, s.key) not in values}
    tables = {s.table: None for s in settings if s.table not in kata1.LANGUAGE}
    return edited(edited(text, {**gone, **values}, path), {(table, ""): None for table in tables}, path)


def check(text: str, path: str, values: Mapping[tuple[str, str], Any], source: str) -> list[Row]:
    """Load the file as the runtime will, with the drop-ins beside it; returns what these override.

    :param path: where it will be.
    :raise ConfigError: the runtime would not take it.
    """
    with tempfile.TemporaryDirectory(prefix="kata-migrate-") as folder:
        aside = f"{folder}/{os.path.basename(path)}"
        with open(aside, "w", encoding="utf-8") as f:
            f.write(text)
        drop_ins = f"{os.path.dirname(path)}/{DROP_INS}"
        if os.path.isdir(drop_ins):
            os.symlink(drop_ins, f"{folder}/{DROP_INS}")
        settings = Settings(kata1.LANGUAGE, kata1.REFUSED_TABLES)
        try:
            settings.read([aside], must_exist=True)
            settings.config()
        except ConfigError as e:
            text = e.text.replace(folder, os.path.dirname(path))
            raise ConfigError(f"the new configuration would not be taken: {text}", e.hint) from e
        return list(_overridden(settings, f"{folder}/{DROP_INS}/", drop_ins, values, source))


def _overridden(settings: Settings, shown: str, folder: str, values: Mapping[tuple[str, str], Any],
                source: str) -> Sequence[Row]:
    found = []
    for (table, key), value in values.items():
        field = kata1.LANGUAGE[table][key].target
        place = settings.places.get(field, "")
        if place.startswith(shown):
            file, _colon, line = place.replace(shown, f"{folder}/").rpartition(":")
            name = keyed(table, key)
            found.append(Row(source=source, key=name, old=value, kind=CHANGED, new_key=name, new=settings.values[field],
                             file=file, line=int(line), why="this drop-in comes later than the file, and counts",
                             instead="remove it there", fields=("*",)))
    return found
