"""``state``: print a container's state (runtime-spec, "State")."""

from __future__ import annotations

from kata.cli.context import Context
from kata.jsontext import dumps
from kata.table import Argument, Namespace, Verb

VERB = Verb("Print the state of a container as JSON.", arguments=[Argument("id")])


def run(context: Context, args: Namespace) -> int:
    shown = context.personality.state(context.container(args["id"]).view())
    lines = [f"  {dumps(key)}: {_indented(value)}" for key, value in shown.items()]
    print("{\n" + ",\n".join(lines) + "\n}")
    return 0


def _indented(value: object) -> str:
    if not isinstance(value, dict) or not value:
        return dumps(value)
    lines = [f"    {dumps(key)}: {dumps(item)}" for key, item in value.items()]
    return "{\n" + ",\n".join(lines) + "\n  }"
