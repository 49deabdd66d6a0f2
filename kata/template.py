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
import os
from contextlib import contextmanager, suppress

from kata import state
from kata.contract import MachinePlan, SandboxPlan
from kata.digest import hexdigest
from kata.errors import HostError
from kata.jsontext import dumps, loads
from kata.planjson import to_json
from kata.record import Record, replace

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

FORMAT = 3
MAKING = ".making"
KEY_SIZE = 24  #: hex digits
SAVE_MARGIN = 180.0  #: beyond the boot timeout, for the rest of a template's making, seconds


def base_machine(plan: SandboxPlan) -> MachinePlan:
    """The machine a template is made of: the sandbox's before any container adds to its size."""
    return replace(plan.machine, vcpus=plan.base_vcpus, memory=plan.base_memory)


def key(plan: SandboxPlan) -> str:
    """Name of the template that serves ``plan``: equal for equal machines made of equal files."""
    machine = base_machine(plan)
    files = [_identity(path) for path in (_program(machine.qemu_path), machine.kernel, machine.initrd,
                                          machine.image, machine.firmware) if path]
    text = dumps([FORMAT, to_json(machine), files, plan.agent_transport, _processor()])
    return hexdigest(text)[:KEY_SIZE]


def _is_key(name: str) -> bool:
    """Whether a folder beside the templates is one: the place is a configuration's, and may hold others."""
    return len(name) == KEY_SIZE and not name.strip("0123456789abcdef")


def _program(name: str) -> str:
    """Where a program is that is looked up on PATH; as it is when it is nowhere."""
    places = [name] if "/" in name else [f"{folder}/{name}" for folder in os.get_exec_path()]
    return next((place for place in places if os.access(place, os.X_OK)), name)


def _remove(path: str) -> None:
    """Remove a folder, as far as it goes."""
    import shutil  # late: those who look for a template pay for this module

    shutil.rmtree(path, ignore_errors=True)


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
    return hexdigest("\n".join(lines))


class Template(Record):
    """An open template; its files stay readable though it is removed."""

    memory: int
    state: int
    channel_token: str
    read_only: bool  #: QEMU can do with a memory file that it opens for reading only

    def __enter__(self) -> Template:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self.memory)
        os.close(self.state)


def open_template(plan: SandboxPlan) -> Template | None:
    """The template for ``plan``, or None if there is none that is whole."""
    directory = f"{plan.template_path}/{key(plan)}"
    opened: list[int] = []
    try:
        with open(f"{directory}/template.json", encoding="ascii") as f:
            about = loads(f.read())
        token, read_only = str(about["channel_token"]), bool(about["read_only"])
        for name in ("memory", "state"):
            opened.append(os.open(f"{directory}/{name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
        if os.fstat(opened[0]).st_size != plan.base_memory << 20:
            raise ValueError("the memory is cut")
    except (OSError, ValueError, KeyError, TypeError):
        for fd in opened:
            os.close(fd)
        return None
    return Template(opened[0], opened[1], token, read_only)


@contextmanager
def making(plan: SandboxPlan, wait: bool) -> Iterator[str | None]:
    """Make the template for ``plan``: yields a directory to fill, which becomes the template at the end.

    Yields None when it is there already; when the maker fails or is killed,
    nothing of it is ever used.

    :param wait: wait for somebody else who is at it; otherwise None is yielded then, too.
    :raise HostError: the directory cannot be made, or somebody else does not come to an end.
    """
    name = key(plan)
    try:
        os.makedirs(plan.template_path, mode=0o700, exist_ok=True)
        lock = os.open(f"{plan.template_path}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise HostError(f"cannot make {plan.template_path}: {e.strerror}") from e
    try:
        if not _taken(lock):
            if not wait:
                yield None
                return
            state.wait_for_lock(lock, plan.template_path, plan.boot_timeout + SAVE_MARGIN)
        found = open_template(plan)
        if found is not None:
            found.close()
            yield None
            return
        _remove(f"{plan.template_path}/{name}")  # somebody has removed a part of it
        aside = f"{plan.template_path}/{name}{MAKING}"
        _remove(aside)  # of a maker that was killed
        os.mkdir(aside, 0o700)
        try:
            yield aside
            os.rename(aside, f"{plan.template_path}/{name}")
        finally:
            _remove(aside)
        _drop_others(plan.template_path, name)
    finally:
        os.close(lock)


def discard(plan: SandboxPlan) -> None:
    """Remove the template for ``plan``, which does not work; the next start that boots has it made anew."""
    try:
        lock = os.open(f"{plan.template_path}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return  # somebody has removed them all
    try:
        if _taken(lock):  # who is making one looks at the old one himself
            _remove(f"{plan.template_path}/{key(plan)}")
    finally:
        os.close(lock)


def unfinished(path: str) -> list[str]:
    """Folders of makers below ``path``, also of those at work."""
    with suppress(FileNotFoundError):
        return sorted(f"{path}/{name}" for name in os.listdir(path)
                      if name.endswith(MAKING) and _is_key(name.removesuffix(MAKING)))
    return []


def drop_unfinished(path: str) -> None:
    """Remove what makers that were killed left; one at work is left alone."""
    lock = os.open(f"{path}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if _taken(lock):
            for folder in unfinished(path):
                _remove(folder)
    finally:
        os.close(lock)


def _taken(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _drop_others(path: str, keep: str, most: int = 3) -> None:
    """Keep the newest templates only: each holds some 100 MiB."""
    found = []
    for name in os.listdir(path):
        with suppress(OSError):
            if name != keep and _is_key(name):
                found.append((os.stat(f"{path}/{name}").st_mtime_ns, name))
    for _time, name in sorted(found, reverse=True)[most - 1 :]:
        _remove(f"{path}/{name}")


def list_templates(path: str) -> list[str]:
    """Keys of the templates below ``path``."""
    with suppress(FileNotFoundError):
        return sorted(n for n in os.listdir(path) if _is_key(n) and os.path.exists(f"{path}/{n}/template.json"))
    return []


def destroy(path: str) -> int:
    """Remove all templates; return how many.  Clones that run are not affected."""
    names = list_templates(path)
    for name in names:
        _remove(f"{path}/{name}")
    return len(names)
