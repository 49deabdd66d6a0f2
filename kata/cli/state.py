"""``state``: print a container's state (runtime-spec, "State")."""

from __future__ import annotations

import json

from kata.cli.context import Context
from kata.cli.table import Argument, Namespace, Verb

VERB = Verb("Print the state of a container as JSON.", arguments=[Argument("id")])

KEYS = ("ociVersion", "id", "status", "pid", "bundle", "rootfs", "created", "annotations", "owner")


def run(context: Context, args: Namespace) -> int:
    record = context.container(args["id"]).view()
    print(json.dumps({key: record[key] for key in KEYS}, indent=2))
    return 0
