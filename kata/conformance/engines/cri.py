"""containerd's CRI plugin, spoken to as a kubelet does; every subject is a runtime handler."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import shutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kata.conformance.engines import host
from kata.conformance.engines.containerd import Containerd
from kata.conformance.engines.cri_messages import decode, encode
from kata.conformance.engines.host import CLIENT, SLEEP, NetworkNamespace
from kata.conformance.engines.oci_image import write_image
from kata.errors import HostError
from kata.transport.grpc_gate import GrpcClient

IMAGE = "localhost/busybox:conformance"
#: Where distributions put the plugins.
CNI = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))
RUNNING, EXITED = 1, 2  #: states of a container
CONTAINER, NODE = 1, 2  #: modes of a namespace; 0 is the pod's

CONFIG = """
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{image}"
  stream_server_port = "0"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni}"
    conf_dir = "{folder}/net.d"
"""
RUNTIME = """\
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{name}]
    runtime_type = "io.containerd.runc.v2"
    pod_annotations = ["io.katacontainers.*"]
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{name}.options]
      BinaryName = "{program}"
      Root = "{folder}/runtime/{name}"
"""
NETWORK = {
    "cniVersion": "0.4.0", "name": "conformance", "plugins": [
        {"type": "bridge", "bridge": "cri0", "isGateway": True, "ipMasq": False,
         "ipam": {"type": "host-local", "subnet": "10.88.7.0/24", "routes": [{"dst": "0.0.0.0/0"}]}},
    ],
}  # fmt: skip


def plugins() -> Path | None:
    """The folder of the CNI plugins of this host."""
    return next((folder for folder in CNI if (folder / "bridge").exists()), None)


class Cri:
    """containerd with its CRI plugin, once per run."""

    def __init__(self, folder: Path, data: Path, tag: str, runtimes: Mapping[str, Sequence[str]]) -> None:
        """:param runtimes: by name, each its command and arguments."""
        self.folder, self.data = folder, data
        self.netns = NetworkNamespace(f"{tag}k")
        self._runtimes = runtimes
        self._containerd: Containerd | None = None
        self._client: GrpcClient | None = None
        self._runner = asyncio.Runner()
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start containerd with the image in it.

        :raise HostError: something is not installed, or not to be started.
        """
        if (cni := plugins()) is None:
            raise HostError("containerd's CRI needs CNI plugins, which are not installed",
                            "install containernetworking-plugins")
        programs, networks = self.folder / "runtimes", self.folder / "net.d"
        for path in (programs, networks, self.data):
            path.mkdir(parents=True, exist_ok=True)
        (networks / "conformance.conflist").write_text(json.dumps(NETWORK))
        config = CONFIG.format(image=IMAGE, cni=cni, folder=self.folder) + "".join(
            RUNTIME.format(name=name, program=host.wrapper(programs, name, argv), folder=self.folder)
            for name, argv in self._runtimes.items())
        containerd = self._containerd = Containerd(self.folder, self.data / "containerd", self.netns, config)
        self.netns.create()
        containerd.start()
        root = host.image_root(self.data / "root")
        tar, image = self.data / "root.tar", self.data / "image.tar"
        host.run(["tar", "-C", str(root), "-cf", str(tar), "."]).ok()
        write_image(image, IMAGE, tar, ["/bin/sh", "-c", SLEEP])
        containerd.ctr("images", "import", str(image), namespace="k8s.io").ok()
        containerd.daemon.stop()  # the plugin lists images when it starts
        containerd.daemon.start()

        async def connect() -> GrpcClient:  # it belongs to the loop that it is made in
            return GrpcClient(str(containerd.address))

        self._client = self._runner.run(connect())

    def __call__(self, method: str, deadline: float = CLIENT, **values: Any) -> dict[str, Any]:
        """One request of ``RuntimeService``, its fields as arguments.

        :raise KataError: containerd refused; with its text.
        """
        assert self._client is not None
        payload = encode(f"{method}Request", values)
        with self._lock:
            reply = self._runner.run(self._client.call_raw("runtime.v1.RuntimeService", method, payload, deadline))
        return decode(f"{method}Response", reply)

    def stop(self) -> None:
        """Stop it.

        :raise Left: something of a container is still there.
        """
        problems: list[str] = []
        if self._client is not None:
            self._runner.run(self._client.close())
        self._runner.close()
        if self._containerd is not None:
            problems += host.processes([str(self.folder)], (self._containerd.daemon.pid,))
            try:
                self._containerd.daemon.stop()
            except HostError as e:
                problems.append(str(e))
        for place in (self.folder, self.data):
            for mount in reversed(host.mounts(str(place))):
                problems.append(f"mount {mount}")
                host.run(["umount", "--lazy", mount])
        self.netns.delete()
        shutil.rmtree(self.data, ignore_errors=True)
        if problems:
            raise host.Left("left behind by pods: " + "; ".join(problems))


