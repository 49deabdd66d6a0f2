"""What a run that was killed left behind: found by its tag, which holds the pid of a process that is no more."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
from pathlib import Path

from kata.conformance.engines import host

_TAG = re.compile(r"kc(\d+)$")


def tag() -> str:
    """Names everything of this run: folders, network namespaces, ids."""
    return f"kc{os.getpid()}"


def sweep(run: Path = Path("/run"), data: Path = Path("/var/tmp"), proc: Path = Path("/proc")) -> list[str]:
    """End the processes of runs that are over; undo their mounts, namespaces, cgroups and folders.  Their tags."""
    # Only root makes names in /run; in /var/tmp, where anybody does, such a name alone says nothing.
    stale = [n for n in sorted(os.listdir(run)) if (m := _TAG.match(n)) and not (proc / m[1]).exists()]
    for name in stale:
        folders = [data / name, run / name]  # the latter last: it tells that there is something left
        for line in host.processes([f"{folder}/" for folder in folders] + [f"{name}-"]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(line.split()[0]), signal.SIGKILL)
        for folder in folders:
            for mount in reversed(host.mounts(str(folder))):
                host.run(["umount", "--lazy", mount])
            shutil.rmtree(folder, ignore_errors=True)
        # An engine's letters, and whatever an engine or a case calls its own.
        mine = re.compile(rf"{name}[a-z]{{0,2}}(-.*)?")
        for group in sorted(host.cgroups(name), reverse=True):
            if any(map(mine.fullmatch, group.split("/"))):
                with contextlib.suppress(OSError):
                    os.rmdir(group)
        namespaces = Path("/run/netns")
        for namespace in namespaces.iterdir() if namespaces.exists() else ():
            if mine.fullmatch(namespace.name):
                host.NetworkNamespace(namespace.name).delete()
    return stale
