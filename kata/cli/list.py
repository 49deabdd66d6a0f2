"""``list``: the containers of a root, or of all roots when none is named."""

from __future__ import annotations

import sys

from kata import state
from kata.cli.context import Context
from kata.errors import StateError
from kata.jsontext import dumps
from kata.table import FLAG, Namespace, Option, Verb

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

VERB = Verb(
    "List containers. A broken one is a warning and does not hide the others.",
    Option("--format", "-f", choices=("table", "json"), default="table", help="table or json"),
    Option("--quiet", "-q", kind=FLAG, help="ids only"),
    Option("--kata-all", "--all", kind=FLAG, help="also what the containers run on"),
)

#: Columns of the table.
COLUMNS = ("id", "pid", "status", "bundle", "created", "owner")


def run(context: Context, args: Namespace) -> int:
    personality = context.personality
    views: list[dict[str, Any]] = []
    for name, found in state.list_containers(context.root):
        if isinstance(found, StateError):
            context.log.warning(f"container {name}: {found}")
            sys.stderr.write(f"{context.program}: container {name}: {found}\n")
            continue
        view = found.view()
        views.append({**view, "owner": personality.owner(view), "sandbox": view["sandbox_id"], "root": found.root})
    more = ("flavor", "sandbox", "role", "root") if args["kata_all"] else ()
    if args["quiet"]:
        for view in views:
            print(view["id"])
    elif args["format"] == "json":
        print(dumps([{**personality.entry(v), **{k: v[k] for k in more}} for v in views]) if views else "null")
    else:
        _table(views, (*COLUMNS, *(k for k in more if k != "role")))
    return 0


def _table(views: list[dict[str, Any]], columns: Sequence[str]) -> None:
    rows = [[c.upper() for c in columns], *([str(v[c]) for c in columns] for v in views)]
    widths = [max(11, *(len(row[i]) for row in rows)) for i in range(len(columns))]
    for row in rows:
        print(" ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
