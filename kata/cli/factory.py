"""``factory``: templates of machines, for quick starts."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from kata.cli.context import Context
from kata.cli.table import Argument, Namespace, Verb
from kata.errors import HostError, UsageError

if TYPE_CHECKING:
    from kata.contract import SandboxPlan

VERB = Verb("init: make the template now; status: is there one; destroy: remove all.", arguments=[Argument("action")])


def run(context: Context, args: Namespace) -> int:
    actions = {"init": init, "status": status, "destroy": destroy}
    if args["action"] not in actions:
        raise UsageError(f"unknown factory action {args['action']!r}", "it is init, status or destroy")
    return actions[args["action"]](context)


def init(context: Context) -> int:
    """Make the template of the configured machine and wait for it."""
    from kata import template
    from kata.daemons import start_factory
    from kata.planjson import to_json
    from kata.spawn import reap

    plan = _plan(context)
    if template.open_template(plan) is None:
        code = reap(start_factory(to_json(plan), plan.template_path, wait=True))
        if code != 0:
            raise HostError("the template could not be made", f"see {plan.template_path}/factory.log")
    print("vm factory initialized")
    return 0


def status(context: Context) -> int:
    from kata import template

    found = template.open_template(_plan(context))
    if found is not None:
        found.close()
    print("vm factory is on" if found is not None else "vm factory is off")
    return 0


def destroy(context: Context) -> int:
    from kata import template

    print(f"{template.destroy(_plan(context).template_path)} templates removed")
    return 0


def _plan(context: Context) -> SandboxPlan:
    """The sandbox plan of a container that asks for nothing: its machine is what templates are made of.

    :raise HostError: templates are not enabled.
    """
    from kata.oci import Bundle

    backend, options = context.backend(), context.invocation()
    config = backend.load_config(options, {})
    spec = {"ociVersion": "1.0.0", "process": {"args": ["true"], "cwd": "/"}, "root": {"path": "/"}, "linux": {}}
    plan = backend.plan_sandbox(config, Bundle("template", os.getcwd(), spec, "/", ()), options)
    if plan.boot == "cold":
        raise HostError("vm factory not enabled", "set enable_template = true in [factory], with an initrd")
    return plan