class Pod:
    """One pod of a subject; use it as a context manager: its end removes it."""

    _numbers = itertools.count(1)

    def __init__(self, cri: Cri, runtime: str, linux: Mapping[str, Any] | None = None, **config: Any) -> None:
        """:param linux: of its configuration; ``config``: the rest of it."""
        self.cri = cri
        number = next(self._numbers)
        self.config = {
            "metadata": {"name": f"pod{number}-{runtime}", "uid": f"u{number}", "namespace": "conformance"},
            "hostname": "podhost", "log_directory": str(cri.folder / f"log{number}"),
            "linux": dict(linux or {"security_context": {"namespace_options": {"pid": CONTAINER}}}), **config,
        }  # fmt: skip
        Path(str(self.config["log_directory"])).mkdir()
        self.id: str = cri("RunPodSandbox", config=self.config, runtime_handler=runtime)["pod_sandbox_id"]

    def create(self, name: str, script: str = SLEEP, **config: Any) -> str:
        """Create a container that runs a shell script; its id."""
        full = {"metadata": {"name": name}, "image": {"image": IMAGE}, "command": ["/bin/sh", "-c", script],
                "log_path": f"{name}.log", **config}  # fmt: skip
        return str(self.cri("CreateContainer", pod_sandbox_id=self.id, config=full,
                            sandbox_config=self.config)["container_id"])

    def start(self, name: str, script: str = SLEEP, **config: Any) -> str:
        """Create and start a container; its id."""
        id = self.create(name, script, **config)
        self.cri("StartContainer", container_id=id)
        return id

    def exec(self, id: str, script: str, timeout: int = 60) -> tuple[int, str, str]:
        """A shell script by ExecSync: exit code, output, errors."""
        got = self.cri("ExecSync", container_id=id, cmd=["/bin/sh", "-c", script], timeout=timeout)
        out, err = (base64.b64decode(got[stream]).decode(errors="replace") for stream in ("stdout", "stderr"))
        return got["exit_code"], out, err

    def status(self, id: str) -> dict[str, Any]:
        status: dict[str, Any] = self.cri("ContainerStatus", container_id=id)["status"]
        return status

    def sandbox(self) -> dict[str, Any]:
        status: dict[str, Any] = self.cri("PodSandboxStatus", pod_sandbox_id=self.id)["status"]
        return status

    def log(self, name: str) -> list[str]:
        """Lines of a container's log: ``stdout TEXT`` or ``stderr TEXT``."""
        lines = Path(str(self.config["log_directory"]), f"{name}.log").read_text().splitlines()
        return [f"{stream} {text}" for _, stream, _, text in (line.split(" ", 3) for line in lines)]

    def remove(self) -> None:
        self.cri("StopPodSandbox", pod_sandbox_id=self.id)
        self.cri("RemovePodSandbox", pod_sandbox_id=self.id)

    def __enter__(self) -> Pod:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()
