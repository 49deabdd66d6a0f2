"""The sections, in the order in which they are measured and shown.

Each module has ``TITLE`` and ``measure(world, section)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from bench.figures import Section
from bench.sections import docker, files, memory, runs, starts, streams, verbs
from bench.world import World


class Entry(NamedTuple):
    title: str
    measure: Callable[[World, Section], None]


SECTIONS = {module.__name__.rpartition(".")[2]: Entry(module.TITLE, module.measure)
            for module in (runs, verbs, docker, starts, memory, streams, files)}
