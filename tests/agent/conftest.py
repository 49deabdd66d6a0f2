"""The agent on this machine, in pid and mount namespaces of its own; needs root."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata_agent.protocol import guest_pb2, oci_pb2
from tests.agent.client import Client

TOKEN = bytes(range(32))
AGENT = Path(__file__).resolve().parents[2] / "agent"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(item.fspath).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.root)
            if os.geteuid() != 0:
                item.add_marker(pytest.mark.skip(reason="needs root"))


class Agent:
    """A running agent.

    :param token: of its channel; b"" for none.
    """

    def __init__(self, folder: Path, token: bytes = TOKEN) -> None:
        self.folder = folder
        self.socket = folder / "channel.sock"
        self.log = folder / "agent.log"
        self._clients: list[Client] = []
        # A second unshare makes the cgroup2 hierarchy invisible to it: tests shall not touch the host's.
        words = [f"agent.channel=unix:{self.socket}", f"agent.run_dir={folder}/run", "agent.log=debug",
                 "agent.hotplug_timeout=1", *([f"agent.channel_token={token.hex()}"] if token else [])]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                ["unshare", "--pid", "--fork", "--mount", "--net", "--uts", "--ipc", "--mount-proc", "--kill-child",
                 sys.executable, "-m", "kata_agent", *words],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=AGENT,
                env={"PATH": os.environ["PATH"], "PYTHONPATH": str(AGENT)})

    def wait(self) -> None:
        """Wait until it listens."""
        self._socket().close()

    def connect(self) -> Client:
        client = Client(self._socket(), TOKEN)
        self._clients.append(client)
        return client

    def _socket(self) -> socket.socket:
        deadline = time.monotonic() + 20
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        while True:
            try:
                sock.connect(str(self.socket))
                break
            except (FileNotFoundError, ConnectionRefusedError):
                assert self._process.poll() is None, self.log.read_text()
                assert time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.01)  # the socket of a process that is starting has no event to wait for
        return sock

    @property
    def pid(self) -> int:
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return int(children[0])

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(10)


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    agent = Agent(tmp_path_factory.mktemp("agent"))
    try:
        yield agent
    finally:
        agent.close()


@pytest.fixture
def client(agent: Agent, request: pytest.FixtureRequest) -> Iterator[Client]:
    before = request.session.testsfailed
    client = agent.connect()
    yield client
    if request.session.testsfailed > before:
        print(agent.log.read_text()[-4000:])
    client.close()
    cleaner = agent.connect()
    for info in cleaner.guest.ListAll().containers:
        cleaner.RemoveContainer(container_id=info.container_id)
    cleaner.close()


@pytest.fixture(scope="session")
def busybox_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system of busybox and a few files of /etc."""
    root = tmp_path_factory.mktemp("image") / "rootfs"
    for folder in ("bin", "etc", "proc", "sys", "dev", "tmp", "root", "home/alice", "usr/bin"):
        (root / folder).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    busybox = shutil.which("busybox")
    assert busybox is not None, "busybox-static is needed"
    shutil.copy(busybox, root / "bin/busybox")
    for name in subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split():
        if name != "busybox":
            (root / "bin" / name).symlink_to("busybox")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1001::/home/alice:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nalice:x:1001:\nstaff:x:50:alice\naudio:x:29:\n")
    return root


@pytest.fixture
def rootfs(busybox_root: Path, tmp_path: Path) -> Path:
    """A copy of that root for one test."""
    root = tmp_path / "rootfs"
    shutil.copytree(busybox_root, root, symlinks=True)
    return root


_counter = iter(range(1, 1 << 30))


class Box:
    """One container: its specification until :meth:`create`, then a handle."""

    def __init__(self, client: Client, rootfs: Path, args: list[str]) -> None:
        self.client = client
        self.id = f"c{next(_counter)}"
        self.extras = guest_pb2.PrepareContainerRequest(container_id=self.id)
        self.spec = oci_pb2.Spec(Version="1.0.2")
        self.spec.Root.Path = str(rootfs)
        process = self.spec.Process
        process.Args.extend(args)
        process.Env.extend(["PATH=/bin:/usr/bin"])
        process.Cwd = "/"
        for kind in ("pid", "mount", "ipc", "uts"):
            self.spec.Linux.Namespaces.add(Type=kind)
        for type_, target, options in (
            ("proc", "/proc", ()),
            ("tmpfs", "/dev", ("nosuid", "strictatime", "mode=755", "size=65536k")),
            ("devpts", "/dev/pts", ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")),
        ):
            self.spec.Mounts.add(type=type_, source=type_, destination=target, options=options)
        self.string_user: tuple[str, str, list[str]] | None = None

    def create(self, **fields: object) -> Box:
        self.client.guest.PrepareContainer(self.extras)
        self.client.CreateContainer(container_id=self.id, exec_id=self.id, OCI=self.spec, **fields)
        return self

    def start(self) -> Box:
        self.client.StartContainer(container_id=self.id)
        return self

    def run(self, stdin: bytes | None = b"", **fields: object) -> tuple[int, str, str]:
        """Create, start, feed, wait: (status, stdout, stderr)."""
        self.create(**fields).start()
        return self.finish(stdin)

    def finish(self, stdin: bytes | None = b"", exec_id: str = "") -> tuple[int, str, str]:
        from tests.agent.client import read_all

        if stdin is not None:
            self.client.guest.WriteStream(container_id=self.id, exec_id=exec_id, data=stdin, eof=True)
        out = read_all(self.client, self.id, exec_id, 1).decode()
        err = read_all(self.client, self.id, exec_id, 2).decode()
        status = self.client.guest.WaitProcess(container_id=self.id, exec_id=exec_id).status
        return status, out, err

    def exec(self, args: list[str], exec_id: str = "", **fields: object) -> tuple[int, str, str]:
        exec_id = exec_id or f"e{next(_counter)}"
        process = oci_pb2.Process(Args=args, Env=["PATH=/bin:/usr/bin"], Cwd="/")
        for name, value in fields.items():
            if name == "caps":
                for kind in ("Bounding", "Effective", "Permitted"):
                    getattr(process.Capabilities, kind).extend(value)  # type: ignore[arg-type]
            elif name == "User":
                process.User.CopyFrom(value)  # type: ignore[arg-type]
            else:
                setattr(process, name, value)
        self.client.ExecProcess(container_id=self.id, exec_id=exec_id, process=process)
        return self.finish(b"", exec_id)


@pytest.fixture
def box(client: Client, rootfs: Path):  # type: ignore[no-untyped-def]
    """Makes :class:`Box`."""
    return lambda *args: Box(client, rootfs, list(args))
