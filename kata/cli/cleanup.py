"""``cleanup``: remove what crashed sandboxes and verbs left behind."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial

from kata import state
from kata.cli.context import Context
from kata.cli.delete import delete
from kata.errors import Damaged, Foreign, KataError, NotFound, StateError
from kata.table import FLAG, Namespace, Option, Verb

VERB = Verb(
    "Remove containers whose machine or creator is gone, and sandboxes that hold no container.",
    Option("--dry-run", "-n", kind=FLAG, help="only say what would be removed"),
)


def run(context: Context, args: Namespace) -> int:
    failed = 0
    for label, remove in [*_containers(context), *_sandboxes(), *_folders(context)]:
        print(f"{'would remove' if args['dry_run'] else 'removing'} {label}")
        if args["dry_run"]:
            continue
        try:
            remove()
        except KataError as e:
            failed += 1
            context.log.error(f"{label}: {e}")
            print(f"  failed: {e}")
    return 1 if failed else 0


def _containers(context: Context) -> list[tuple[str, Callable[[], None]]]:
    """Containers of crashed sandboxes.  A stopped one whose proxy answers is its engine's to delete."""
    found: list[tuple[str, Callable[[], None]]] = []
    for _name, container in state.list_containers(context.root):
        if isinstance(container, StateError):
            continue  # 'delete --force' removes it, by name
        from kata.sandbox import sandbox_lives

        if container.status() != "stopped":
            continue
        why = ("its creator is gone" if container.record["status"] == "creating"
               else "its machine is gone" if not sandbox_lives(container.sandbox_dir) else "")
        if why:
            found.append((f"container {container.id} ({why})", partial(delete, context, container, True)))
    return found


def _sandboxes() -> list[tuple[str, Callable[[], None]]]:
    """Sandboxes that no container record points to.

    One that lives and has its records where they cannot be seen from here, on a
    mount of another namespace, is its owner's.
    """
    from kata.sandbox import out_of_sight

    top = f"{state.RUN_DIR}/sandboxes"
    # Before the containers: a sandbox made meanwhile has a container already.
    keys = sorted(os.listdir(top)) if os.path.isdir(top) else []
    records = [c.record for _n, c in state.list_containers("") if not isinstance(c, StateError)]
    used = {record["sandbox_key"] for record in records}
    cgroups = frozenset(record["cgroup"] for record in records)
    return [(f"sandbox {key} (no container is in it)", partial(_destroy, state.sandbox_dir(key), cgroups))
            for key in keys if key not in used and not _unreadable(state.sandbox_dir(key))
            and not out_of_sight(state.sandbox_dir(key))]


def _destroy(directory: str, used: frozenset[str]) -> None:
    """Remove a sandbox, and the cgroups of containers whose records are gone.

    :param used: cgroups of other containers: an engine may have made a container of the same name since.
    """
    from kata import cgroups
    from kata.teardown import destroy_sandbox

    try:
        entries = state.read_json(f"{directory}/sandbox.json").get("containers", {})
    except (FileNotFoundError, Damaged):
        entries = {}
    destroy_sandbox(directory)
    for path in {entry.get("cgroup", "") for entry in entries.values()} - used - {""}:
        cgroups.at(path).remove(kill=True)  # the shims


def _unreadable(directory: str) -> bool:
    """Whether a container of the sandbox has a damaged record, or the sandbox or one of them is of another version."""
    try:
        containers = state.read_json(f"{directory}/sandbox.json").get("containers", {})
    except (FileNotFoundError, Damaged):
        return False  # nobody points to it
    except StateError:
        return True
    for name, entry in containers.items():
        try:
            state.load_container(entry["root"], name)
        except (NotFound, Foreign):
            continue
        except StateError:
            return True
    return False


def _folders(context: Context) -> list[tuple[str, Callable[[], None]]]:
    """What verbs, makers of templates and keepers of pools were at when they were killed."""
    from kata import template
    from kata.pool import keeper

    found: list[tuple[str, Callable[[], None]]] = [
        (f"folder {path} (its maker is gone)", partial(shutil.rmtree, path, ignore_errors=True))
        for path in state.stale_folders()]
    try:
        config = context.backend().load_config(context.invocation(), {})
    except KataError as e:
        context.log.warning(f"templates and the pool are not looked at: {e}")
        return found
    found += [(f"machine {os.path.basename(machine)} of the pool (it died, or its keeper did)",
               partial(keeper.end_machine, machine)) for machine in keeper.left_over(config.pool_path)]
    path = config.template_path
    if template.unfinished(path):
        found.append((f"unfinished templates below {path}", partial(template.drop_unfinished, path)))
    return found
