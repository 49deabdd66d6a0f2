"""A private podman: own storage, run root, network configuration and namespace; every subject is a runtime of it."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kata.conformance.engines import host
from kata.conformance.engines.host import CLIENT, SLEEP, NetworkNamespace, Output, Stream
from kata.errors import HostError

IMAGE = "localhost/busybox:conformance"

#: podman's own limits are more than a host without CAP_SYS_RESOURCE can give.
CONFIG = """\
[containers]
log_driver = "k8s-file"
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
[engine.runtimes]
{runtimes}
[network]
network_backend = "netavark"
network_config_dir = "{folder}/networks"
"""


class Podman:
    """podman as root, once per run; nothing of the host's own podman is touched."""

    def __init__(self, folder: Path, data: Path, tag: str, runtimes: Mapping[str, Sequence[str]]) -> None:
        """:param folder: a short path for sockets; ``data``: a real file system for images.
        :param runtimes: by name, each its command and arguments.
        """
        self.folder, self.data = folder, data
        self.netns = NetworkNamespace(f"{tag}p")
        self._runtimes = runtimes
        self._env = {"CONTAINERS_CONF": str(folder / "containers.conf"), "XDG_RUNTIME_DIR": str(folder)}

    def argv(self, *argv: str) -> list[str]:
        return self.netns.argv(
            "podman", "--root", str(self.data / "storage"), "--runroot", str(self.folder / "r"),
            "--tmpdir", str(self.folder / "t"), "--storage-driver", "overlay", "--cgroup-manager", "cgroupfs",
            "--network-config-dir", str(self.folder / "networks"), *argv,
        )  # fmt: skip

    def __call__(self, *argv: str, input: str = "", timeout: float = CLIENT) -> Output:
        """A podman command, to its end."""
        # conmon leaves a file named oom in its working directory.
        return host.run(self.argv(*argv), input=input, timeout=timeout, env=self._env, cwd=self.folder)

    def stream(self, *argv: str) -> Stream:
        """A podman command that goes on."""
        return Stream(self.argv(*argv), self._env)

    def start(self) -> None:
        """Import the image.

        :raise HostError: not installed, or not to be used.
        """
        programs = self.folder / "runtimes"
        for path in (self.folder / "networks", programs, self.data):
            path.mkdir(parents=True, exist_ok=True)
        table = [f'"{runtime_name(name)}" = ["{host.wrapper(programs, name, argv)}"]'
                 for name, argv in self._runtimes.items()]
        (self.folder / "containers.conf").write_text(CONFIG.format(folder=self.folder, runtimes="\n".join(table)))
        self.netns.create()
        root = host.image_root(self.data / "root")
        tar = self.data / "root.tar"
        host.run(["tar", "-C", str(root), "-cf", str(tar), "."]).ok()
        self("import", "--change", 'CMD ["sh"]', "--change", "ENV IMAGE_WORD=image", str(tar), IMAGE).ok()

    def stop(self) -> None:
        """Remove everything.

        :raise Left: something of a container is still there; the rest is removed all the same.
        """
        problems = []
        for argv in (("pod", "rm", "-af", "-t", "0"), ("rm", "-af", "-t", "0"), ("volume", "rm", "-af"),
                     ("network", "prune", "-f")):  # fmt: skip
            try:
                self(*argv).ok()
            except HostError as e:
                problems.append(str(e))
        problems += [p for p in host.processes([str(self.folder)]) if "aardvark-dns" not in p]
        problems += [f"mount {m}" for m in host.mounts(f"{self.data}/storage/overlay/")]
        for line in host.processes([str(self.folder)]):
            host.run(["kill", "-KILL", line.split()[0]])
        for place in (self.folder, self.data):
            for mount in reversed(host.mounts(str(place))):
                host.run(["umount", "--lazy", mount])
        self.netns.delete()
        shutil.rmtree(self.data, ignore_errors=True)
        if problems:
            raise host.Left("left behind by podman's containers: " + "; ".join(problems))


def runtime_name(subject: str) -> str:
    """The name of a subject's entry in containers.conf."""
    return f"subject-{subject}"


class PodmanRuntime:
    """One subject under podman."""

    _numbers = itertools.count(1)

    def __init__(self, podman: Podman, runtime: str) -> None:
        self.podman = podman
        self.runtime = runtime

    def __call__(self, *argv: str, input: str = "", timeout: float = CLIENT) -> Output:
        return self.podman("--runtime", runtime_name(self.runtime), *argv, input=input, timeout=timeout)

    def stream(self, *argv: str) -> Stream:
        return self.podman.stream("--runtime", runtime_name(self.runtime), *argv)

    def name(self, kind: str = "p") -> str:
        """A name that is free."""
        return f"{kind}{next(self._numbers)}-{self.runtime}"

    def once(self, script: str, *options: str, input: str = "") -> Output:
        """Run a shell script in a container to its end."""
        return self("run", "--rm", *options, IMAGE, "sh", "-c", script, input=input)

    def start(self, script: str = SLEEP, *options: str, name: str = "") -> str:
        """Start a container that goes on; its name."""
        name = name or self.name()
        self("run", "-d", "--name", name, *options, IMAGE, "sh", "-c", script).ok()
        return name

    def sh(self, name: str, script: str, *options: str, input: str = "") -> Output:
        """A shell script by `podman exec`."""
        return self("exec", *options, name, "sh", "-c", script, input=input)

    def inspect(self, name: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = json.loads(self("inspect", name).ok().stdout)
        return found[0]

    def state(self, name: str) -> dict[str, Any]:
        state: dict[str, Any] = self.inspect(name)["State"]
        return state

    def logged(self, name: str, text: str, count: int = 1) -> str:
        """Wait until the container's log holds ``text``, ``count`` times; the log up to there."""
        with self.stream("logs", "-f", name) as log:
            return log.expect(text, count)

    def ended(self, name: str) -> int:
        """Wait for a container's end; its exit code."""
        return int(self("wait", name).ok().out)

    def remove(self, *names: str) -> None:
        self("rm", "-f", "-t", "0", *names).ok()
