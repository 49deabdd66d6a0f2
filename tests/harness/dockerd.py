"""A private dockerd: own socket, data, state, bridge, network namespace, containerd."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from . import leaks
from .containerd import Containerd
from .daemon import Daemon
from .netns import NetworkNamespace
from .proc import Result, environment, run, tagged
from .runtime import Runtime
from .userland import InsideNetwork, MountNamespace
from .wait import eventually

IMAGE = "busybox:test"


class Docker:
    """dockerd with the runtime under test as its default; `docker` to drive it."""

    def __init__(
        self, runtime: Runtime, tag: str, run_dir: Path, work_dir: Path, options: Sequence[str] = (),
        others: Mapping[str, list[str]] | None = None, mounts: MountNamespace | None = None,
    ) -> None:  # fmt: skip
        """
        :param others: further runtimes by name, each its path and arguments.
        :param mounts: the mount namespace for the daemons, if it is not the host's.
        """
        self.tag = tag
        self.runtime = runtime
        self.run_dir = run_dir / "d"
        self.data_dir = work_dir / "docker"
        self.socket = self.run_dir / "docker.sock"
        self.cgroup_parent = f"/{tag}-docker"
        for path in (self.run_dir, self.data_dir):
            path.mkdir()
        self.netns = InsideNetwork(f"{tag}d", mounts) if mounts else NetworkNamespace(f"{tag}d")
        self.containerd = Containerd(self.run_dir / "c", self.data_dir / "containerd", self.netns)
        argv = [
            shutil.which("dockerd") or "dockerd",
            "--host", f"unix://{self.socket}",
            "--containerd", str(self.containerd.address),
            "--data-root", str(self.data_dir / "data"),
            "--exec-root", str(self.run_dir / "x"),
            "--pidfile", str(self.run_dir / "docker.pid"),
            "--default-runtime", "tested",
            "--cgroup-parent", self.cgroup_parent,
            "--exec-opt", "native.cgroupdriver=cgroupfs",
            "--storage-driver", "overlay2",
            "--ipv6", "--fixed-cidr-v6", "fd00:d0c::/64",
            "--oom-score-adjust", "0",
            "--shutdown-timeout", "20",
            "--config-file", str(self.run_dir / "daemon.json"),
            *options,
        ]  # fmt: skip
        runtimes = {"tested": [runtime.path], **(others or {})}
        config = {"runtimes": {name: {"path": argv[0], "runtimeArgs": argv[1:]} for name, argv in runtimes.items()}}
        (self.run_dir / "daemon.json").write_text(json.dumps(config))
        self.daemon = Daemon("dockerd", self.netns.argv(*argv), self.run_dir / "dockerd.log")
        self.namespace_files = set(leaks.netns([""]))

    # --- the client ----------------------------------------------------------

    def argv(self, *argv: str) -> list[str]:
        # The client of the daemon's own package, not another one that may come first in PATH.
        client = "/usr/bin/docker" if Path("/usr/bin/docker").exists() else "docker"
        return [client, "--host", f"unix://{self.socket}", *argv]

    def __call__(self, *argv: str, input: bytes | str | None = None, timeout: float = 90) -> Result:
        """A docker command, to its end."""
        return run(*self.argv(*argv), input=input, timeout=timeout, env={"DOCKER_CONFIG": str(self.run_dir / "cfg")})

    def spawn(self, *argv: str, stdin: int | IO[bytes] = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        """A docker command that goes on; its output is a pipe."""
        return subprocess.Popen(
            self.argv(*argv), stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=environment({"DOCKER_CONFIG": str(self.run_dir / "cfg")}),
        )  # fmt: skip

    def inspect(self, name: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = json.loads(self("inspect", name).ok().stdout)
        return found[0]

    def state(self, name: str) -> dict[str, Any]:
        state: dict[str, Any] = self.inspect(name)["State"]
        return state

    def sh(self, name: str, script: str, *options: str) -> Result:
        """A shell script by `docker exec`."""
        return self("exec", *options, name, "sh", "-c", script)

    def wait_logs(self, name: str, text: str, timeout: float = 60) -> str:
        """Wait until the container's log holds ``text``."""

        def logged() -> str:
            result = self("logs", name).ok()
            return result.stdout + result.stderr if text in result.stdout + result.stderr else ""

        return eventually(f"{text!r} in the log of {name}", logged, timeout)

    def outside(self, *argv: str, timeout: float = 60) -> Result:
        """A command on the docker host's network."""
        return self.netns.run(*argv, timeout=timeout)

    # --- its life ------------------------------------------------------------

    def start(self, rootfs: Path | None = None) -> None:
        """Start containerd and dockerd; import ``rootfs`` as the image the tests use."""
        if not self.netns.path.exists():
            self.netns.create()
        self.containerd.start()
        self.daemon.start(lambda: self.socket.exists() and self("info", timeout=15).rc == 0)
        if rootfs is not None:
            tar = subprocess.Popen(["tar", "-C", str(rootfs), "-c", "."], stdout=subprocess.PIPE, env=environment())
            assert tar.stdout
            change = ["--change", 'CMD ["sh"]', "--change", "ENV IMAGE_WORD=image"]
            result = run(*self.argv("import", *change, "-", IMAGE), stdin=tar.stdout, timeout=120)
            tar.stdout.close()
            assert tar.wait() == 0
            result.ok()

    def restart_daemon(self) -> None:
        """Stop and start dockerd itself; containers are what dockerd makes of them."""
        self.daemon.stop()
        self.daemon.start(lambda: self.socket.exists() and self("info", timeout=15).rc == 0)

    def remove_containers(self) -> None:
        ids = self("ps", "-aq").ok().out.split()
        if ids:
            self("rm", "-f", "-v", *ids, timeout=120).ok()

    def stop(self) -> None:
        """Stop everything; what is left on the host then is a failure."""
        problems: list[str] = []
        try:
            self.remove_containers()
        except AssertionError as exc:
            problems.append(f"containers could not be removed: {exc}")
        if self.runtime.is_vm:
            problems += self._processes("after the last container was removed", ("qemu-system", "kata"))
        for daemon in (self.daemon.stop, self.containerd.stop):
            try:
                daemon()
            except AssertionError as exc:
                problems.append(str(exc))
        problems += self._processes("after dockerd and containerd ended", ())
        own = [str(self.data_dir / "data"), str(self.data_dir / "containerd")]
        left = [m for m in leaks.mounts([str(self.run_dir), str(self.data_dir)]) if m not in own]
        for mount in reversed(leaks.mounts([str(self.run_dir), str(self.data_dir)])):
            run("umount", "--lazy", mount)
        # docker mounts its own folder, and a file per network namespace that goes with the daemon.
        problems += [f"mount {m}" for m in left if "/x/" not in m and "/netns/" not in m and m not in own]
        groups = leaks.cgroups([self.cgroup_parent[1:]])
        problems += [f"cgroup {c}" for c in groups if not c.endswith(self.cgroup_parent)]
        for group in sorted(leaks.cgroups([self.cgroup_parent[1:]]), reverse=True):
            with contextlib.suppress(OSError):  # what is busy was named above
                Path(group).rmdir()
        taps = self.netns.run("ip", "-o", "link").stdout
        problems += [f"interface {line}" for line in taps.splitlines() if "tap" in line or "kata" in line]
        self.netns.delete()
        shutil.rmtree(self.data_dir, ignore_errors=True)
        assert not problems, "left behind by docker:\n" + "\n".join(problems)

    def _processes(self, when: str, names: Sequence[str]) -> list[str]:
        needles = [str(self.run_dir), str(self.data_dir)]

        def strangers() -> list[str]:
            return [
                f"process {when}: {pid} {line}"
                for pid, line in tagged(needles)
                if (not names or any(n in line for n in names)) and "dockerd" not in line.split(" ")[0]
            ]

        try:
            eventually(f"no process {when}", lambda: not strangers(), 15)
        except AssertionError:
            return strangers()
        return []
