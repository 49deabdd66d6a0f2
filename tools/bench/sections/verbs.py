"""One container through its verbs, each timed alone."""

from __future__ import annotations

from bench import measure as timing
from bench.contenders import Contender
from bench.figures import Section
from bench.world import SLEEP, World

TITLE = "each verb on its own"


def measure(world: World, section: Section) -> None:
    bundle = world.bundle("sleep", SLEEP)
    who = [*world.controls, *world.cold()[-1:], world.template(), world.pool(1)]
    for number in world.rounds(15, 100):
        for one in world.turns(number, who):
            if one.boot != "cold" or number % 3 == 0:  # it boots for seconds, and only `create` differs
                life(world, section, one, str(bundle))


def life(world: World, section: Section, one: Contender, bundle: str) -> None:
    """Create, start, exec, state, list, kill, delete."""
    id = world.new_id(one)

    def verb(name: str, *words: str) -> None:
        section.add(name, one.name, one.timed(name, *words).seconds)

    world.quiet()
    verb("create", "--bundle", bundle, "--pid-file", str(world.pid_file(id)), id)
    world.quiet()
    pid = int(world.pid_file(id).read_text())
    verb("start", id)
    # The first one in a new machine translates code that the later ones find translated.
    section.add("exec true, first", one.name, one.timed("exec", id, "true").seconds)
    for _ in range(3):
        section.add("exec true", one.name, one.timed("exec", id, "true").seconds)
    verb("state", id)
    verb("list")
    verb("kill", id, "KILL")
    timing.await_end(pid, f"container {id}")
    verb("delete", id)
    world.gone(id)
