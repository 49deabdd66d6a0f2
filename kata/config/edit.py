"""TOML files changed in place: comments, blanks and order stay.  The only module that imports tomlkit."""

from __future__ import annotations

from kata.errors import ConfigError

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any


def edited(text: str, changes: Mapping[Any, Any], path: str = "") -> str:
    """``text`` with keys set, or removed where the value is None; (table, key) -> value.

    A table is its dotted name, or a tuple of names where these hold dots.

    A table that loses its last key stays, with its comments; the key "" is the table itself.

    :param path: for errors.
    :raise ConfigError: it is not TOML, or a table's name is a value.
    """
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        document = tomlkit.parse(text)
        for (table, key), value in changes.items():
            names = table if isinstance(table, tuple) else table.split(".") if table else ()
            _set(document, names, key, value)
        return tomlkit.dumps(document)
    except (TOMLKitError, TypeError) as e:
        raise ConfigError(f"cannot change {path or 'the file'}: {e}") from e


def _set(document: Any, tables: Sequence[str], key: str, value: Any) -> None:
    import tomlkit

    table = document
    for number, name in enumerate(tables):
        if name not in table:
            if value is None:
                return
            # [a.b] alone, without an empty [a] before it.
            table[name] = tomlkit.table(is_super_table=number < len(tables) - 1 or isinstance(value, dict))
        if number == len(tables) - 1 and not key:
            del table[name]
            return
        table = table[name]
        if not isinstance(table, dict):
            raise TypeError(f"{'.'.join(tables)} is no table")
    if value is None:
        table.pop(key, None)
    elif table.get(key) != value or type(table.get(key)) is bool is not type(value):
        table[key] = list(value) if isinstance(value, tuple) else value
