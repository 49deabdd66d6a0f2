"""``ps`` as runV had it: the shims, which stand for the processes, by their pids on the host."""

from __future__ import annotations

import json
import sys

from kata.cli.context import Context
from kata.table import Argument, Namespace, Option, Verb

VERB = Verb(
    "List the processes of a container by the pids of their shims.",
    Option("--format", "-f", choices=("table", "json"), default="table", help="table, or json: pids only"),
    arguments=[Argument("id")],
)


def run(context: Context, args: Namespace) -> int:
    container = context.container(args["id"])
    pids = json.loads(context.ask(container, "ps", format="json", args=[])["text"])
    if args["format"] == "json":
        print(json.dumps(pids))
        return 0
    print(f"{'PID':<11} CMD")
    for pid in pids:
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as f:
                command = f.read().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue  # it has ended
        sys.stdout.write(f"{pid:<11} {command}\n")
    return 0
