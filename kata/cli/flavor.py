"""``flavor``: the flavors of this host, and the default among them."""

from __future__ import annotations

import os
import sys

from kata.cli.context import Context
from kata.errors import KataError, StateError, UsageError
from kata.table import FLAG, Argument, Namespace, Option, Verb

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from typing import Any

VERB = Verb(
    "Show the flavors and what the containers here were made with; 'set NAME' changes the host's default.",
    Option("--json", kind=FLAG, help="as JSON"),
    arguments=[Argument("action", "?"), Argument("name", "?")],
)


def run(context: Context, args: Namespace) -> int:
    if args["action"] == "set":
        return change(context, args["name"])
    if args["action"] not in ("", "list") or args["name"]:
        raise UsageError(f"unknown action {args['action']!r}", "it is list, or set NAME")
    show(context, args["json"])
    return 0


def change(context: Context, name: str) -> int:
    """Make a flavor the host's default.  Containers that run are not affected.

    :raise ConfigError: there is no such flavor, or it is retired here.
    """
    from kata import flavors, loader
    from kata.config import hostfile

    if not name:
        raise UsageError("the name of a flavor is missing", f"it is one of {', '.join(loader.available())}")
    loader.load(name, "flavor set")
    path = flavors.host_file(os.environ)
    flavors.refuse_retired(name, flavors.host(path))
    hostfile.write(path, {("runtime", "default_flavor"): name})
    print(f"{name} is the default flavor of this host ({path})")
    return 0


def show(context: Context, as_json: bool) -> None:
    from kata import flavors, loader

    settings = flavors.host(flavors.host_file(os.environ))
    default = flavors.choose("", {**os.environ, flavors.VARIABLE: ""}, "kata")
    made = containers(context)
    found: list[dict[str, Any]] = []
    for name in sorted({*loader.available(), *made}):
        found.append({"flavor": name, "default": name == default.name, "status": status(name, settings),
                      "containers": made.get(name, [])})
    if as_json:
        import json

        print(json.dumps({"default": default.name, "from": default.origin, "flavors": found}, indent=2))
        return
    print(f"default: {default.name} ({default.origin})")
    rows = [["FLAVOR", "STATUS", "CONTAINERS"]]
    rows += [[str(f["flavor"]), str(f["status"]), ", ".join(f["containers"]) or "-"] for f in found]
    for row in rows:
        print(f"{row[0]:<11} {row[1]:<24} {row[2]}")


def status(name: str, settings: Any) -> str:
    """What becomes of new containers of a flavor here: active, deprecated, retired, or why it does not work."""
    from kata import flavors, loader

    if name not in loader.available():
        return "not installed"
    if name in flavors.RETIRING and settings.phase >= flavors.MERGED:
        return "retired" if settings.phase >= flavors.RETIRED else "deprecated"
    try:
        loader.load(name)
    except KataError as e:
        return f"broken: {e.text}"
    return "active"


def containers(context: Context) -> dict[str, list[str]]:
    """Ids of the containers here by the flavor that made them."""
    from kata import state

    made: dict[str, list[str]] = {}
    for name, found in state.list_containers(context.root):
        if isinstance(found, StateError):
            sys.stderr.write(f"{context.program}: container {name}: {found}\n")
            continue
        made.setdefault(found.record["flavor"], []).append(name)
    return made
