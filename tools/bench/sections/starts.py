"""Many starts at once: how long until all run, and each of them."""

from __future__ import annotations

from bench.contenders import Contender
from bench.figures import Section
from bench.world import SLEEP, World

TITLE = "1, 5, 10, 20 starts at once (run --detach)"
#: Count -> rounds at most; a pool is filled for each.
COUNTS = {1: 4, 5: 2, 10: 2, 20: 1}


def measure(world: World, section: Section) -> None:
    bundle = str(world.bundle("sleep", SLEEP))
    for count, rounds in COUNTS.items():
        who = [*world.controls, world.template(), world.pool(count)]
        for number in world.rounds(rounds, 40):
            for one in world.turns(number, who):
                world.quiet()
                at_once(world, section, one, bundle, count)


def at_once(world: World, section: Section, one: Contender, bundle: str, count: int) -> None:
    ids = [world.new_id(one) for _ in range(count)]
    took = one.at_once([("run", "--detach", "--bundle", bundle, id) for id in ids])
    began = min(t.began for t in took)
    section.add(f"{count} at once, until all run", one.name, max(t.began + t.seconds for t in took) - began)
    for each in took:
        section.add(f"{count} at once, each", one.name, each.seconds)
    for id in ids:
        world.remove(id)
