"""A private dockerd: own socket, data, bridge, network namespace and containerd; every subject is a runtime of it."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kata.conformance.engines import host
from kata.conformance.engines.containerd import Containerd
from kata.conformance.engines.host import CLIENT, SLEEP, Daemon, NetworkNamespace, Output, Stream
from kata.errors import HostError

IMAGE = "busybox:conformance"


def runtime_name(subject: str) -> str:
    """The name of a subject's entry in daemon.json; docker keeps "runc" for itself."""
    return f"subject-{subject}"


class Docker:
    """dockerd, once per run."""

    def __init__(self, folder: Path, data: Path, tag: str, runtimes: Mapping[str, Sequence[str]]) -> None:
        """:param folder: a short path for sockets and logs; ``data``: a real file system for images.
        :param runtimes: by name, each its command and arguments.
        """
        self.folder, self.data = folder, data
        self.socket = folder / "docker.sock"
        self.cgroup = f"{tag}-docker"
        self.netns = NetworkNamespace(f"{tag}d")
        self.containerd = Containerd(folder / "c", data / "containerd", self.netns)
        self._runtimes = runtimes
        self.daemon = Daemon("dockerd", self.netns.argv(
            "dockerd", "--host", f"unix://{self.socket}", "--containerd", str(self.containerd.address),
            "--data-root", str(data / "docker"), "--exec-root", str(folder / "x"),
            "--pidfile", str(folder / "docker.pid"), "--config-file", str(folder / "daemon.json"),
            "--cgroup-parent", f"/{self.cgroup}",
            "--exec-opt", "native.cgroupdriver=cgroupfs", "--storage-driver", "overlay2",
            "--oom-score-adjust", "0", "--shutdown-timeout", "20",
        ), folder / "dockerd.log")  # fmt: skip
        # The client of the daemon's own package, if there are several.
        self._client = "/usr/bin/docker" if Path("/usr/bin/docker").exists() else "docker"
        self._env = {"DOCKER_CONFIG": str(folder / "client")}

    def argv(self, *argv: str) -> list[str]:
        return [self._client, "--host", f"unix://{self.socket}", *argv]

    def __call__(self, *argv: str, input: str = "", timeout: float = CLIENT) -> Output:
        """A docker command, to its end."""
        return host.run(self.argv(*argv), input=input, timeout=timeout, env=self._env)

    def stream(self, *argv: str) -> Stream:
        """A docker command that goes on."""
        return Stream(self.argv(*argv), self._env)

    def start(self) -> None:
        """Start containerd and dockerd and import the image.

        :raise HostError: not installed, or not to be started.
        """
        for path in (self.folder, self.data):
            path.mkdir(parents=True, exist_ok=True)
        table = {runtime_name(name): {"path": argv[0], "runtimeArgs": list(argv[1:])}
                 for name, argv in self._runtimes.items()}
        (self.folder / "daemon.json").write_text(json.dumps({"runtimes": table}))
        self.netns.create()
        self.containerd.start()
        self.daemon.start()
        root = host.image_root(self.data / "root")
        tar = self.data / "root.tar"
        host.run(["tar", "-C", str(root), "-cf", str(tar), "."]).ok()
        change = ["--change", 'CMD ["sh"]', "--change", "ENV IMAGE_WORD=image", "--change", "LABEL kind=test"]
        self("import", *change, str(tar), IMAGE).ok()

    def stop(self) -> None:
        """Stop everything.

        :raise Left: something of a container is still there; everything is removed all the same.
        """
        problems = []
        try:
            if self.socket.exists() and (ids := self("ps", "-aq").out.split()):
                self("rm", "-f", "-v", *ids).ok()
            mine = [str(self.folder), str(self.data)]
            problems = host.processes(mine, (self.daemon.pid, self.containerd.daemon.pid))
        except HostError as e:
            problems.append(str(e))
        for daemon in (self.daemon, self.containerd.daemon):
            try:
                daemon.stop()
            except HostError as e:
                problems.append(str(e))
        own = [str(self.data / "docker"), str(self.data / "containerd")]
        for place in (self.folder, self.data):
            left = host.mounts(str(place))
            # docker mounts its own folder, and a file per network namespace.
            problems += [f"mount {m}" for m in left if m not in own and "/netns/" not in m]
            for mount in reversed(left):
                host.run(["umount", "--lazy", mount])
        for group in sorted(host.cgroups(self.cgroup), reverse=True):
            if not group.endswith(f"/{self.cgroup}"):
                problems.append(f"cgroup {group}")
            os.rmdir(group)
        self.netns.delete()
        shutil.rmtree(self.data, ignore_errors=True)
        if problems:
            raise host.Left("left behind by docker's containers: " + "; ".join(problems))


class DockerRuntime:
    """One subject under docker: containers of its own, by its runtime."""

    _numbers = itertools.count(1)

    def __init__(self, docker: Docker, runtime: str) -> None:
        self.docker = docker
        self.runtime = runtime
        self.entry = runtime_name(runtime)

    def __call__(self, *argv: str, input: str = "", timeout: float = CLIENT) -> Output:
        return self.docker(*argv, input=input, timeout=timeout)

    def name(self, kind: str = "c") -> str:
        """A name that is free."""
        return f"{kind}{next(self._numbers)}-{self.runtime}"

    def once(self, script: str, *options: str, input: str = "") -> Output:
        """Run a shell script in a container to its end."""
        return self("run", "--rm", "--runtime", self.entry, *options, IMAGE, "sh", "-c", script, input=input)

    def start(self, script: str = SLEEP, *options: str, name: str = "") -> str:
        """Start a container that goes on; its name."""
        name = name or self.name()
        self("run", "-d", "--runtime", self.entry, "--name", name, *options, IMAGE, "sh", "-c", script).ok()
        return name

    def sh(self, name: str, script: str, *options: str, input: str = "") -> Output:
        """A shell script by `docker exec`."""
        return self("exec", *options, name, "sh", "-c", script, input=input)

    def inspect(self, name: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = json.loads(self("inspect", name).ok().stdout)
        return found[0]

    def state(self, name: str) -> dict[str, Any]:
        state: dict[str, Any] = self.inspect(name)["State"]
        return state

    def logged(self, name: str, text: str, count: int = 1) -> str:
        """Wait until the container's log holds ``text``, ``count`` times; the log up to there."""
        with self.docker.stream("logs", "-f", name) as log:
            return log.expect(text, count)

    def happened(self, name: str, event: str, count: int = 1, text: str = "<") -> None:
        """Wait until docker has told of an event of a container, ``count`` times since it was made.

        :param text: what its status must hold.
        """
        filters = ("--filter", f"container={name}", "--filter", f"event={event}")
        with self.docker.stream("events", "--since", "1", "--format", "<{{.Status}}", *filters) as events:
            events.expect(text, count)

    def ended(self, name: str) -> int:
        """Wait for a container's end; its exit code."""
        return int(self("wait", name).ok().out)

    def remove(self, *names: str) -> None:
        self("rm", "-f", "-v", *names).ok()
