"""The command line by click: help, every spelling of an option, usage errors.  Only import of click."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from kata.errors import UsageError
from kata.table import FLAG, INT, MANY, OPTIONAL, Argument, Namespace, Option, Verb

if TYPE_CHECKING:
    from kata.cli.context import Context


def _parameter(option: Option) -> click.Option:
    kwargs: dict[str, Any] = {"help": option.help, "hidden": option.hidden}
    if not option.choices or option.default:
        kwargs["default"] = option.default
    if option.kind == FLAG:
        kwargs["is_flag"] = True
    elif option.kind == INT:
        kwargs["type"] = int
    elif option.kind == MANY:
        kwargs["multiple"] = True
    elif option.kind == OPTIONAL:
        kwargs.update(is_flag=False, flag_value="true")
    if option.choices:
        kwargs["type"] = click.Choice(option.choices)
    if option.metavar:
        kwargs["metavar"] = option.metavar
    return click.Option([*option.names, option.key], **kwargs)


def _argument(argument: Argument) -> click.Argument:
    if argument.count == "*":
        return click.Argument([argument.key], nargs=-1, type=click.UNPROCESSED)
    if argument.count == "1":
        return click.Argument([argument.key], required=True)
    return click.Argument([argument.key], required=False, default=argument.default)


def command(name: str, verb: Verb, callback: Callable[..., Any] | None = None) -> click.Command:
    """The click command of a verb."""
    settings: dict[str, Any] = {"help_option_names": ["--help", "-h"]}
    if verb.passthrough:
        settings["allow_interspersed_args"] = False
    return click.Command(name, params=[*map(_parameter, verb.options), *map(_argument, verb.arguments)],
                         help=verb.help, callback=callback, context_settings=settings)


class Program(click.Command):
    """The program itself: global options, then a verb and its words, taken as they are."""

    def __init__(self, program: str, verbs: Mapping[str, tuple[str, str]], options: Sequence[Option],
                 help: str) -> None:
        words = click.Argument(["words"], nargs=-1, type=click.UNPROCESSED, metavar="COMMAND [ARGS]...")
        super().__init__(program, params=[*map(_parameter, options), words], help=help,
                         context_settings={"help_option_names": ["--help", "-h"], "allow_interspersed_args": False})
        self._verbs = verbs

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_module, text) in self._verbs.items() if text])


def parse_global(program: Program, argv: Sequence[str]) -> tuple[Namespace, list[str]]:
    """Global options, and the words from the verb on.

    :raise UsageError: an option is not known or lacks its value.
    :raise SystemExit: help was asked for and printed.
    """
    try:
        with program.make_context(program.name or "kata", list(argv)) as context:
            values = _values(context)
            words = list(values.pop("words"))
            if not words and not values.get("version"):
                click.echo(context.get_help())
            return values, words
    except click.ClickException as e:
        raise UsageError(e.format_message()) from e
    except click.exceptions.Exit as e:
        raise SystemExit(e.exit_code) from e


def _values(context: click.Context) -> Namespace:
    return {key: "" if value is None else value for key, value in context.params.items()}


def parse_verb(program: str, name: str, verb: Verb, argv: Sequence[str]) -> Namespace:
    """A verb's words.

    :raise UsageError: as above.
    :raise SystemExit: help was printed.
    """
    try:
        with command(name, verb).make_context(f"{program} {name}", list(argv)) as context:
            return _values(context)
    except click.MissingParameter as e:
        if e.param is not None and e.param.name == "id":
            raise UsageError("Missing container ID", kind="missing-id") from e
        raise UsageError(e.format_message(), kind="command-line") from e
    except click.ClickException as e:
        raise UsageError(e.format_message(), kind="command-line") from e
    except click.exceptions.Exit as e:
        raise SystemExit(e.exit_code) from e


def run_click(program: str, name: str, group: click.Command, argv: Sequence[str], context: Context) -> int:
    """Run a command that is click through and through (image, kernel, ...); ``context`` is its ``obj``.

    :raise UsageError: as above.
    """
    try:
        result = group.main(list(argv), prog_name=f"{program} {name}", standalone_mode=False, obj=context)
    except click.ClickException as e:
        raise UsageError(e.format_message()) from e
    except click.exceptions.Exit as e:
        return e.exit_code
    except click.Abort:
        return 130
    return result if isinstance(result, int) else 0
