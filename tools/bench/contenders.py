"""Who is measured: runc, crun, and Kata by its ways to start a machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bench.figures import BASES
from bench.measure import Failed, Timing, together
from kata_agent.linux import syscalls

UNIFIED = Path("/sys/fs/cgroup/unified")
KATA = str(Path(sys.executable).parent / "kata")


@dataclass(frozen=True)
class Contender:
    """A runtime with the settings under which it is measured."""

    name: str
    path: str
    root: str  #: --root
    boot: str = ""  #: cold | template | pool; "" = no virtual machine
    config: str = ""  #: Kata's configuration file
    space: int = -1  #: descriptor of a mount namespace that it needs

    @property
    def is_vm(self) -> bool:
        return bool(self.boot)

    @property
    def env(self) -> dict[str, str]:
        return {"KATA_CONF_FILE": self.config} if self.config else {}

    def argv(self, *words: str) -> list[str]:
        return [self.path, "--root", self.root, *words]

    def timed(self, *words: str, stdin: int | None = None, stdout: int | None = None) -> Timing:
        """One verb, to its end.

        :raise measure.Failed: it failed.
        """
        return self.at_once([words], stdin, stdout)[0]

    def at_once(
        self, verbs: Sequence[Sequence[str]], stdin: int | None = None, stdout: int | None = None
    ) -> list[Timing]:
        """Many verbs at the same time, to the end of the last."""
        with inside(self.space):
            return together([self.argv(*words) for words in verbs], self.env, stdin=stdin, stdout=stdout)

    def spawn(self, *words: str) -> subprocess.Popen[bytes]:
        """A verb that goes on, its standard input and output pipes."""
        with inside(self.space):
            return subprocess.Popen(self.argv(*words), env={**os.environ, **self.env}, stdin=subprocess.PIPE,
                                    stdout=subprocess.PIPE, bufsize=0)


@contextmanager
def inside(space: int) -> Iterator[None]:
    """In another mount namespace until the block ends (-1: in the own one)."""
    if space < 0:
        yield
        return
    with open("/proc/self/ns/mnt") as own:
        syscalls.setns(space, syscalls.CLONE_NEWNS)
        try:
            yield
        finally:
            syscalls.setns(own.fileno(), syscalls.CLONE_NEWNS)


def controls(folder: Path, stack: ExitStack) -> list[Contender]:
    """The runtimes without machines that this host has.

    :param stack: closes what they need.
    """
    found = []
    for name in BASES:
        if path := shutil.which(name):
            space = -1
            if name == "crun" and _shared_out():
                space = _without_version_2()
                stack.callback(os.close, space)
            found.append(Contender(name, path, str(folder / f"root-{name}"), space=space))
    return found


def _shared_out() -> bool:
    """Controllers are in both versions of control groups: crun refuses such a host."""
    with suppress(FileNotFoundError):
        return bool((UNIFIED / "cgroup.controllers").read_text().strip())
    return False


def _without_version_2() -> int:
    """A mount namespace in which version 2 is not mounted; it lives while its descriptor is open."""
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", f"umount {UNIFIED} && echo ready && exec cat"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        if holder.stdout.readline() != "ready\n":
            raise Failed(f"cannot make a mount namespace without {UNIFIED}")
        space = os.open(f"/proc/{holder.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        holder.stdin.close()
    return space


def configuration(
    boot: str, template_path: Path, *, pool_path: Path | None = None, pool: int = 0, kernel: str = "", initrd: str = ""
) -> str:
    """A configuration file of Kata for one way to boot."""
    lines = ["[factory]", f"enable_template = {str(boot != 'cold').lower()}", f'template_path = "{template_path}"']
    if pool_path:
        lines += [f'vm_cache_endpoint = "{pool_path}"', f"vm_cache_number = {pool}"]
    if kernel:
        lines += ["[hypervisor.qemu]", f'kernel = "{kernel}"', f'initrd = "{initrd}"']
    return "\n".join(lines) + "\n"


def kata(folder: Path, name: str, boot: str, text: str) -> Contender:
    """Kata with the configuration ``text``."""
    config = folder / f"{name.replace(' ', '-')}.toml"
    config.write_text(text)
    root = folder / f"root-{name.replace(' ', '-')}"
    return Contender(name, KATA, str(root), boot, str(config))
