"""``delete``: remove containers and all that was made for them."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from kata import state
from kata.cli.context import Context
from kata.errors import Damaged, HostError, KataError, NotFound, UsageError, WrongState
from kata.table import FLAG, Argument, Namespace, Option, Verb

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

VERB = Verb(
    "Remove stopped containers, and with --force running ones too.",
    Option("--force", "-f", kind=FLAG, help="kill what still runs; an unknown id is no error"),
    arguments=[Argument("ids", "*")],
)

STOP_TIMEOUT = 30.0  #: seconds a proxy has for a delete


def run(context: Context, args: Namespace) -> int:
    if not args["ids"]:
        raise UsageError("Missing container ID", kind="missing-id")
    for container_id in args["ids"]:
        try:
            container = context.container(container_id)
        except NotFound:
            if not args["force"] or not context.personality.forgiving_delete:
                raise
            continue
        except Damaged:
            if not args["force"]:
                raise
            _remove_damaged(context, container_id)
            continue
        delete(context, container, args["force"])
    return 0


def delete(context: Context, container: state.Container, force: bool) -> None:
    """Remove a container.

    End state: its processes, mounts, cgroup and files are gone, and its
    sandbox with the last of them.  With ``force`` nothing that is missing or
    dead already is an error.
    """
    record = container.record
    if not force and container.status() in ("creating", "running", "paused"):
        raise WrongState("Container still running, should be stopped",
                         f"kill container {container.id} first, or delete it with --force",
                         values={"id": container.id, "status": container.status(), "verb": "delete"})
    # Of two that leave at the same moment one is told that it was the last, and the other waits for the machine's end.
    last = _leave_sandbox(container, force) or _is_last(container, force)
    context.log.phase("out of the sandbox" + (", which has ended" if last else ""))
    from kata.teardown import await_shim, destroy_sandbox, end_process

    if last:
        destroy_sandbox(container.sandbox_dir)
        context.log.phase("nothing left of the sandbox")
    # The shim has its exit code by now; one that hangs must not stay.
    await_shim(record["pid"], record["pid_start"])
    end_process(record["pid"], record["pid_start"])
    context.log.phase("shim has ended")
    _poststop(context, container)
    if record["cgroup"]:
        from kata import cgroups

        # The machine stays in its first container's cgroup until another one takes it over.
        other = "" if last else _another_cgroup(container)
        cgroups.at(record["cgroup"]).remove(kill=last and force, move_to=cgroups.at(other) if other else None)
        context.log.phase("cgroup removed")
    state.remove_container(container)


def _leave_sandbox(container: state.Container, force: bool) -> bool:
    """Take the container out of its sandbox; True when the sandbox has to go."""
    from kata.wire import Client

    try:
        with Client(container.proxy_socket) as client:
            return bool(client.request("delete", timeout=STOP_TIMEOUT, id=container.id, force=force)["last"])
    except NotFound:
        return _is_last(container, force)
    except WrongState:
        raise
    except KataError:
        pass
    # No proxy answers.  If the machine lives with other containers in it, a new one has to do this.
    if _is_last(container, force):
        return True
    from kata.revive import MachineGone, revive

    try:
        revive(container.sandbox_dir)
    except MachineGone:
        return True
    except KataError:
        if not force:
            raise
        return True
    try:
        with Client(container.proxy_socket) as client:
            return bool(client.request("delete", timeout=STOP_TIMEOUT, id=container.id, force=force)["last"])
    except NotFound:
        return _is_last(container, force)
    except WrongState:
        raise
    except KataError:
        if not force:
            raise
        return True  # a machine that nobody can drive


def _is_last(container: state.Container, force: bool) -> bool:
    """Whether no other container is recorded in the sandbox; with ``force`` also when that cannot be read."""
    try:
        recorded = state.read_json(f"{container.sandbox_dir}/sandbox.json")["containers"]
    except FileNotFoundError:
        return True
    except Damaged:
        if not force:
            raise
        return True
    return not set(recorded) - {container.id}


def _another_cgroup(container: state.Container) -> str:
    """Cgroup of a container that stays in the sandbox; "" if there is none."""
    with suppress(FileNotFoundError, KataError):
        for other, entry in state.read_json(f"{container.sandbox_dir}/sandbox.json")["containers"].items():
            if other != container.id and entry.get("cgroup"):
                return str(entry["cgroup"])
    return ""


def _poststop(context: Context, container: state.Container) -> None:
    hooks = container.record["hooks"]["poststop"]
    if not hooks:
        return
    from kata.cli.start import oci_state, warn
    from kata.hooks import run_hooks

    for hook in hooks:
        try:
            run_hooks("poststop", [hook], oci_state(container, "stopped") | {"pid": 0})
        except HostError as e:
            warn(context, str(e))


def _remove_damaged(context: Context, container_id: str) -> None:
    """Remove a container whose record cannot be read, as far as its sandbox knows of it."""
    for root in [context.root] if context.root else state.known_roots():
        if os.path.isdir(state.container_dir(root, container_id)):
            key, entry = _sandbox_with(root, container_id)
            delete(context, state.Unrecorded(root, container_id, key, entry), True)
            sys.stderr.write(f"{context.program}: removed the damaged record of container {container_id}\n")


def _sandbox_with(root: str, container_id: str) -> tuple[str, Mapping[str, Any]]:
    """Key of the sandbox that a container is recorded in, and what it says of it; that of its own, if in none."""
    top = f"{state.RUN_DIR}/sandboxes"
    for key in os.listdir(top) if os.path.isdir(top) else ():
        with suppress(FileNotFoundError, NotADirectoryError, KataError):
            entry = state.read_json(f"{top}/{key}/sandbox.json")["containers"].get(container_id)
            if entry is not None and entry["root"] == root:
                return key, entry
    return state.sandbox_key(root, container_id), {}
