"""Removes what a killed test run left: found by its tag, whose process id is no longer alive."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
from pathlib import Path

from . import leaks
from .proc import TAG_VARIABLE, run, tagged
from .wait import eventually

TAG = re.compile(r"kt[0-9m]+x(\d+)e?")


def stale_tags() -> list[str]:
    """Tags of runs that are over but left a folder or a network namespace."""
    names = [*os.listdir("/run"), *os.listdir("/var/tmp"), *leaks.netns([""])]
    found = {m.group(0): int(m.group(1)) for m in map(TAG.match, names) if m}
    return [tag for tag, pid in found.items() if not Path(f"/proc/{pid}").exists()]


def sweep() -> None:
    """End the processes of stale runs, undo their mounts, cgroups, namespaces and folders."""
    for tag in stale_tags():
        own = f"{TAG_VARIABLE}={tag}"

        def processes(own: str = own, tag: str = tag) -> list[tuple[int, str]]:
            return tagged([own, f"/run/{tag}/"])

        for pid, _ in processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        eventually(f"the processes of {tag} to end", lambda: not processes(), 20)
        for mount in reversed(leaks.mounts([tag])):
            run("umount", "--lazy", mount)
        for group in sorted(leaks.cgroups([tag]), reverse=True):
            with contextlib.suppress(OSError):
                Path(group).rmdir()
        for name in leaks.netns([tag]):
            run("ip", "netns", "delete", name)
        for folder in (Path("/run") / tag, Path("/var/tmp") / tag):
            shutil.rmtree(folder, ignore_errors=True)
