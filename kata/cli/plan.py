"""``plan``: print the plans that a bundle leads to, without carrying them out."""

from __future__ import annotations

import json
import sys

from kata.cli.context import Context
from kata.table import FLAG, Argument, Namespace, Option, Verb

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

    from kata.contract import Backend, InvocationOptions

ALL = "all"
WIDTH = 44  #: characters of a cell that says the same for every flavor

VERB = Verb(
    "Print the sandbox and container plan for a bundle as JSON. Nothing is made. With --flavor all: the plans of "
    "every flavor side by side; a star marks what differs, and of lists that differ only what not all have is shown.",
    Option("--id", default="plan", help="container id to plan for", metavar="ID"),
    Option("--flavor", help="flavor to plan with, or all", metavar="NAME"),
    Option("--json", kind=FLAG, help="with --flavor all: the plans as JSON, by flavor"),
    arguments=[Argument("bundle", "?", ".")],
)


def run(context: Context, args: Namespace) -> int:
    from kata import loader

    options = context.invocation()
    if args["flavor"] != ALL:
        backend = loader.load(args["flavor"], "--flavor") if args["flavor"] else context.backend()
        print(json.dumps(plans(backend, options, args), indent=2))
        return 0
    found, failed = _of_all(loader.available(), options, args)
    if args["json"]:
        print(json.dumps(found, indent=2))
    elif found:
        print("\n".join(table(found)))
    for text in failed:
        print(text, file=sys.stderr)
    return 1 if failed else 0


def plans(backend: Backend, options: InvocationOptions, args: Namespace) -> dict[str, Any]:
    """The plans of one flavor: ``sandbox``, if the container does not join one, and ``container``."""
    from kata import oci
    from kata.planjson import to_json

    bundle = oci.load(args["bundle"], args["id"])
    config = backend.load_config(options, bundle.annotations)
    role, sandbox_id = backend.sandbox_of(bundle)
    found = {"container": to_json(backend.plan_container(config, bundle, sandbox_id or bundle.id, role))}
    if not sandbox_id or sandbox_id == bundle.id:
        found = {"sandbox": to_json(backend.plan_sandbox(config, bundle, options)), **found}
    return found


def _of_all(names: Sequence[str], options: InvocationOptions, args: Namespace) -> tuple[dict[str, Any], list[str]]:
    """The plans by flavor, and what is wrong with flavors that have none: the others do not suffer."""
    from kata import loader
    from kata.errors import KataError, UsageError

    if options.config_path:
        raise UsageError("a configuration file is in the language of one flavor",
                         "leave the option out, or name the flavor")
    found, failed = {}, []
    for name in names:
        try:
            found[name] = plans(loader.load(name), options, args)
        except KataError as e:
            failed.append(f"{name}: {e}")
    return found, failed


def table(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines: a field of the plans each, a column for each flavor."""
    columns = {name: dict(_flat("", plan)) for name, plan in found.items()}
    fields = list(dict.fromkeys(field for column in columns.values() for field in column))
    rows = [["", "", *columns]]
    for field in fields:
        values = [column.get(field) for column in columns.values()]
        differs = any(value != values[0] for value in values[1:])
        cells = [_cell(value, values) for value in values] if differs else [_cut(_cell(v, ())) for v in values[:1]]
        rows.append(["*" if differs else "", field, *cells])
    widths = [max(len(row[i]) for row in rows if len(row) == len(rows[0]) or i < 2) for i in range(len(rows[0]))]
    return [" ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows]


def _flat(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of everything that is no dict."""
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _flat(f"{place}.{name}" if place else name, item)
    else:
        yield place, value


def _cell(value: Any, others: Sequence[Any]) -> str:
    """A value as a cell; of a list only what not all ``others`` have."""
    if value is None:
        return "-"
    if isinstance(value, list):
        own = [v for v in value if not others or any(v not in (other or ()) for other in others)]
        return " ".join(["..."] * (len(own) < len(value)) + [_cell(v, ()) for v in own]) or "-"
    return value or '""' if isinstance(value, str) else json.dumps(value)


def _cut(text: str) -> str:
    return text if len(text) <= WIDTH else text[: WIDTH - 3] + "..."
