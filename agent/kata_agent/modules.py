"""Kernel modules of the guest."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence

from kata_agent import log
from kata_agent.errors import AgentError, internal, invalid
from kata_agent.linux import syscalls as sc
from kata_agent.resolve import components_ok

LIST = "/etc/kata/modules"  #: paths, one a line, each after those it needs
_ROOT = "/lib/modules"
_BUSES = ("virtio", "scsi", "nd", "pci")
_tried: set[str] = set()  # module aliases of devices that were looked up already


def load_listed() -> int:
    """Load what the image's list names; a missing list means that everything is built in.

    :return: number of modules that were loaded.
    """
    try:
        with open(LIST, encoding="utf-8") as file:
            paths = [line.strip() for line in file]
    except FileNotFoundError:
        return 0
    count = 0
    for path in paths:
        if not path or path.startswith("#"):
            continue
        try:
            load(path, "")
            count += 1
        except OSError as error:
            # One driver less is better than no guest; what needs it says so later.
            log.error(f"module {path}: {error.strerror}")
    return count


def load(path: str, parameters: str) -> None:
    """Load one file, packed by gzip if its name says so; a module that is there already is fine.

    :raise OSError: it cannot be read or the kernel refuses it.
    """
    fd = _unpacked(path) if path.endswith(".gz") else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        sc.finit_module(fd, parameters, name=path)
    except OSError as error:
        if error.errno != errno.EEXIST:
            raise
    finally:
        os.close(fd)


def _unpacked(path: str) -> int:
    """A descriptor of the unpacked file: the kernel takes modules as they are."""
    import gzip  # few guests need it

    with gzip.open(path) as packed:
        data = packed.read()
    fd = os.memfd_create("module", os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    return fd


def load_for_devices() -> None:
    """Load drivers of devices that have none: nobody else in a guest does what udev does elsewhere."""
    aliases: list[tuple[str, str]] | None = None
    for bus in _BUSES:
        try:
            devices = os.listdir(f"/sys/bus/{bus}/devices")
        except FileNotFoundError:
            continue
        for device in devices:
            wanted = _alias_without_driver(f"/sys/bus/{bus}/devices/{device}")
            if not wanted or wanted in _tried:
                continue
            _tried.add(wanted)
            if aliases is None:
                aliases = _aliases()
            for name in {module for pattern, module in aliases if matches(pattern, wanted)}:
                try:
                    load_named(name, ())
                except AgentError as error:
                    log.warning(error.text)


def _alias_without_driver(device: str) -> str:
    """The module alias of a device that has no driver, "" for others."""
    if os.path.exists(f"{device}/driver"):
        return ""
    try:
        with open(f"{device}/modalias", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def _aliases() -> list[tuple[str, str]]:
    """(pattern, module) of each line of modules.alias."""
    try:
        with open(f"{_ROOT}/{os.uname().release}/modules.alias", encoding="utf-8") as file:
            lines = [line.split() for line in file]
    except FileNotFoundError:
        return []
    return [(words[1], words[2]) for words in lines if len(words) == 3 and words[0] == "alias"]


def matches(pattern: str, text: str) -> bool:
    """Whether ``text`` fits a shell pattern with no other wildcard than ``*``."""
    first, *rest = pattern.split("*")
    if not text.startswith(first):
        return False
    at = len(first)
    for part in rest:
        found = text.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return text.endswith(rest[-1]) if rest else text == pattern


def load_named(name: str, parameters: Sequence[str]) -> None:
    """Load a module by name, with those it depends on (modules.dep); what is built in is there already.

    :raise AgentError: INVALID_ARGUMENT; INTERNAL, there is none or it cannot be loaded.
    """
    if not components_ok(name) or any("\0" in p for p in parameters):
        raise invalid(f"{name!r} is no name of a kernel module")
    folder = f"{_ROOT}/{os.uname().release}"
    wanted = name.replace("-", "_")
    if os.path.isdir(f"/sys/module/{wanted}") or wanted in _builtin(folder):
        return
    for path, needs in _dependencies(folder):
        if _module_name(path) == wanted:
            try:
                for needed in reversed(needs):
                    load(os.path.join(folder, needed), "")
                load(os.path.join(folder, path), " ".join(parameters))
            except OSError as error:
                raise internal(f"kernel module {name}: {error.strerror}") from None
            return
    raise internal(f"kernel module {name}: the guest has none in {folder}")


def _builtin(folder: str) -> set[str]:
    """Names of what is part of the kernel itself (modules.builtin)."""
    try:
        with open(f"{folder}/modules.builtin", encoding="utf-8") as file:
            return {_module_name(line.strip()) for line in file}
    except FileNotFoundError:
        return set()


def _module_name(path: str) -> str:
    return os.path.basename(path).partition(".ko")[0].replace("-", "_")


def _dependencies(folder: str) -> Iterator[tuple[str, list[str]]]:
    """(path, paths it needs) of each module; without modules.dep, of the files that are there."""
    try:
        with open(f"{folder}/modules.dep", encoding="utf-8") as file:
            for line in file:
                path, _, needs = line.strip().partition(":")
                yield path, needs.split()
    except FileNotFoundError:
        for below, _names, files in os.walk(folder):
            for file_name in files:
                if ".ko" in file_name:
                    yield os.path.relpath(os.path.join(below, file_name), folder), []
