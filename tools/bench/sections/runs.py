"""``run`` of a process that ends at once: the whole life of a container."""

from __future__ import annotations

from bench import measure as timing
from bench.figures import Section
from bench.world import World

TITLE = "run of true, from the command to its end"


def measure(world: World, section: Section) -> None:
    bundle = world.bundle("true", ["true"])
    who = [*world.controls, *world.cold(), world.template(), world.pool(1)]
    for number in world.rounds(9, 100):
        for one in world.turns(number, who):
            world.quiet()
            id = world.new_id(one)
            took = one.timed("run", "--bundle", str(bundle), id)
            world.gone(id)
            section.add("run true", one.name, took.seconds)
            # What goes on after the verb has ended is its cost, too.  A pool's machines are not its children.
            if one.boot != "pool":
                section.add("run true, processor", one.name, took.cpu + timing.settle(world.daemons))
