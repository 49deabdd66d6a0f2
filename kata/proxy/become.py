"""A running sandbox becomes another flavor's: from then on that flavor's policy holds for its containers.

Nothing in the guest changes.  What a flavor is after a sandbox was made, is what its plan says: what pause means, how
it is sized, and whose backend is asked.  ``sandbox.json`` is replaced first, at once; then each container's record.  A
proxy that is killed in between leaves a ``sandbox.json`` that says which flavor the records have to have, and the next
proxy finishes them (:func:`finish`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kata.errors import HostError, WrongState
from kata.planjson import to_json
from kata.proxy.log import log
from kata.record import replace

if TYPE_CHECKING:
    from kata.proxy.sandbox import Sandbox

STATUSES = ("running", "stopped")


def become(sandbox: Sandbox, flavor: str, backend: str, plans: Mapping[str, Mapping[str, Any]]) -> None:
    """End state: sandbox and containers are ``flavor``'s.  Nothing else runs meanwhile: there is no await in here.

    :param backend: what a container's record names as its backend.
    :param plans: id -> fields of its plan that have other values now, for every container of the sandbox.
    :raise WrongState: a container is missing in ``plans``, or is not in a state in which it can go on.
    """
    left = sorted(set(sandbox.containers) ^ set(plans))
    if left or sandbox.expected:
        raise WrongState(f"the containers of sandbox {sandbox.plan.id} are not what they were: "
                         f"{', '.join(left or sandbox.expected)}", "try again")
    for container in sandbox.containers.values():
        if container.lock.locked():
            raise WrongState(f"container {container.id} is being changed", "try again")
        if container.status not in STATUSES:
            raise WrongState(f"container {container.id} is {container.status}", f"it must be {' or '.join(STATUSES)}")
    before, plan = dict(sandbox.record.data), replace(sandbox.plan, flavor=flavor)
    made = {c.id: replace(c.plan, flavor=flavor, **plans[c.id]) for c in sandbox.containers.values()}
    entries = {name: {**before["containers"][name], "plan": to_json(made[name])} for name in made}
    try:
        sandbox.record.update(flavor=flavor, backend=backend, plan=to_json(plan), containers=entries)
    except HostError:  # the disk is full: nothing has changed
        sandbox.record.data = before
        raise
    sandbox.plan = sandbox.network.plan = plan
    for container in sandbox.containers.values():
        container.plan = made[container.id]
    finish(sandbox)


def finish(sandbox: Sandbox) -> None:
    """Container records that are not what ``sandbox.json`` says."""
    backend = sandbox.record.data.get("backend", "")
    for container in sandbox.containers.values() if backend else ():
        if container.record.record["flavor"] != sandbox.plan.flavor:
            container.record.update(flavor=sandbox.plan.flavor, backend=backend)
            log(f"container {container.id} is {sandbox.plan.flavor}'s from now on")
