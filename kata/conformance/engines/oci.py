"""The OCI command line, driven as an engine does; every subject has a ``--root`` of its own."""

from __future__ import annotations

import copy
import itertools
import json
import os
import select
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from kata import process
from kata.conformance import deadline
from kata.conformance.engines import host
from kata.conformance.engines.host import CLIENT, Output
from kata.conformance.engines.sections import script, sections
from kata.conformance.samples import Sampler
from kata.errors import HostError, KataError
from kata.state import sandbox_key

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: A first process that ends when told to; without handlers pid 1 ignores TERM.
SLEEPER = "trap 'exit 0' TERM INT; while :; do sleep 3600 & wait $!; done"
CAPS = [f"CAP_{n}" for n in ("CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP"
                             " NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE").split()]  # fmt: skip
NODEV = ["nosuid", "noexec", "nodev"]
#: Changes a configuration in place.
Change = Callable[[dict[str, Any]], object]


def default_config(*args: str) -> dict[str, Any]:
    """A container like the one `docker run` asks for."""
    def mount(place: str, kind: str, *options: str) -> dict[str, Any]:
        return {"destination": place, "type": kind, "source": kind, "options": list(options)}

    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False, "user": {"uid": 0, "gid": 0}, "args": list(args), "env": [PATH, "TERM=xterm"],
            "cwd": "/", "capabilities": {k: list(CAPS) for k in ("bounding", "effective", "permitted")},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}], "noNewPrivileges": False,
        },
        "root": {"path": "rootfs", "readonly": False},
        "hostname": "guest",
        "mounts": [
            mount("/proc", "proc", *NODEV),
            mount("/dev", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
            mount("/dev/pts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
            {**mount("/dev/shm", "tmpfs", *NODEV, "mode=1777", "size=65536k"), "source": "shm"},
            mount("/dev/mqueue", "mqueue", *NODEV),
            mount("/sys", "sysfs", *NODEV, "ro"),
            mount("/sys/fs/cgroup", "cgroup", *NODEV, "relatime", "ro"),
        ],
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [{"type": t} for t in ("pid", "network", "ipc", "uts", "mount")],
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    }  # fmt: skip


def merge(old: dict[str, Any], new: Mapping[str, Any]) -> None:
    """Merge nested dicts in place; lists and values replace, None removes."""
    for key, value in new.items():
        if value is None:
            old.pop(key, None)
        elif isinstance(value, dict) and isinstance(old.get(key), dict):
            merge(old[key], value)
        else:
            old[key] = copy.deepcopy(value)


class Launch:
    """A verb that leaves processes behind, run under a reaper."""

    def __init__(self, argv: Sequence[str], pid_file: Path, input: bytes | None, output: Path) -> None:
        self.argv = tuple(argv)
        self._status, told = os.pipe()
        feed: int | None = None
        try:
            with ExitStack() as files:
                out = files.enter_context(open(output, "ab"))
                if input is None:
                    source = os.open("/dev/null", os.O_RDONLY)
                else:
                    source, feed = os.pipe()
                files.callback(os.close, source)
                self._reaper = process.start(
                    [sys.executable, "-c", _REAPER, str(told), str(pid_file), *argv], stdin=source, output=out,
                    env=host.environment(), pass_fds=(told,))
        finally:
            os.close(told)
        if feed is not None:
            with open(feed, "wb") as pipe:
                pipe.write(input or b"")
        self._said: dict[str, int] = {}
        self._rest = b""

    def told(self, what: str, timeout: float = CLIENT) -> int:
        """Wait for what the reaper tells: ``verb`` or ``exit``; the code.

        :raise HostError: not within ``timeout`` seconds, or never.
        """
        end = time.monotonic() + deadline.left(timeout)
        while what not in self._said:
            readable, _, _ = select.select([self._status], [], [], max(0.0, end - time.monotonic()))
            data = os.read(self._status, 4096) if readable else b""
            if not data:
                why = "all of its processes ended" if readable else f"{timeout:g} s were over"
                raise HostError(f"{' '.join(self.argv)}: {why} before the {what} was told")
            *lines, self._rest = (self._rest + data).split(b"\n")
            self._said.update((word.decode(), int(code)) for word, code in map(bytes.split, lines))
        return self._said[what]

    def close(self) -> None:
        """Let go of it; the reaper ends with its last descendant."""
        os.close(self._status)
        threading.Thread(target=self._reaper.wait, daemon=True).start()


_REAPER = "from kata.conformance.engines.reaper import main; main()"


class OciRuntime:
    """One subject at the command line, with the containers that its cases share."""

    def __init__(self, runtime: str, command: Sequence[str], folder: Path, data: Path, sampler: Sampler) -> None:
        """:param folder: a short path, for records; ``data``: a real file system, with ``root`` to copy from."""
        self.runtime = runtime
        self.command = list(command)
        self.folder, self.data = folder, data
        self.root = folder / "root"
        self.tag = folder.parent.parent.name  #: of the run
        self.sampler = sampler
        self._numbers = itertools.count(1)
        self._shared: dict[str, object] = {}
        self._open = ExitStack()
        folder.mkdir(parents=True)

    # --- verbs ---------------------------------------------------------------

    def argv(self, *words: str) -> list[str]:
        return [*self.command, "--root", str(self.root), *words]

    def __call__(self, *words: str, input: str = "", timeout: float = CLIENT, sample: str = "") -> Output:
        """A verb that leaves nothing behind, to its end."""
        begun = time.monotonic()
        output = host.run(self.argv(*words), input=input, timeout=timeout)
        if sample and output.code == 0:
            self.sampler.take(self.runtime, sample, time.monotonic() - begun)
        return output

    def new_id(self) -> str:
        return f"{self.tag}-{self.runtime}-{next(self._numbers)}"

    def bundle(self, shell: str = SLEEPER, changes: Mapping[str, Any] | Change | None = None, *,
               prepare: Callable[[Path], object] | None = None) -> Path:
        """A new bundle whose process is a shell script.

        :param changes: merged into the configuration, or called with it.
        :param prepare: called with the root file system.
        """
        path = self.data / f"{self.runtime}-b{next(self._numbers)}"
        path.mkdir()
        shutil.copytree(self.data / "root", path / "rootfs", symlinks=True)
        os.chown(path / "rootfs/home/user", 1000, 1000)
        if prepare:
            prepare(path / "rootfs")
        config = default_config("/bin/sh", "-c", shell)
        if callable(changes):
            changes(config)
        else:
            merge(config, changes or {})
        (path / "config.json").write_text(json.dumps(config, indent=1))
        return path

    def run(self, shell: str, changes: Mapping[str, Any] | Change | None = None, *options: str, input: str = "",
            prepare: Callable[[Path], object] | None = None) -> Output:
        """``run`` in the foreground, to its end."""
        bundle, id = self.bundle(shell, changes, prepare=prepare), self.new_id()
        try:
            return self("run", "--bundle", str(bundle), *options, id, input=input, sample="run")
        except KataError:
            self("delete", "--force", id)
            raise
        finally:
            shutil.rmtree(bundle, ignore_errors=True)

    @contextmanager
    def container(self, bundle: Path, id: str = "") -> Iterator[Container]:
        """A container not yet created; whatever becomes of it is undone at the end."""
        made = Container(self, id or self.new_id(), bundle)
        try:
            yield made
        finally:
            made.close()
            shutil.rmtree(bundle, ignore_errors=True)

    @contextmanager
    def created(self, shell: str = SLEEPER, changes: Mapping[str, Any] | Change | None = None, *options: str,
                input: bytes | None = None, prepare: Callable[[Path], object] | None = None) -> Iterator[Container]:
        with self.container(self.bundle(shell, changes, prepare=prepare)) as made:
            made.create(*options, input=input)
            yield made

    @contextmanager
    def running(self, shell: str = SLEEPER, changes: Mapping[str, Any] | Change | None = None, *options: str,
                input: bytes | None = None, prepare: Callable[[Path], object] | None = None) -> Iterator[Container]:
        with self.created(shell, changes, *options, input=input, prepare=prepare) as made:
            made.start().ok()
            yield made

    # --- what cases share --------------------------------------------------------

    def shared(self, key: str, make: Callable[[], Any]) -> Any:
        """What ``make`` returned the first time; if it failed then, the same error again."""
        if key not in self._shared:
            try:
                self._shared[key] = make()
            except KataError as e:
                self._shared[key] = e
        found = self._shared[key]
        if isinstance(found, KataError):
            raise found
        return found

    def keep(self, made: AbstractContextManager[Container]) -> Container:
        """A container that lives until the end of the run."""
        return self._open.enter_context(made)

    @property
    def box(self) -> Container:
        """A running container with the default configuration, for exec and questions."""
        def make() -> Container:
            box = self.keep(self.running())
            self.sampler.take(self.runtime, "memory", float(box.pss()))
            return box

        found: Container = self.shared("box", make)
        return found

    def looks(self, key: str, scripts: Mapping[str, str], changes: Mapping[str, Any] | Change | None,
              prepare: Callable[[Path], object] | None = None) -> dict[str, str]:
        """What each of several scripts printed in one container."""
        def make() -> dict[str, str]:
            return sections(self.run(script(**scripts), changes, prepare=prepare).ok().stdout)

        found: dict[str, str] = self.shared(f"looks {key}", make)
        return found

    def close(self) -> None:
        self._open.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class Container:
    """A container made by ``create``."""

    def __init__(self, oci: OciRuntime, id: str, bundle: Path) -> None:
        self.oci, self.id, self.bundle = oci, id, bundle
        self.pid_file = oci.folder / f"{id}.pid"
        self.out = oci.folder / f"{id}.out"
        self._launches: list[Launch] = []

    def try_create(self, *options: str, input: bytes | None = None, verb: str = "create") -> int:
        """The exit code of ``create``, or of ``run --detach``; its output is in :attr:`said` with the container's."""
        argv = self.oci.argv(verb, "--bundle", str(self.bundle), "--pid-file", str(self.pid_file), *options, self.id)
        begun = time.monotonic()
        launch = Launch(argv, self.pid_file, input, self.out)
        self._launches.append(launch)
        code = launch.told("verb")
        if code == 0:
            self.oci.sampler.take(self.oci.runtime, "create", time.monotonic() - begun)
        return code

    def create(self, *options: str, input: bytes | None = None, verb: str = "create") -> None:
        """:raise HostError: it failed."""
        if code := self.try_create(*options, input=input, verb=verb):
            raise HostError(f"{verb} of {self.id} failed with exit code {code}: {self.said.strip()[-500:]}")

    def start(self) -> Output:
        return self.oci("start", self.id, sample="start")

    def wait(self, timeout: float = CLIENT) -> int:
        """Wait for its process's end; the exit code."""
        return self._launches[0].told("exit", timeout)

    @property
    def said(self) -> str:
        """What was written to its output and errors until now."""
        return self.out.read_text(errors="replace") if self.out.exists() else ""

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self.oci("state", self.id, sample="state").ok().stdout)
        return state

    @property
    def status(self) -> str:
        return str(self.state()["status"])

    @property
    def pid(self) -> int:
        return int(self.pid_file.read_text())

    def kill(self, signal: str = "KILL", *options: str) -> Output:
        return self.oci("kill", *options, self.id, signal, sample="kill")

    def delete(self, *options: str) -> Output:
        return self.oci("delete", *options, self.id, sample="delete")

    def end(self) -> int:
        """Kill it and wait until that is known; the exit code."""
        self.kill("KILL").ok()
        return self.wait()

    def exec(self, *argv: str, options: Sequence[str] = (), input: str = "") -> Output:
        return self.oci("exec", *options, self.id, *argv, input=input, sample="exec")

    def sh(self, shell: str, *options: str, input: str = "") -> Output:
        return self.exec("/bin/sh", "-c", shell, options=options, input=input)

    def exec_detached(self, shell: str, *options: str) -> tuple[Launch, Path]:
        """``exec --detach``; it, and the pid file."""
        pid_file = self.oci.folder / f"{self.oci.new_id()}.pid"
        launch = Launch(self.oci.argv("exec", "--detach", "--pid-file", str(pid_file), *options, self.id,
                                      "/bin/sh", "-c", shell), pid_file, None, self.out)
        self._launches.append(launch)
        return launch, pid_file

    def pss(self) -> int:
        """Bytes of memory that its processes on the host have: each page shared by the number of its users."""
        # A machine's processes name its folder, and no other's.
        names = [self.id, sandbox_key(str(self.oci.root), self.id)]
        pids = {self.pid, *(int(line.split()[0]) for line in host.processes(names))}
        return sum(map(_pss, pids))

    def close(self) -> None:
        """End and delete it, whatever state it is in."""
        self.oci("delete", "--force", self.id)
        for launch in self._launches:
            launch.close()
        for path in (self.pid_file, self.out):
            path.unlink(missing_ok=True)


def _pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


class OciEngine:
    """The folders of a run, with a root to copy from."""

    def __init__(self, folder: Path, data: Path, runtimes: Mapping[str, Sequence[str]], sampler: Sampler) -> None:
        self.folder, self.data = folder, data
        self._runtimes, self._sampler = runtimes, sampler

    def start(self) -> None:
        self.folder.mkdir(parents=True)
        self.data.mkdir(parents=True, exist_ok=True)
        host.image_root(self.data / "root")

    def subject(self, name: str) -> OciRuntime:
        return OciRuntime(name, self._runtimes[name], self.folder / name, self.data, self._sampler)

    def stop(self) -> None:
        """:raise Left: something of a container is still there."""
        left = [f"process {line}" for line in host.processes([f"{self.folder}/"]) if "kata-factory" not in line]
        left += [f"mount {m}" for place in (self.data, self.folder) for m in host.mounts(str(place))]
        left += [f"cgroup {group}" for group in host.cgroups(f"{self.folder.parent.name}-")]
        shutil.rmtree(self.data, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        if left:
            raise host.Left("left behind by containers: " + "; ".join(left))
