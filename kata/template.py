"""Templates: machines saved just after their agent was ready.

A clone shares the template's memory copy-on-write and starts in a fraction of
a boot.  A template belongs to a machine plan and to the very files that plan
names; when any of them changes, so does its key, and the old one is removed
when a new one is made.

A template is a directory ``PATH/KEY`` with ``memory``, ``state`` and
``template.json``, made under another name and renamed: it is whole or absent.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from kata.contract import MachinePlan, SandboxPlan
from kata.errors import HostError
from kata.planjson import to_json
from kata.record import replace

FORMAT = 1
MAKING = ".making"


def base_machine(plan: SandboxPlan) -> MachinePlan:
    """The machine a template is made of: the sandbox's before any container adds to its size."""
    return replace(plan.machine, vcpus=plan.base_vcpus, memory=plan.base_memory)


def key(plan: SandboxPlan) -> str:
    """Name of the template that serves ``plan``: equal for equal machines made of equal files."""
    machine = base_machine(plan)
    files = [_identity(path) for path in (shutil.which(machine.qemu_path) or machine.qemu_path, machine.kernel,
                                          machine.initrd, machine.image, machine.firmware) if path]
    text = json.dumps([FORMAT, to_json(machine), files, plan.agent_transport, _processor()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _identity(path: str) -> list[Any]:
    try:
        status = os.stat(path)
    except OSError:
        return [path]
    return [os.path.realpath(path), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns]


def _processor() -> str:
    """What of the processor a saved state depends on; with KVM the guest saw all its flags."""
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as f:
        lines = [line for line in f.read(16384).split("\n\n")[0].split("\n") if line.startswith(("model", "flags"))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class Template(NamedTuple):
    """An open template; its files stay readable though it is removed."""

    memory: int
    state: int
    channel_token: str

    def close(self) -> None:
        os.close(self.memory)
        os.close(self.state)


def open_template(plan: SandboxPlan) -> Template | None:
    """The template for ``plan``, or None if there is none that is whole."""
    directory = f"{plan.template_path}/{key(plan)}"
    opened: list[int] = []
    try:
        with open(f"{directory}/template.json", encoding="ascii") as f:
            token = json.load(f)["channel_token"]
        for name in ("memory", "state"):
            opened.append(os.open(f"{directory}/{name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
        if os.fstat(opened[0]).st_size != plan.base_memory << 20:
            raise ValueError("the memory is cut")
    except (OSError, ValueError, KeyError):
        for fd in opened:
            os.close(fd)
        return None
    return Template(opened[0], opened[1], token)


@contextmanager
def making(plan: SandboxPlan, wait: bool) -> Iterator[str | None]:
    """Make the template for ``plan``: yields a directory to fill, which becomes the template at the end.

    Yields None when it is there already; when the maker fails or is killed,
    nothing of it is ever used.

    :param wait: wait for somebody else who is at it; otherwise None is yielded then, too.
    :raise HostError: the directory cannot be made.
    """
    name = key(plan)
    try:
        os.makedirs(plan.template_path, mode=0o700, exist_ok=True)
        lock = os.open(f"{plan.template_path}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise HostError(f"cannot make {plan.template_path}: {e.strerror}") from e
    try:
        if not _taken(lock, wait):
            yield None
            return
        found = open_template(plan)
        if found is not None:
            found.close()
            yield None
            return
        shutil.rmtree(f"{plan.template_path}/{name}", ignore_errors=True)  # somebody has removed a part of it
        aside = f"{plan.template_path}/{name}{MAKING}"
        shutil.rmtree(aside, ignore_errors=True)  # of a maker that was killed
        os.mkdir(aside, 0o700)
        try:
            yield aside
            os.rename(aside, f"{plan.template_path}/{name}")
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        _drop_others(plan.template_path, name)
    finally:
        os.close(lock)


def discard(plan: SandboxPlan) -> None:
    """Remove the template for ``plan``, which does not work; the next start that boots has it made anew."""
    lock = os.open(f"{plan.template_path}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if _taken(lock, False):  # who is making one looks at the old one himself
            shutil.rmtree(f"{plan.template_path}/{key(plan)}", ignore_errors=True)
    finally:
        os.close(lock)


def unfinished(path: str) -> list[str]:
    """Folders of makers below ``path``, also of those at work."""
    with suppress(FileNotFoundError):
        return sorted(f"{path}/{name}" for name in os.listdir(path) if name.endswith(MAKING))
    return []


def drop_unfinished(path: str) -> None:
    """Remove what makers that were killed left; one at work is left alone."""
    lock = os.open(f"{path}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if _taken(lock, False):
            for folder in unfinished(path):
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def _taken(lock: int, wait: bool) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _drop_others(path: str, keep: str, most: int = 3) -> None:
    """Keep the newest templates only: each holds some 100 MiB."""
    found = []
    for name in os.listdir(path):
        with suppress(OSError):
            if name != keep and os.path.isdir(f"{path}/{name}"):
                found.append((os.stat(f"{path}/{name}").st_mtime_ns, name))
    for _time, name in sorted(found, reverse=True)[most - 1 :]:
        shutil.rmtree(f"{path}/{name}", ignore_errors=True)


def list_templates(path: str) -> list[str]:
    """Keys of the templates below ``path``."""
    with suppress(FileNotFoundError):
        return sorted(n for n in os.listdir(path) if os.path.exists(f"{path}/{n}/template.json"))
    return []


def destroy(path: str) -> int:
    """Remove all templates; return how many.  Clones that run are not affected."""
    names = list_templates(path)
    for name in names:
        shutil.rmtree(f"{path}/{name}", ignore_errors=True)
    return len(names)
