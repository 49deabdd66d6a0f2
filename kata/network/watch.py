"""What changes in a sandbox's network namespace, told by rtnetlink.

Engines make, rename, move and only then configure an interface.  Nothing is
guessed about when they are done: every burst of events leads to a new look at
the namespace, and the difference to the previous look is reported.
"""

from __future__ import annotations

from kata.network import inventory
from kata.network.inventory import Interface, Inventory
from kata.record import Record
from kata_agent.linux.rtnl import Monitor, Rtnl


class Changes(Record):
    """The difference between two looks; an interface with a new MAC is removed and added."""

    added: tuple[Interface, ...]
    removed: tuple[Interface, ...]
    changed: tuple[tuple[Interface, Interface], ...]  #: (before, now): addresses, MTU, name, up
    routes: bool  #: routes differ: see ``now.routes``
    neighbours: bool
    now: Inventory

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed or self.routes or self.neighbours)


class Watcher:
    """Watches the network namespace of the thread that makes it.

    Register :meth:`fileno` for reading and call :meth:`changes` when it is
    readable.  The first call, before any event, reports all that is there.
    """

    def __init__(self) -> None:
        self._monitor = Monitor()  # before the first look, so that nothing falls between
        try:
            self._rtnl = Rtnl()
        except BaseException:
            self._monitor.close()
            raise
        self._last = Inventory()
        self._ours: frozenset[int] = frozenset()
        self._macs: dict[int, str] = {}
        self._looked = False

    def fileno(self) -> int:
        return self._monitor.fileno()

    @property
    def rtnl(self) -> Rtnl:
        """The request socket in this namespace, for :mod:`kata.network.wire`."""
        return self._rtnl

    @property
    def inventory(self) -> Inventory:
        """The last look; interfaces that are not ready are not in it."""
        return self._last

    def close(self) -> None:
        self._monitor.close()
        self._rtnl.close()

    def joined(self, ifindex: int, mac: str, ours: frozenset[int]) -> None:
        """Interface ``ifindex`` stands for a guest interface with ``mac``; ``ours`` are what we made for it."""
        self._ours |= ours
        self._macs[ifindex] = mac

    def detached(self, ifindex: int, ours: frozenset[int]) -> None:
        """Undo :meth:`joined`: indexes may be used again for other interfaces."""
        self._ours -= ours
        self._macs.pop(ifindex, None)

    def restore(self, last: Inventory) -> None:
        """Take ``last`` as what was reported already (after a restart of the proxy)."""
        self._last = last

    def changes(self) -> Changes:
        """Drain the events and compare; false when nothing changed.  Never blocks on events."""
        events = self._monitor.events()
        if self._looked and events is not None and not events:
            return _difference(self._last, self._last)
        look = inventory.take(self._rtnl, self._ours, self._macs)
        self._looked = True
        ready = tuple(i for i in look.interfaces if i.ready or self._last.interface(i.index) is not None)
        now = Inventory(ready, look.routes, look.neighbours, look.unsupported, look.notes)
        before, self._last = self._last, now
        return _difference(before, now)


def _difference(before: Inventory, now: Inventory) -> Changes:
    added, removed, changed = [], [], []
    for interface in now.interfaces:
        old = before.interface(interface.index)
        if old is None:
            added.append(interface)
        elif old.mac != interface.mac:
            removed.append(old)
            added.append(interface)
        elif old != interface:
            changed.append((old, interface))
    removed += [i for i in before.interfaces if now.interface(i.index) is None]
    return Changes(tuple(added), tuple(removed), tuple(changed), before.routes != now.routes,
                   before.neighbours != now.neighbours, now)
