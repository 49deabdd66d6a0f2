"""Options as Go's ``flag`` package reads them, which Kata 1.x's programs use.

``-name value``, ``-name=value``, and the same with two dashes; a boolean takes a
value only with ``=``.  The first word that is no option ends them, and so does
``--``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kata.errors import UsageError

_WORDS = {**dict.fromkeys(("1", "t", "T", "true", "TRUE", "True"), True),
          **dict.fromkeys(("0", "f", "F", "false", "FALSE", "False"), False)}

#: Name -> (default, what it is); the default's type is the option's.
Flags = Mapping[str, tuple["str | bool", str]]


class HelpWanted(Exception):
    """``-h`` or ``-help``."""


def parse(flags: Flags, words: Sequence[str]) -> dict[str, str | bool]:
    """The value of every option.

    :raise UsageError: an unknown option, one without a value, or words that are no options.
    :raise HelpWanted: the usage was asked for.
    """
    values = {name: default for name, (default, _text) in flags.items()}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--" or not word.startswith("-") or word == "-":
            rest = [*rest] if word == "--" else [word, *rest]
            break
        name, equals, value = word.removeprefix("-").removeprefix("-").partition("=")
        if name not in flags:
            if name in ("h", "help"):
                raise HelpWanted
            raise UsageError(f"flag provided but not defined: -{name}")
        if isinstance(flags[name][0], bool):
            if equals and value not in _WORDS:
                raise UsageError(f"invalid boolean value {value!r} for -{name}")
            values[name] = _WORDS[value] if equals else True
        elif equals:
            values[name] = value
        elif rest:
            values[name] = rest.pop(0)
        else:
            raise UsageError(f"flag needs an argument: -{name}")
    if rest:
        raise UsageError(f"unexpected argument: {rest[0]}")
    return values


def usage(program: str, flags: Flags) -> str:
    """The text for ``-help``."""
    lines = [f"Usage of {program}:"]
    for name, (default, text) in sorted(flags.items()):
        lines.append(f"  -{name}" + ("" if isinstance(default, bool) else " string"))
        lines.append(f"    \t{text}" + (f" (default {default})" if default not in ("", False) else ""))
    return "\n".join(lines)
