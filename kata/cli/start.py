"""``start``: run the processes of created containers."""

from __future__ import annotations

import sys

from kata import state
from kata.cli.context import Context
from kata.errors import GuestError, HostError, UsageError
from kata.table import Argument, Namespace, Verb

VERB = Verb("Run the process that was made when the container was created.", arguments=[Argument("ids", "*")])


TIMEOUT = 150.0  #: seconds; hooks in the guest are part of it


def run(context: Context, args: Namespace) -> int:
    if not args["ids"]:
        raise UsageError("Missing container ID", kind="missing-id")
    for container_id in args["ids"]:
        container = context.container(container_id)
        start(context, container)
        context.log.phase("started")
        context.collect_phases(container)
    return 0


def start(context: Context, container: state.Container) -> None:
    """Start it and run its poststart hooks.

    A failing hook is a warning and the rest goes on (runtime-spec, "Lifecycle", step 10).
    """
    try:
        context.ask(container, "start", timeout=TIMEOUT)
    except GuestError:
        # An engine deletes what did not start as soon as it hears of it, if its process has ended.
        from kata.teardown import await_shim

        await_shim(container.record["pid"], container.record["pid_start"])
        raise
    hooks = container.record["hooks"]["poststart"]
    if hooks:
        from kata.hooks import run_hooks

        try:
            run_hooks("poststart", hooks, oci_state(container, "running"))
        except HostError as e:
            warn(context, str(e))


def oci_state(container: state.Container, status: str) -> dict[str, object]:
    """The state that hooks read."""
    record = container.record
    return {"ociVersion": record["ociVersion"], "id": record["id"], "status": status, "pid": record["pid"],
            "bundle": record["bundle"], "annotations": record["annotations"]}


def warn(context: Context, message: str) -> None:
    context.log.warning(message)
    sys.stderr.write(f"{context.program}: warning: {message}\n")
