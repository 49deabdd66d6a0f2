"""``factory``: templates of machines and a pool of warm ones, for quick starts."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from kata.cli.context import Context
from kata.errors import HostError, UsageError
from kata.table import Argument, Namespace, Verb

if TYPE_CHECKING:
    from kata.contract import RuntimeConfig, SandboxPlan
    from kata.pool.keeper import Wanted

VERB = Verb("init: make the template now; run: keep the pool filled, in the foreground; status: what there is; "
            "destroy: end the pool and remove all templates.", arguments=[Argument("action")])


def run(context: Context, args: Namespace) -> int:
    actions = {"init": init, "run": keep, "status": status, "destroy": destroy}
    if args["action"] not in actions:
        raise UsageError(f"unknown factory action {args['action']!r}", "it is init, run, status or destroy")
    return actions[args["action"]](context)


def init(context: Context) -> int:
    """Make the template of the configured machine and wait for it."""
    from kata import template
    from kata.daemons import start_factory
    from kata.planjson import to_json
    from kata.spawn import reap

    _config, plan = _plan(context)
    found = template.open_template(plan)
    if found is not None:
        found.close()
    elif plan.template_path and reap(start_factory(to_json(plan), plan.template_path, wait=True)) != 0:
        raise HostError("the template could not be made", f"see {plan.template_path}/factory.log")
    print("vm factory initialized")
    return 0


def keep(context: Context) -> int:
    """The service: make machines and replace those that are claimed, until told to end."""
    from kata.log import Log
    from kata.pool.keeper import Keeper

    config, _plan_now = _plan(context)
    if not config.pool_size:
        raise HostError("there is no pool to keep", "set vm_cache_number in [factory] to the number of machines")

    def end(_number: int, _frame: object) -> None:
        raise SystemExit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    log = context.log if context.log.path else Log("/dev/stderr", name=context.program)
    Keeper(config.pool_path, lambda: _wanted(context), log).run()
    return 0


def status(context: Context) -> int:
    from kata import pool, template
    from kata.pool import keeper

    config, plan = _plan(context)
    found = template.open_template(plan)
    if found is not None:
        found.close()
    machines = [m for m in pool.machines(config.pool_path)
                if pool.key_of(m) == pool.key(plan) and keeper.lives(m)] if config.pool_size else []
    print("vm factory is on" if found is not None or machines else "vm factory is off")
    if config.pool_size:
        pid = keeper.keeper_of(config.pool_path)
        print(f"vm cache: {len(machines)} of {config.pool_size} machines ready, "
              + (f"kept by pid {pid}" if pid else "nobody keeps it (kata factory run)"))
    return 0


def destroy(context: Context) -> int:
    from kata import template
    from kata.pool import keeper

    config, plan = _plan(context)
    ended = keeper.stop(config.pool_path)
    if ended:
        print(f"{ended} machines ended")
    print(f"{template.destroy(plan.template_path)} templates removed")
    return 0


def _plan(context: Context) -> tuple[RuntimeConfig, SandboxPlan]:
    """Configuration and plan of a container that asks for nothing: its machine is what the factory makes.

    :raise HostError: neither templates nor a pool are enabled.
    """
    from kata.oci import Bundle

    backend, options = context.backend(), context.invocation()
    config = backend.load_config(options, {})
    spec = {"ociVersion": "1.0.0", "process": {"args": ["true"], "cwd": "/"}, "root": {"path": "/"}, "linux": {}}
    plan = backend.plan_sandbox(config, Bundle("template", os.getcwd(), spec, "/", ()), options)
    if plan.boot == "cold":
        raise HostError("vm factory not enabled", "set enable_template = true in [factory], with an initrd")
    return config, plan


def _wanted(context: Context) -> Wanted:
    from kata.pool.keeper import Wanted, warm_up_bundle

    config, plan = _plan(context)
    bundle = warm_up_bundle()
    return Wanted(plan, context.backend().plan_container(config, bundle, bundle.id, "single"), config.pool_size)
