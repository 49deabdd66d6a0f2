"""``plan``: print the plans that a bundle leads to, without carrying them out."""

from __future__ import annotations

import json

from kata.cli.context import Context
from kata.table import Argument, Namespace, Option, Verb

VERB = Verb(
    "Print the sandbox and container plan for a bundle as JSON. Nothing is made.",
    Option("--id", default="plan", help="container id to plan for", metavar="ID"),
    arguments=[Argument("bundle", "?", ".")],
)


def run(context: Context, args: Namespace) -> int:
    from kata import oci
    from kata.planjson import to_json

    backend = context.backend()
    options = context.invocation()
    bundle = oci.load(args["bundle"], args["id"])
    config = backend.load_config(options, bundle.annotations)
    role, sandbox_id = backend.sandbox_of(bundle)
    plans = {"container": to_json(backend.plan_container(config, bundle, sandbox_id or bundle.id, role))}
    if not sandbox_id or sandbox_id == bundle.id:
        plans = {"sandbox": to_json(backend.plan_sandbox(config, bundle, options)), **plans}
    print(json.dumps(plans, indent=2))
    return 0
