"""A private containerd, and `ctr` to drive it."""

from __future__ import annotations

import shutil
from pathlib import Path

from .daemon import Daemon
from .netns import NetworkNamespace
from .proc import Result, run

CONFIG = """\
version = 2
root = "{data}"
state = "{run}"
oom_score = 0
disabled_plugins = [
  "io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.opt",
]
[grpc]
  address = "{address}"
[ttrpc]
  address = "{address}.ttrpc"
"""


class Containerd:
    """containerd with its own root, state and socket."""

    def __init__(self, run_dir: Path, data_dir: Path, netns: NetworkNamespace) -> None:
        self.run_dir = run_dir
        self.data_dir = data_dir
        self.address = run_dir / "containerd.sock"
        for path in (run_dir, data_dir):
            path.mkdir(parents=True, exist_ok=True)
        config = run_dir / "containerd.toml"
        config.write_text(CONFIG.format(data=data_dir, run=run_dir / "c", address=self.address))
        binary = shutil.which("containerd") or "containerd"
        self.daemon = Daemon("containerd", netns.argv(binary, "--config", str(config)), run_dir / "containerd.log")

    def ctr(self, *argv: str, input: bytes | str | None = None, timeout: float = 60) -> Result:
        return run("ctr", "--address", str(self.address), *argv, input=input, timeout=timeout)

    def start(self) -> None:
        self.daemon.start(lambda: self.address.exists() and self.ctr("version", timeout=10).rc == 0)

    def stop(self) -> None:
        self.daemon.stop()
