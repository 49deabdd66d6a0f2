"""``resume``: let a paused container go on."""

from __future__ import annotations

from kata.cli.context import Context
from kata.table import Argument, Namespace, Verb

VERB = Verb("Let a paused container go on.", arguments=[Argument("id")])


def run(context: Context, args: Namespace) -> int:
    context.ask(context.container(args["id"]), "resume")
    return 0
