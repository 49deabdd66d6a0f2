"""``kata --timings`` (or ``KATA_TIMINGS=1``): where the time of a verb went, as a table on standard error.

The verb notes its phases in its :class:`~kata.log.Log`; those of the proxy,
which include every answer of the guest, are asked for before the sandbox may
be gone.  All times are of the host's monotonic clock.  Without the option
nothing is noted, nothing is asked, and this module is not imported.
"""

from __future__ import annotations

import os
import sys
import time

from kata import state
from kata.errors import KataError

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from kata.cli.context import Context


def collect(context: Context, container: state.Container) -> None:
    """Add what the container's proxy has noted since the verb began; without a proxy nothing."""
    from kata.wire import Client

    phases = context.log.phases
    assert phases is not None
    began = _began()
    try:
        with Client(container.proxy_socket) as client:
            reply = client.request("phases")
    except KataError:
        return
    found = [(at, "proxy", name) for at, name in reply["phases"] if at >= began]
    phases += found
    answered = next((at for at, _who, name in found if name == "agent answers"), None)
    boot = reply["boot_nsec"]
    if answered is not None and boot:
        # The guest counts from its kernel's start, and says so as soon as its channel is open.
        start = answered - max(boot.values()) / 1e9
        phases += [(start, "guest", "kernel starts, at the latest")]
        phases += [(start + ns / 1e9, "guest", f"boot: {name}") for name, ns in boot.items()]


def show(context: Context) -> None:
    """Print the table: when a phase was reached, how long it took, who says so, its name."""
    phases = sorted(context.log.phases or [])
    rows, before, began = [], _began(), _began()
    for at, who, name in phases:
        rows.append(f"{1000 * (at - began):9.1f} {1000 * (at - before):8.1f}  {who:5}  {name}")
        before = at
    sys.stderr.write("    at ms  took ms  who    phase\n" + "\n".join(rows) + "\n")


def _began() -> float:
    """When this process started, by the monotonic clock; to 10 ms, as the kernel tells it."""
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - state.start_time(os.getpid()) / os.sysconf("SC_CLK_TCK")
    return time.monotonic() - age
