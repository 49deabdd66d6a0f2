"""``interface``: interfaces of a container, added, changed and removed while it runs.

They are made in the container's network namespace, where the sandbox's proxy
sees them come and go; the guest follows.
"""

from __future__ import annotations

import os

from kata.cli.context import Context
from kata.errors import HostError, KataError, NotFound, UsageError, WrongState
from kata.network import names, netns
from kata.table import Argument, Namespace, Option, Verb
from kata_agent.linux.rtnl import Rtnl

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from kata_agent.linux.netlink import Link

VERB = Verb(
    "add CONTAINER, ls CONTAINER, update CONTAINER NAME, rm CONTAINER NAME.",
    Option("--host-device", help="bridge of the host that the new interface is plugged into", metavar="BRIDGE"),
    Option("--name", help="name of the new interface in the container (the next free ethN)", metavar="NAME"),
    Option("--ip", help="address and prefix length of the new interface", metavar="ADDRESS/BITS"),
    Option("--mac", help="hardware address of the new interface", metavar="MAC"),
    Option("--mtu", help="its MTU in bytes", metavar="BYTES"),
    Option("--add-ip", help="update: add an address", metavar="ADDRESS/BITS"),
    Option("--delete-ip", help="update: remove an address", metavar="ADDRESS/BITS"),
    arguments=[Argument("action"), Argument("id"), Argument("interface", "?")],
)


def run(context: Context, args: Namespace) -> int:
    actions = {"add": add, "ls": show, "rm": remove, "update": update}
    if args["action"] not in actions:
        raise UsageError(f"unknown action {args['action']!r}", f"it is one of {', '.join(actions)}")
    if args["action"] in ("rm", "update") and not args["interface"]:
        raise UsageError("the name of an interface is missing", "interface ls lists them")
    container = context.container(args["id"])
    if container.status() not in ("created", "running", "paused"):
        raise WrongState(f"container {container.id} is not running", f"it is {container.status()}")
    network = os.open(f"/proc/{container.record['pid']}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with Rtnl() as host:
            netns.enter(network)  # this process ends soon; ``host`` stays where it was opened
            with Rtnl() as inside:
                actions[args["action"]](args, host, inside, network)
    except OSError as e:
        raise HostError(f"interface {args['action']}: {e.strerror or e}") from e
    finally:
        os.close(network)
    return 0


def add(args: Namespace, host: Rtnl, inside: Rtnl, network: int) -> None:
    """A veth pair, one end on the host's bridge; on failure nothing of it remains."""
    name = args["name"] or _free([link.name for link in inside.links()])
    outer = host.add_link(f"runv{os.urandom(4).hex()}", "veth", peer=name, peer_netns_fd=network, mtu=_mtu(args))
    try:
        if args["host_device"]:
            host.set_link(outer.ifindex, master=_bridge(host, args["host_device"]).ifindex)
        host.set_link(outer.ifindex, up=True)
        inner = inside.link(name)
        inside.set_link(inner.ifindex, address=args["mac"])
        if args["ip"]:
            inside.add_address(inner.ifindex, args["ip"])
        inside.set_link(inner.ifindex, up=True)
    except (OSError, KataError, ValueError) as e:
        host.delete_link(outer.ifindex)
        if isinstance(e, ValueError):
            raise UsageError(f"interface add: {e}") from e
        raise
    print(name)


def show(_args: Namespace, _host: Rtnl, inside: Rtnl, _network: int) -> None:
    print(f"{'NAME':<15} {'MAC':<17} {'MTU':<6} ADDRESSES")
    for link in inside.links():
        if not names.is_ours(link.name):
            addresses = ", ".join(f"{a.address}/{a.prefix}" for a in inside.addresses(link.ifindex))
            print(f"{link.name:<15} {link.address:<17} {link.mtu:<6} {addresses}".rstrip())


def remove(args: Namespace, _host: Rtnl, inside: Rtnl, _network: int) -> None:
    inside.delete_link(_find(inside, args["interface"]).ifindex)


def update(args: Namespace, _host: Rtnl, inside: Rtnl, _network: int) -> None:
    if not (args["add_ip"] or args["delete_ip"] or args["mtu"]):
        raise UsageError("nothing to change is given", "give --add-ip, --delete-ip or --mtu")
    index = _find(inside, args["interface"]).ifindex
    try:
        if args["mtu"]:
            inside.set_link(index, mtu=_mtu(args))
        # First out, then in: with the first address of a subnet the kernel removes its others.
        if args["delete_ip"]:
            inside.delete_address(index, args["delete_ip"])
        if args["add_ip"]:
            inside.add_address(index, args["add_ip"])
    except ValueError as e:
        raise UsageError(f"interface update: {e}") from e


def _find(inside: Rtnl, name: str) -> Link:
    found = next((link for link in inside.links() if link.name == name and not names.is_ours(name)), None)
    if found is None or name == "lo":
        raise NotFound(f"the container has no interface {name!r} of its own", "interface ls lists them")
    return found


def _bridge(host: Rtnl, name: str) -> Link:
    found = next((link for link in host.links() if link.name == name), None)
    if found is None or found.kind != "bridge":
        raise UsageError(f"--host-device {name} is no bridge of this host", "ip link add NAME type bridge makes one")
    return found


def _free(taken: list[str]) -> str:
    return next(f"eth{n}" for n in range(len(taken) + 1) if f"eth{n}" not in taken)


def _mtu(args: Namespace) -> int:
    if args["mtu"] and not args["mtu"].isdecimal():
        raise UsageError(f"--mtu {args['mtu']} is no number of bytes")
    return int(args["mtu"] or 0)
