"""Standard input and output of a container, beside the bare port that carries them."""

from __future__ import annotations

import itertools
import os
import time

import portspeed
from bench.contenders import Contender
from bench.figures import Section
from bench.gate import BLOCK, MB, gated
from bench.world import SLEEP, World, say

TITLE = "streams of a container, and the virtio-serial port below them"
COUNT = 100  #: blocks
PORT_SIZE = 64 << 20  #: bytes
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
    bare_port(section)


def bare_port(section: Section) -> None:
    """What the port of a machine carries by itself, at the best of the block sizes that are tried."""
    say("the bare port")
    for direction, rows in itertools.groupby(portspeed.measure(PORT_SIZE), lambda row: str(row["direction"])):
        best = max(rows, key=lambda row: float(row["mb_per_s"]))
        section.add(direction, "bare port", best["mb_per_s"], "MB/s")
        section.note(f"The bare port's best {direction}: {best['by']} of {best['block'] >> 10} KiB.")


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
    with gated(one, id, f"dd of=/dev/null bs={BLOCK} 2>/dev/null; echo") as gate:
        began = gate.go()
        for _ in range(COUNT):
            view = memoryview(block)
            while view:
                view = view[os.write(gate.to, view):]
        gate.end_input()
        gate.expect()
        return COUNT * BLOCK / MB / (time.monotonic() - began)


def round_trips(one: Contender, id: str) -> list[float]:
    """Seconds from one byte in to the same byte out."""
    times = []
    with gated(one, id, "cat") as gate:
        gate.go()
        for _ in range(ROUND_TRIPS):
            began = time.monotonic()
            os.write(gate.to, b"k")
            gate.expect(b"k")
            times.append(time.monotonic() - began)
    return times
