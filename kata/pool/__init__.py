"""The warm pool: machines that have booted, run a container, and were stopped.

Each is a sandbox's directory ``POOL/KEY.NAME`` with QEMU and its proxy alive.
Who starts a sandbox claims one by renaming that directory to its own: exactly
one can, whether or not anybody looks after the pool at that moment.  The
sockets in it go along, and its proxy, whose working directory it is, is then
told whose sandbox it has become.

A name that begins with a dot is of a machine that is being made or ended.
:mod:`kata.pool.keeper` makes and ends them.
"""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import contextmanager, suppress

from kata import state, template
from kata.contract import SandboxPlan
from kata.digest import hexdigest
from kata.errors import HostError
from kata.jsontext import dumps
from kata.record import replace

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Iterator

MAKING, ENDING = ".new-", ".old-"
KEY_SIZE = 16  #: hex digits
LOCK = "lock"  #: the keeper holds a lock of its process on it for as long as it lives, and does not open it again
WANTED = "wanted"  #: written to by who found no machine


def key(plan: SandboxPlan) -> str:
    """Names the machines that serve ``plan``: all that is fixed before a claim is equal."""
    text = dumps([template.key(plan), plan.guest_hook_path, plan.kernel_modules, plan.shared_pidns])
    return hexdigest(text)[:KEY_SIZE]


def base_plan(plan: SandboxPlan) -> SandboxPlan:
    """The plan of a machine in the pool, before it is anybody's."""
    return replace(plan, id="pool", machine=template.base_machine(plan), hostname="")


def machines(path: str) -> list[str]:
    """Directories of the machines in the pool at ``path``, sorted; what else may be there is not ours."""
    with suppress(FileNotFoundError, NotADirectoryError):
        return [f"{path}/{name}" for name in sorted(os.listdir(path)) if _names_machine(name)]
    return []


def half_made(path: str) -> list[str]:
    """Directories of machines that are being made or ended, or whose keeper was killed meanwhile."""
    with suppress(FileNotFoundError, NotADirectoryError):
        return [f"{path}/{name}" for name in sorted(os.listdir(path))
                if name.startswith((MAKING, ENDING)) and _names_machine(name[len(MAKING):])]
    return []


def _names_machine(name: str) -> bool:
    head, dot, _rest = name.partition(".")
    return bool(dot) and len(head) == KEY_SIZE and not head.strip("0123456789abcdef")


def key_of(machine: str) -> str:
    """The key of a machine's directory."""
    return os.path.basename(machine).partition(".")[0]


def take(plan: SandboxPlan, directory: str) -> bool:
    """Claim a machine for ``plan``: its directory becomes ``directory``, which is empty.

    When there is none its keeper is told, which may have a new plan to learn of.

    :raise HostError: the pool is on another file system.
    """
    wanted = key(plan)
    for machine in machines(plan.pool_path):
        if key_of(machine) != wanted:
            continue
        try:
            os.rename(machine, directory)
        except FileNotFoundError:
            continue  # somebody else's by now
        except OSError as e:
            raise HostError(f"cannot claim a machine of the pool {plan.pool_path}: {e.strerror}",
                            f"vm_cache_endpoint must be on the file system of {state.RUN_DIR}"
                            if e.errno == errno.EXDEV else "") from e
        return True
    with suppress(OSError):  # without a keeper there is no such file
        os.close(os.open(f"{plan.pool_path}/{WANTED}", os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
    return False


def in_reach(root: str) -> bool:
    """Whether the proxy of a machine in the pool, which has few mounts, can see a root of records.

    Proxies started for a sandbox keep the mounts that its root needs; here only
    the one that sandboxes are on, and the host's root, are certain.
    """
    return _mount(root) in (_mount(state.RUN_DIR), _mount("/"))


def _mount(path: str) -> int:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="utf-8") as f:
            return next(int(line.split()[1]) for line in f if line.startswith("mnt_id:"))
    finally:
        os.close(fd)


@contextmanager
def starting() -> Iterator[None]:
    """While a sandbox is being started: the pool's keeper lets it go first."""
    top = f"{state.RUN_DIR}/sandboxes"
    os.makedirs(top, mode=0o700, exist_ok=True)
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(BlockingIOError):  # the keeper looks just now
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


def await_starts(timeout: float = 10.0) -> None:
    """Wait until no sandbox is being started, or for ``timeout`` seconds: starts without end starve nobody."""
    top = f"{state.RUN_DIR}/sandboxes"
    os.makedirs(top, mode=0o700, exist_ok=True)
    with suppress(HostError), state.locked(top, timeout):
        pass
