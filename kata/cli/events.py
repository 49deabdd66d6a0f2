"""``events``: statistics at an interval, and out-of-memory events as they happen."""

from __future__ import annotations

import json
import re

from kata.cli.context import Context
from kata.errors import NotFound, UsageError, WrongState
from kata.table import FLAG, Argument, Namespace, Option, Verb

VERB = Verb(
    "Print events of a container as JSON, one a line, until it ends.",
    Option("--interval", default="5s", help="time between statistics, as 500ms, 5s or 1m", metavar="TIME"),
    Option("--stats", kind=FLAG, help="print the statistics once"),
    arguments=[Argument("id")],
)

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(text: str) -> float:
    """A Go duration in seconds.

    :raise UsageError: it is none, or not above zero.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h)", text)
    total = sum(float(n) * _UNITS[u] for n, u in parts)
    if "".join(n + u for n, u in parts) != text or total <= 0:
        raise UsageError(f"--interval {text} is not a time above zero", "write it as 500ms, 5s or 1m")
    return total


def run(context: Context, args: Namespace) -> int:
    interval = seconds(args["interval"])
    container = context.container(args["id"])
    if container.status() not in ("created", "running", "paused"):
        raise WrongState("container not running", f"container {container.id} is {container.status()}")
    if args["stats"]:
        _print("stats", container.id, context.ask(container, "stats"))
        return 0
    ooms = context.ask(container, "wait_event", ooms=-1, interval=0)["ooms"]  # of before: nobody's news
    try:
        while True:
            reply = context.ask(container, "wait_event", timeout=interval + 60, ooms=ooms, interval=interval)
            before, ooms = ooms, reply["ooms"]
            if ooms and ooms != before:  # fewer: a proxy that was restarted counts anew
                _print("oom", container.id, None)
            elif reply["ended"]:
                return 0
            else:
                _print("stats", container.id, context.ask(container, "stats"))
    except (NotFound, WrongState):  # it has ended, and may be gone
        return 0


def _print(kind: str, container_id: str, data: dict[str, object] | None) -> None:
    event = {"type": kind, "id": container_id}
    print(json.dumps(event if data is None else event | {"data": data}), flush=True)
