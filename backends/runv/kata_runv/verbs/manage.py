"""``manage``: make and remove the template of a machine, where ``--template`` says."""

from __future__ import annotations

import os

from kata import template
from kata.cli import factory
from kata.cli.context import Context
from kata.errors import UsageError
from kata.table import Argument, Namespace, Option, Verb

VERB = Verb(
    "create-template, remove-template: a machine that others are cloned from, in the folder of the global --template.",
    Option("--cpu", help="vCPUs of the template (--default_cpus)", metavar="N"),
    Option("--mem", help="MiB of the template (--default_memory)", metavar="MIB"),
    arguments=[Argument("action")],
)


def run(context: Context, args: Namespace) -> int:
    actions = {"create-template": factory.init, "remove-template": remove}
    if args["action"] not in actions:
        raise UsageError(f"unknown action {args['action']!r}", f"it is one of {', '.join(actions)}")
    if not context.options["template"]:
        raise UsageError("the folder of the template is missing", "name it: runv --template DIR manage ...")
    for option, own in (("default_cpus", "cpu"), ("default_memory", "mem")):
        context.options[option] = args[own] or context.options[option]
    return actions[args["action"]](context)


def remove(context: Context) -> int:
    """Remove what ``create-template`` made; clones that run are not affected."""
    print(f"{template.destroy(os.path.abspath(context.options['template']))} templates removed")
    return 0
