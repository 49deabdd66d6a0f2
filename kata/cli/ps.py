"""``ps``: the processes of a container, as the guest sees them."""

from __future__ import annotations

import sys

from kata.cli.context import Context
from kata.cli.table import Argument, Namespace, Option, Verb

VERB = Verb(
    "List the processes of a container. Options after the id are ps's own, -ef by default.",
    Option("--format", "-f", choices=("table", "json"), default="table", help="table or json (pids only)"),
    arguments=[Argument("id"), Argument("args", "*")],
    passthrough=True,
)


def run(context: Context, args: Namespace) -> int:
    container = context.container(args["id"])
    reply = context.ask(container, "ps", format=args["format"], args=list(args["args"]))
    sys.stdout.write(reply["text"].rstrip("\n") + "\n")
    return 0
