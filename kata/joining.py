"""Which sandbox a container belongs to when its configuration names namespaces of others."""

from __future__ import annotations

import os
from contextlib import suppress

from kata import state
from kata.errors import KataError, UnsupportedError
from kata.network import netns
from kata.record import Record

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Mapping

#: How engines name a namespace of a process.
_OF_PROCESS = r"/proc/(\d+)/(?:task/\d+/)?ns/(\w+)"


NETWORK = "netns"  #: in the directory of a sandbox whose machine came out of the pool


class Sandbox(Record):
    """A running sandbox: its directory's name and its id."""

    key: str
    id: str


def network_of(directory: str, pid: int) -> str:
    """Path of a sandbox's network namespace, by way of its proxy or QEMU ``pid``.

    Both live in it, but for a machine that came out of the pool: QEMU stays
    where it was, and the namespace is mounted in the sandbox's directory as
    the two see it.
    """
    pinned = f"/proc/{pid}/root{directory}/{NETWORK}"
    return pinned if os.path.exists(pinned) else f"/proc/{pid}/ns/net"


def sandbox_in(network: int) -> Sandbox | None:
    """The sandbox of the network namespace ``network``.

    A second machine could not share it: both would answer for its addresses.
    """
    top = f"{state.RUN_DIR}/sandboxes"
    with suppress(FileNotFoundError):
        for key in os.listdir(top):
            with suppress(FileNotFoundError, KataError):
                record = state.read_json(f"{top}/{key}/sandbox.json")
                qemu = record.get("qemu") or {"pid": 0, "start": 0}
                own = network_of(f"{top}/{key}", qemu["pid"])
                if state.alive(qemu["pid"], qemu["start"]) and netns.same(network, own):
                    return Sandbox(key, record["id"])
    return None


def joined_namespaces(paths: Mapping[str, str], key: str) -> list[dict[str, str]]:
    """The containers of sandbox ``key`` that the namespace paths belong to, as ``kata.v1.JoinNamespace``.

    Engines name a namespace by the pid they know of its container, which is
    that of its shim.

    :param paths: namespace type -> path.
    :raise UnsupportedError: a path is no container's of that sandbox.
    """
    if not paths:
        return []
    shims = {}
    with suppress(FileNotFoundError):
        for container_id, entry in state.read_json(f"{state.sandbox_dir(key)}/sandbox.json")["containers"].items():
            with suppress(KataError):
                shims[state.load_container(entry["root"], container_id).record["pid"]] = container_id
    found = []
    for kind, path in paths.items():
        import re  # few containers join another's

        match = re.fullmatch(_OF_PROCESS, path)
        if match is None or int(match[1]) not in shims:
            raise UnsupportedError(
                f"linux.namespaces: the {kind} namespace {path} is not of a container in the same virtual machine",
                "containers share namespaces within a pod; with docker, share the network as well "
                "(--net=container:NAME)")
        found.append({"type": kind, "container_id": shims[int(match[1])]})
    return found
