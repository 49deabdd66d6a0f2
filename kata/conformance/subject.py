"""What is compared: flavors of kata, and other OCI runtimes by path."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kata import flavors, loader, process
from kata.conformance.declared import EVERY_MACHINE
from kata.errors import KataError, UsageError

#: The module of a flavor's package that declares what differs in it; it may be absent.
DECLARES = "differences"


@dataclass(frozen=True)
class Subject:
    """``command`` starts its OCI command line; ``flavor`` is "" for another runtime."""

    name: str
    command: tuple[str, ...]
    flavor: str = ""
    version: str = ""
    #: Each ``case`` (a pattern), ``key``, ``reason``, and ``value`` unless any will do.
    differences: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)


def flavor(name: str, program: str = "") -> Subject:
    """A flavor as a subject.

    :param program: the kata command; by default the one beside this interpreter, or on PATH.
    :raise KataError: there is no such flavor, or no command.
    """
    backend = loader.load(name, "--flavors")
    program = program or _kata()
    command = (program, "--flavor", name)
    return Subject(name, command, name, _version(command), tuple(differences(type(backend).__module__)))


def runtime(text: str) -> Subject:
    """Another runtime, by name or path, with an own name by ``NAME=PATH``.

    :raise UsageError: there is no such program.
    """
    name, equals, path = text.partition("=")
    path = path if equals else text
    found = shutil.which(path)
    if not found:
        raise UsageError(f"no program {path!r}", "name an OCI runtime that is installed, by name or path")
    return Subject(name if equals else Path(path).name, (os.path.abspath(found),), "", _version((found,)))


def differences(module: str) -> list[dict[str, Any]]:
    """What holds for every machine, and what the flavor's own package declares.

    :param module: of its backend.
    """
    place = f"{module.partition('.')[0]}.{DECLARES}"
    own: Mapping[tuple[str, str], tuple[Any, str]] = {}
    try:
        found_there = importlib.util.find_spec(place)
    except ModuleNotFoundError:  # the flavor is one module, no package
        found_there = None
    if found_there:
        own = importlib.import_module(place).DIFFERENCES
    found = []
    for (case, key), (value, reason) in {**EVERY_MACHINE, **own}.items():
        entry: dict[str, Any] = {"case": case, "key": key, "reason": reason}
        found.append(entry if value is ... else {**entry, "value": value})
    return found[::-1]  # a flavor's own come before what holds for all


def _kata() -> str:
    """The very program that runs, unless it runs by a name that asks for one flavor."""
    for path in (sys.argv[0], str(Path(sys.executable).with_name("kata"))):
        if os.path.basename(path) not in flavors.PROGRAMS and (found := shutil.which(path)):
            return os.path.abspath(found)
    raise UsageError("the kata command cannot be found", "call it by its path")


def _version(command: tuple[str, ...]) -> str:
    try:
        said = process.run([*command, "--version"], timeout=30).text
    except KataError:
        return ""
    return " ".join(said.split())
