"""``pause``: suspend all processes of a container."""

from __future__ import annotations

from kata.cli.context import Context
from kata.table import Argument, Namespace, Verb

VERB = Verb("Suspend all processes of a container.", arguments=[Argument("id")])


def run(context: Context, args: Namespace) -> int:
    context.ask(context.container(args["id"]), "pause")
    return 0
