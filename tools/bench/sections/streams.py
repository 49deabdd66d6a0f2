"""Standard input and output of a container, beside the bare port that carries them."""

from __future__ import annotations

import os
import time

import portspeed
from bench.contenders import Contender
from bench.figures import Section
from bench.gate import BLOCK, MB, gated
from bench.world import SLEEP, World

TITLE = "streams of a container, and the virtio-serial port below them"
COUNT = 100  #: blocks
ROUND_TRIPS = 30


def measure(world: World, section: Section) -> None:
    bundle = world.bundle("sleep", SLEEP)
    who = [*world.controls, world.template()]
    for number in world.rounds(4, 45):
        for one in world.turns(number, who):
            with world.running(one, bundle) as id:
                section.add("stdout", one.name, out(one, id), "MB/s")
                section.add("stdin", one.name, into(one, id), "MB/s")
                for value in round_trips(one, id):
                    section.add("a byte in and out again", one.name, value)
        for row in portspeed.measure(COUNT * BLOCK // 2):
            section.add(row["direction"], f"port, {row['by']} {row['block'] >> 10}K", row["mb_per_s"], "MB/s")


def out(one: Contender, id: str) -> float:
    """MB/s of standard output."""
    with gated(one, id, f"dd if=/dev/zero bs={BLOCK} count={COUNT} 2>/dev/null") as gate:
        left = COUNT * BLOCK
        began = gate.go()
        while left and (data := gate.read()):
            left -= len(data)
        return COUNT * BLOCK / MB / (time.monotonic() - began)


def into(one: Contender, id: str) -> float:
    """MB/s of standard input."""
    block = bytes(BLOCK)
    with gated(one, id, f"head -c {COUNT * BLOCK} >/dev/null; echo") as gate:
        began = gate.go()
        for _ in range(COUNT):
            view = memoryview(block)
            while view:
                view = view[os.write(gate.to, view):]
        gate.expect()
        return COUNT * BLOCK / MB / (time.monotonic() - began)


def round_trips(one: Contender, id: str) -> list[float]:
    """Seconds from one byte in to the same byte out."""
    times = []
    with gated(one, id, f"head -c {ROUND_TRIPS}") as gate:
        gate.go()
        for _ in range(ROUND_TRIPS):
            began = time.monotonic()
            os.write(gate.to, b"k")
            gate.expect(b"k")
            times.append(time.monotonic() - began)
    return times
