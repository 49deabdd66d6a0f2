"""Verbs and their options as data.

One table serves twice: :mod:`kata.cli.full` builds click commands from it
(help, completion, every spelling, error texts), and :func:`parse` reads the
plain shapes that engines use without importing click, which costs more than
most verbs do.  ``parse`` never guesses: what it does not know for certain is
left to click.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    Namespace = dict[str, Any]
else:
    Namespace = dict

FLAG = "flag"
VALUE = "value"
INT = "int"
MANY = "many"  #: may be given again; a tuple
OPTIONAL = "optional"  #: a flag that may carry a value: --x or --x=value



class Option:
    """``names`` as typed, the first long one without dashes is the key."""

    __slots__ = ("choices", "default", "help", "hidden", "key", "kind", "metavar", "names")

    def __init__(self, *names: str, kind: str = VALUE, default: Any = None, help: str = "", hidden: bool = False,
                 choices: Sequence[str] = (), metavar: str = "") -> None:
        self.names = names
        self.kind = kind
        self.default = {FLAG: False, MANY: (), VALUE: "", INT: 0, OPTIONAL: ""}[kind] if default is None else default
        self.help = help
        self.hidden = hidden
        self.choices = tuple(choices)
        self.metavar = metavar
        self.key = next((n for n in names if n.startswith("--")), names[0]).lstrip("-").replace("-", "_")


class Argument:
    """A positional argument; ``count``: 1, ``?`` (may be absent), ``*`` (all that is left)."""

    __slots__ = ("count", "default", "key")

    def __init__(self, key: str, count: str = "1", default: str = "") -> None:
        self.key = key
        self.count = count
        self.default = default


class Verb:
    """A verb: what it takes.

    ``passthrough``: everything after the first argument is taken as it is,
    also what looks like an option (exec, ps).
    """

    __slots__ = ("arguments", "help", "options", "passthrough")

    def __init__(self, help: str, *options: Option, arguments: Sequence[Argument] = (),
                 passthrough: bool = False) -> None:
        self.help = help
        self.options = options
        self.arguments = tuple(arguments)
        self.passthrough = passthrough


def parse(options: Sequence[Option], arguments: Sequence[Argument], passthrough: bool,
          argv: Sequence[str], stop_at_first: bool = False) -> tuple[Namespace, int] | None:
    """``(values, words used)``, or None when click has to decide.

    :param stop_at_first: end at the first word that is no option (global options).
    """
    by_name = {name: option for option in options for name in option.names}
    values: Namespace = {option.key: option.default for option in options}
    positional: list[str] = []
    i = 0
    while i < len(argv):
        word = argv[i]
        if word in ("-", "") or not word.startswith("-"):
            if stop_at_first:
                break
            if passthrough and len(positional) == 0:
                positional = list(argv[i:])
                if len(positional) > 1 and positional[1] == "--":
                    return None
                i = len(argv)
                break
            positional.append(word)
            i += 1
            continue
        name, equals, attached = word.partition("=")
        option = by_name.get(name)
        if option is None or (equals and not name.startswith("--")):
            return None
        if option.kind in (FLAG, OPTIONAL):
            if option.kind == FLAG and equals:
                return None
            values[option.key] = attached if equals else (True if option.kind == FLAG else "true")
            i += 1
            continue
        if not equals:
            i += 1
            if i == len(argv):
                return None
            attached = argv[i]
        if option.choices and attached not in option.choices:
            return None
        if option.kind == MANY:
            values[option.key] = (*values[option.key], attached)
        elif option.kind == INT:
            if not attached.removeprefix("-").isdecimal():
                return None
            values[option.key] = int(attached)
        else:
            values[option.key] = attached
        i += 1
    if stop_at_first:
        return values, i
    if not _assign(values, arguments, positional):
        return None
    return values, i


def _assign(values: Namespace, arguments: Sequence[Argument], words: list[str]) -> bool:
    for argument in arguments:
        if argument.count == "*":
            values[argument.key] = tuple(words)
            words = []
        elif words:
            values[argument.key] = words.pop(0)
        elif argument.count == "?":
            values[argument.key] = argument.default
        else:
            return False
    return not words
