"""``ps``: the processes of a container.

The table is what the guest's ps shows.  JSON is what engines ask for, to look
the pids up on the host: those of the shims, which bear the command lines of
their processes.
"""

from __future__ import annotations

import sys

from kata.cli.context import Context
from kata.table import Argument, Namespace, Option, Verb

TITLES = "UID PID PPID C STIME TTY TIME CMD"  #: of ps -ef

VERB = Verb(
    "List the processes of a container. Options after the id are ps's own, -ef by default.",
    Option("--format", "-f", choices=("table", "json"), default="table",
           help="table of the guest's processes, or json: pids on the host"),
    arguments=[Argument("id"), Argument("args", "*")],
    passthrough=True,
)


def run(context: Context, args: Namespace) -> int:
    container = context.container(args["id"])
    if context.personality.empty_ps and container.status() == "stopped":
        print("null" if args["format"] == "json" else "" if args["args"] else TITLES)
        return 0
    reply = context.ask(container, "ps", format=args["format"], args=list(args["args"]))
    sys.stdout.write(reply["text"].rstrip("\n") + "\n")
    return 0
