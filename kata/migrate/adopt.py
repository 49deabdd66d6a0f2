"""Containers that run become another flavor's, without a restart.

All containers of a sandbox go together, since one machine has one policy.  Nothing in the machine changes: the
containers' processes, shims and streams go on.  What changes is what later verbs do, which is the flavor's that adopts.
"""

from __future__ import annotations

from contextlib import suppress

from kata import state
from kata.errors import KataError, NotFound, WrongState
from kata.loader import resolved
from kata.oci import Bundle
from kata.record import Record
from kata.revive import revive
from kata.wire import Client

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from kata.contract import Backend, InvocationOptions

TIMEOUT = 60.0  #: seconds for the proxy's answer


class Outcome(Record):
    """What became of one container.  ``refused``: why it stays what it was; ``notes``: what does not change with it."""

    id: str
    before: str  #: flavor
    refused: str = ""
    notes: tuple[str, ...] = ()


def adopt(root: str, ids: Sequence[str], backend: Backend, options: InvocationOptions) -> list[Outcome]:
    """Carry containers over to a backend's flavor; without ``ids``, all that are not its own.

    :param root: root of records, "" for all that are known.
    :raise NotFound: there is no such container.
    :raise StateError: the record of one that is named cannot be read.
    """
    chosen = [state.load_container(root, name) for name in ids] if ids else [
        c for _name, c in state.list_containers(root)
        if isinstance(c, state.Container) and c.record["flavor"] != backend.name and c.status() != "stopped"]
    outcomes: list[Outcome] = []
    for key in dict.fromkeys(c.record["sandbox_key"] for c in chosen):
        together = [c for c in chosen if c.record["sandbox_key"] == key]
        flavors = {c.id: str(c.record["flavor"]) for c in together}
        try:
            notes = _adopt_sandbox(together, backend, options, everything=not ids)
        except KataError as e:
            outcomes += [Outcome(name, flavor, refused=str(e)) for name, flavor in flavors.items()]
        else:
            outcomes += [Outcome(name, flavor, notes=notes) for name, flavor in flavors.items()]
    return outcomes


def _adopt_sandbox(chosen: Sequence[state.Container], backend: Backend, options: InvocationOptions, *,
                   everything: bool) -> tuple[str, ...]:
    """One sandbox; returns what does not change with it.

    :raise KataError: why it cannot be.
    """
    directory = chosen[0].sandbox_dir
    for container in chosen:
        _check(container, backend)
    with suppress(FileNotFoundError):
        revive(directory)  # a machine whose proxy is gone goes on being looked after
    try:
        with state.locked(directory):
            record = state.read_json(f"{directory}/sandbox.json")
            wanted = {c.id for c in chosen}
            members = {name: state.load_container(entry["root"], name) for name, entry in record["containers"].items()}
            if left := sorted(set(members) - wanted) if not everything else []:
                others = [name for name in left if members[name].record["flavor"] != backend.name]
                if others:
                    raise WrongState(f"it shares its machine with {', '.join(others)}",
                                     "adopt them together: name them all, or --all")
            for container in members.values():
                _check(container, backend, member=container.id not in wanted)
            plans = {c.id: _policy(c, backend, options) for c in members.values()}
            with Client(f"{directory}/proxy.sock", TIMEOUT) as proxy:
                proxy.request("become", timeout=TIMEOUT, flavor=backend.name, backend=resolved(backend), plans=plans)
    except FileNotFoundError as e:
        raise NotFound("its machine is gone", "delete it") from e
    return tuple(_fixed(record["plan"]))


def _check(container: state.Container, backend: Backend, *, member: bool = False) -> None:
    """:raise WrongState: the container cannot be carried over as it is now."""
    who = f"container {container.id} in its machine" if member else "it"
    status = container.status()
    if container.record["flavor"] == backend.name and not member:
        raise WrongState(f"it is {backend.name}'s already")
    if status == "creating":
        raise WrongState(f"{who} is being made", "wait until it is created, and start it")
    if status == "created":
        raise WrongState(f"{who} is created and its process not made yet: {backend.name} makes it at create",
                         "start it first")
    if status == "paused":
        raise WrongState(f"{who} is paused in the way of {container.record['flavor']}", "resume it first")
    if status == "stopped" and not member:
        raise WrongState("it has stopped: there is nothing to carry over", "delete it")


def _policy(container: state.Container, backend: Backend, options: InvocationOptions) -> Mapping[str, Any]:
    """Fields of a container's plan as the backend has them.

    :raise KataError: the backend would not have the container, or not in this sandbox.
    """
    record = container.record
    made = container.made_of("process", "resources")
    resources = made["resources"]
    spec = {"ociVersion": record["ociVersion"], "process": made["process"], "root": {"path": "/"},
            "annotations": record["annotations"], "linux": {"resources": {
                name: resources[name] for name in ("cpu", "memory") if name in resources}}}
    bundle = Bundle(container.id, record["bundle"], spec, "/", ())
    config = backend.load_config(options, record["annotations"])
    _role, sandbox_id = backend.sandbox_of(bundle)
    if sandbox_id and sandbox_id != record["sandbox_id"]:
        raise WrongState(f"container {container.id} is in sandbox {record['sandbox_id']}, and {backend.name} would "
                         f"look for {sandbox_id}", "what joins the pod later would not find it: end the pod")
    plan = backend.plan_container(config, bundle, record["sandbox_id"], record["role"])
    return {name: getattr(plan, name) for name in ("guest_process_at", "pause_scope", "vcpus", "memory")}


def _fixed(plan: Mapping[str, Any]) -> list[str]:
    """What stays as the machine was made."""
    machine, notes = plan["machine"], []
    if machine["max_memory"] == machine["memory"]:
        notes.append(f"its machine keeps its {machine['memory']} MiB: it was made without room for more")
    if machine["max_vcpus"] == machine["vcpus"]:
        notes.append(f"its machine keeps its {machine['vcpus']} vCPUs")
    return notes
