"""Settings and rules in, rows and values of the target out.  Pure."""

from __future__ import annotations

from kata.config import nearest, shown
from kata.errors import ConfigError
from kata.migrate import CHANGED, DROPPED, RENAMED, SAME, UNKNOWN, Row, Rule, Setting, keyed
from kata.record import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any

    from kata.config.keys import Key, Language

    Rules = Mapping[tuple[str, str], Rule]
    Values = dict[tuple[str, str], Any]


class Sorted:
    """What classification found.  ``values`` is what the target's file, in ``language``, has to say."""

    def __init__(self, language: Language) -> None:
        self.language = language
        self.rows: list[Row] = []
        self.values: Values = {}

    def add(self, setting: Setting, rule: Rule, source: str) -> None:
        """One key, by its rule."""
        rule, new = _resolved(rule, setting)
        table, key = rule.table or setting.table, rule.key or setting.key
        row = Row(source=source, key=keyed(setting.table, setting.key), old=setting.value, kind=rule.kind,
                  file=setting.file, line=setting.line, why=rule.why, instead=rule.instead, fields=rule.fields)
        if rule.kind not in (DROPPED, UNKNOWN) and new is not None:
            if target := self.language.get(table, {}).get(key):
                converted(target, replace(setting, value=new))
            row = replace(row, new_key=keyed(table, key), new=new)
            self.values[table, key] = new
        self.rows.append(row)


def _resolved(rule: Rule, setting: Setting) -> tuple[Rule, Any]:
    """The rule that the value leads to, and the new value.

    :raise ConfigError: the value is of a type that the key never had.
    """
    if rule.convert is None:
        return rule, setting.value
    try:
        new = rule.convert(setting.value)
        if not isinstance(new, Rule):
            return rule, new
        inner, new = new, setting.value if new.convert is None else new.convert(setting.value)
    except (TypeError, ValueError) as e:
        raise ConfigError(f"{_place(setting)}{setting.key} cannot be {shown(setting.value)}") from e
    return replace(inner, table=inner.table or rule.table, key=inner.key or rule.key,
                   kind=rule.kind if inner.kind == SAME else inner.kind), new


def _place(setting: Setting) -> str:
    return f"{setting.file}:{setting.line}: " if setting.line else f"{setting.file}: " if setting.file else ""


def of_key(key: Key, setting: Setting, rule: Rule | None = None) -> Rule:
    """What becomes of a key that a language of ours has: it may be taken, have no effect, or be refused.

    :raise ConfigError: the value is not one that it can have.
    """
    value = converted(key, setting)
    if key.refused and value not in key.neutral:
        return Rule(DROPPED, why=f"it cannot hold: {key.refused}")
    if key.note and not key.target:
        return Rule(DROPPED, why=f"it has no effect here: {key.note}")
    return replace(rule or Rule(SAME), why=key.note) if key.note else rule or Rule(SAME)


def converted(key: Key, setting: Setting) -> Any:
    """The value as the runtime has it.

    :raise ConfigError: it is not one.
    """
    try:
        return key.convert(setting.value)
    except ValueError as e:
        raise ConfigError(f"{_place(setting)}{setting.key}: {e} is expected, found {shown(setting.value)}") from e


def classify(settings: Iterable[Setting], source: str, rules: Rules, language: Language,
             moved: Mapping[str, str], accepted: Sequence[str] = ()) -> Sorted:
    """Every setting by its rule, or else by the key of the target's language that has its name.

    :param moved: table of the source -> table of the target, where they differ; "" = dropped as a whole.
    :param accepted: unknown keys that somebody has named: they are dropped.
    :raise ConfigError: a value is not one that its key can have.
    """
    found = Sorted(language)
    for setting in settings:
        rule = rules.get((setting.table, setting.key)) or rules.get((setting.table, "*"))
        table = moved.get(setting.table, setting.table)
        key = language.get(table, {}).get(setting.key)
        if rule is None and key is not None:
            rule = of_key(key, setting, Rule(RENAMED, table=table) if table != setting.table else None)
        elif rule is not None and key is not None and rule.convert is None and rule.kind in (SAME, RENAMED) \
                and not rule.table and not rule.key:
            rule = of_key(key, setting, rule)
        if rule is None:
            rule = unknown(setting, language.get(table, {}), accepted)
        found.add(setting, rule, source)
    return found


def unknown(setting: Setting, known: Iterable[str], accepted: Sequence[str]) -> Rule:
    """A key that is in no table."""
    if setting.key in accepted or keyed(setting.table, setting.key) in accepted or \
            f"{setting.table}.{setting.key}" in accepted:
        return Rule(DROPPED, why="nothing is known of this key; it is left out because --accept names it")
    hint = nearest(setting.key, known) if known else f"the table [{setting.table}] is not known"
    name = f"{setting.table}.{setting.key}" if setting.table else setting.key
    return Rule(UNKNOWN, why=f"nothing is known of this key ({hint})",
                instead=f"correct it, or leave it out with --accept {name}")


def choose(table: Mapping[Any, Rule], otherwise: Rule) -> Callable[[Any], Rule]:
    """A rule by the value."""
    return lambda value: table.get(value, otherwise) if isinstance(value, str | bool) else otherwise


__all__ = ["CHANGED", "Sorted", "choose", "classify", "converted", "of_key", "unknown"]
