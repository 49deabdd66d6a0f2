"""A private containerd, and `ctr` with every subject as the runtime's binary."""

from __future__ import annotations

import itertools
from pathlib import Path

from kata.conformance.engines import host
from kata.conformance.engines.host import CLIENT, SLEEP, Daemon, NetworkNamespace, Output
from kata.errors import HostError

CONFIG = """\
version = 2
root = "{data}"
state = "{state}"
oom_score = 0
disabled_plugins = [
  {disabled}
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.opt",
]
[grpc]
  address = "{address}"
[ttrpc]
  address = "{address}.ttrpc"
{more}
"""


class Containerd:
    """containerd with its own root, state and socket."""

    def __init__(self, folder: Path, data: Path, netns: NetworkNamespace, cri: str = "") -> None:
        """:param cri: the configuration of its CRI plugin; without it the plugin is off."""
        self.folder, self.data, self.netns = folder, data, netns
        self.address = folder / "containerd.sock"
        self._cri = cri
        self._config = folder / "config.toml"
        argv = netns.argv("containerd", "--config", str(self._config))
        self.daemon = Daemon("containerd", argv, folder / "containerd.log")

    def start(self) -> None:
        """Start it.

        :raise HostError: not installed, or not to be started.
        """
        for path in (self.folder, self.data):
            path.mkdir(parents=True, exist_ok=True)
        off = "" if self._cri else '"io.containerd.grpc.v1.cri",'
        self._config.write_text(CONFIG.format(
            data=self.data, state=self.folder / "s", address=self.address, disabled=off, more=self._cri))
        self.daemon.start()

    def argv(self, *argv: str, namespace: str = "conformance") -> list[str]:
        return ["ctr", "--address", str(self.address), "--namespace", namespace, *argv]

    def ctr(self, *argv: str, input: str = "", timeout: float = CLIENT, namespace: str = "conformance") -> Output:
        return host.run(self.argv(*argv, namespace=namespace), input=input, timeout=timeout)


class Ctr:
    """One subject under `ctr`: containers from a folder as root, no image needed."""

    _numbers = itertools.count(1)

    def __init__(self, containerd: Containerd, name: str, program: Path, root: Path) -> None:
        """:param program: the runtime without arguments; ``root``: the containers' root file system."""
        self.containerd = containerd
        self.runtime = name
        self.program = program
        self.root = root

    def __call__(self, *argv: str, input: str = "") -> Output:
        return self.containerd.ctr(*argv, input=input)

    def name(self) -> str:
        return f"ctr{next(self._numbers)}-{self.runtime}"

    def run_argv(self, name: str, *options: str, command: list[str]) -> list[str]:
        state = self.containerd.folder / "runtime" / self.runtime
        return ["run", "--runc-binary", str(self.program), "--runc-root", str(state), *options,
                "--rootfs", str(self.root), name, *command]  # fmt: skip

    def once(self, script: str, *options: str, input: str = "") -> Output:
        """Run a shell script in a container to its end."""
        return self(*self.run_argv(self.name(), "--rm", *options, command=["/bin/sh", "-c", script]), input=input)

    def start(self, script: str = SLEEP, *options: str) -> str:
        """Start a container that goes on; its name.  Its output goes nowhere."""
        name = self.name()
        argv = self.run_argv(name, "--detach", "--null-io", *options, command=["/bin/sh", "-c", script])
        self(*argv).ok()
        return name

    def exec(self, name: str, script: str, *options: str, input: str = "") -> Output:
        id = f"e{next(self._numbers)}"
        return self("tasks", "exec", "--exec-id", id, *options, name, "/bin/sh", "-c", script, input=input)

    def status(self, name: str) -> str:
        rows = [line.split() for line in self("tasks", "ls").ok().stdout.splitlines()[1:]]
        return next((row[2] for row in rows if len(row) == 3 and row[0] == name), "")

    def pid(self, name: str) -> int:
        rows = [line.split() for line in self("tasks", "ls").ok().stdout.splitlines()[1:]]
        return next(int(row[1]) for row in rows if row[0] == name)

    def remove(self, name: str) -> None:
        """End and remove a container, whatever its state."""
        self("tasks", "kill", "-s", "KILL", "-a", name)
        self("tasks", "rm", "-f", name)
        self("containers", "rm", name)


class CtrEngine:
    """containerd for `ctr`, once per run."""

    def __init__(self, folder: Path, data: Path, tag: str) -> None:
        self.folder, self.data = folder, data
        self.netns = NetworkNamespace(f"{tag}c")
        self.containerd = Containerd(folder, data / "containerd", self.netns)
        self.root = data / "root"

    def start(self) -> None:
        self.folder.mkdir(parents=True)
        host.image_root(self.root)
        self.netns.create()
        self.containerd.start()

    def stop(self) -> None:
        """Stop it.

        :raise Left: something of a container is still there.
        """
        problems = []
        for name in self.containerd.ctr("containers", "ls", "-q").out.split():
            for argv in (("tasks", "kill", "-s", "KILL", "-a", name), ("tasks", "rm", "-f", name),
                         ("containers", "rm", name)):  # fmt: skip
                self.containerd.ctr(*argv)
        problems += host.processes([str(self.folder)], (self.containerd.daemon.pid,))
        try:
            self.containerd.daemon.stop()
        except HostError as e:
            problems.append(str(e))
        problems += [f"mount {m}" for place in (self.folder, self.data) for m in host.mounts(str(place))]
        self.netns.delete()
        if problems:
            raise host.Left("left behind by containerd's containers: " + "; ".join(problems))
