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
    from typing import Any

VERB = Verb(
    "List containers. A broken one is a warning and does not hide the others.",
    Option("--format", "-f", choices=("table", "json"), default="table", help="table or json"),
    Option("--quiet", "-q", kind=FLAG, help="ids only"),
    Option("--kata-all", "--all", kind=FLAG, help="also what the containers run on"),
)

KEYS = ("ociVersion", "id", "pid", "status", "bundle", "rootfs", "created", "annotations", "owner")


def run(context: Context, args: Namespace) -> int:
    entries: list[dict[str, Any]] = []
    for name, found in state.list_containers(context.root):
        if isinstance(found, StateError):
            context.log.warning(f"container {name}: {found}")
            sys.stderr.write(f"{context.program}: container {name}: {found}\n")
            continue
        record = found.view()
        entry = {key: record[key] for key in KEYS}
        if args["kata_all"]:
            entry |= {"flavor": record["flavor"], "sandbox": record["sandbox_id"], "role": record["role"],
                      "root": found.root}
        entries.append(entry)
    if args["quiet"]:
        for entry in entries:
            print(entry["id"])
    elif args["format"] == "json":
        print(dumps(entries) if entries else "null")
    else:
        _table(entries, ["flavor", "sandbox", "root"] if args["kata_all"] else [])
    return 0


def _table(entries: list[dict[str, Any]], more: list[str]) -> None:
    columns = ["id", "pid", "status", "bundle", "created", "owner", *more]
    rows = [[c.upper() for c in columns], *([str(e[c]) for c in columns] for e in entries)]
    widths = [max(11, *(len(row[i]) for row in rows)) for i in range(len(columns))]
    for row in rows:
        print(" ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
