"""Proportional set size of the host processes of live sandboxes."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import memory
from bench.contenders import Contender
from bench.figures import Section
from bench.world import SLEEP, World

TITLE = "memory: PSS of 1, 4, 10 and 20 live sandboxes, and of further containers in a pod"
COUNTS = (1, 4, 10, 20)
MOST = {"cold": 4, "pool": 10}  #: machines that take long to make
EXECS = 3  #: before a container is measured
POD = 4  #: further containers
MIB = 1 << 20


def measure(world: World, section: Section) -> None:
    for one in [*world.controls, *world.cold()[-1:], world.template()]:
        side_by_side(world, section, one)
    in_a_pod(world, section, world.template())
    # Last: its waiting machine shares the template's memory with the others.
    side_by_side(world, section, world.pool(1))


def side_by_side(world: World, section: Section, one: Contender) -> None:
    """Containers that sleep, one after the other; none is measured before it has worked."""
    bundle = world.bundle("sleep", SLEEP)
    most = 4 if world.quick else MOST.get(one.boot, max(COUNTS))
    counts = [n for n in COUNTS if n <= most]
    with ExitStack() as stack:
        live: list[str] = []
        for count in counts:
            while len(live) < count:
                world.quiet()
                live.append(stack.enter_context(world.running(one, bundle)))
                for _ in range(EXECS):
                    one.timed("exec", live[-1], "true")
            section.add(f"PSS each, {count} live", one.name, pss(world, one, live) / count / MIB, "MiB")
            if one.is_vm and count == counts[-1]:
                for role, usage in memory.mean(memory.sandboxes(one.root)).items():
                    section.add(f"PSS of {role}, {count} live", one.name, usage.total / MIB, "MiB")
                    if role == "shim":
                        section.add("RSS of shim", one.name, usage.rss / MIB, "MiB")


def pss(world: World, one: Contender, live: list[str]) -> int:
    """Bytes of all containers of a contender: their machines, or just their processes."""
    if one.is_vm:
        return sum(sandbox.total for sandbox in memory.sandboxes(one.root))
    return sum(memory.process(int(world.pid_file(id).read_text())).total for id in live)


def in_a_pod(world: World, section: Section, one: Contender) -> None:
    """What each further container of a pod adds."""
    with ExitStack() as stack:
        pod = stack.enter_context(world.running(one, pod_bundle(world, one, "")))
        before = pss(world, one, [])
        for _ in range(POD):
            stack.enter_context(world.running(one, pod_bundle(world, one, pod)))
            now = pss(world, one, [])
            section.add("PSS of a further container in a pod", one.name, (now - before) / MIB, "MiB")
            before = now


def pod_bundle(world: World, one: Contender, pod: str) -> Path:
    """A bundle as a CRI engine writes it: of a pod's sandbox, or of a container in ``pod``."""
    kind = {"io.kubernetes.cri.container-type": "container" if pod else "sandbox"}
    annotations = {**kind, **({"io.kubernetes.cri.sandbox-id": pod} if pod else {})}
    return world.bundle(f"pod-{pod or one.boot}", SLEEP, annotations=annotations)
