"""A virtual machine with the agent as PID 1, and nothing of the host side but QEMU."""

from __future__ import annotations

import secrets
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from kata import hostfacts, nvdimm
from kata.assets import store
from tests.agent.client import Client

SHARED = "/run/kata/shared"
MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")


class Machine:
    """A running QEMU.

    :param folder: for sockets, console, share.
    :param image: boot from the root image instead of the initrd.
    :param tokenless: its kernel command line has no token, as one that a Kata 1.x runtime writes.
    """

    def __init__(self, folder: Path, *, image: bool = False, memory: int = 256, cpus: int = 1,
                 level: str = "debug", tokenless: bool = False) -> None:
        self.folder = folder
        self.token = secrets.token_bytes(32)
        self.share = folder / "share"
        self.share.mkdir()
        self.console = folder / "console.log"
        self._clients: list[Client] = []
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(folder / "channel.sock"))
        listener.listen(1)
        self.disk = folder / "disk.img"
        with self.disk.open("wb") as file:
            file.truncate(16 << 20)
        with open(f"{self.disk}.scsi", "wb") as file:
            file.truncate(1 << 20)
        subprocess.run(["mkfs.ext4", "-q", str(self.disk)], check=True, stdin=subprocess.DEVNULL)
        words = ["console=ttyS0", "quiet", "reboot=t", "panic=-1", "no_timer_check", "rcupdate.rcu_expedited=1",
                 f"agent.log={level}", "agent.hotplug_timeout=5"]
        if not tokenless:
            words.append(f"agent.channel_token={self.token.hex()}")
        khz = hostfacts.collect().tsc_khz
        if khz:
            words += [f"tsc_early_khz={khz}", "tsc=reliable"]
        root: list[str] = []
        if image:
            words += ["root=/dev/vda", "ro"]
            file = _asset("image")
            drive = f"if=none,id=root,format=raw,readonly=on,offset={nvdimm.read(file).data},file={file}"
            root = ["-initrd", _asset("boot-initrd"), "-drive", drive,
                    "-device", "virtio-blk-pci,drive=root,serial=kata-root"]
        else:
            root = ["-initrd", _asset("initrd")]
        argv = [
            "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            # With a thread per processor QEMU may abort when one is plugged in (kata/vm/argv.py).
            "-machine", "q35", "-accel", "tcg,thread=single,tb-size=32", "-cpu", "max,-erms,-fsrm",
            "-smp", f"cpus={cpus},maxcpus=2,sockets=2,cores=1,threads=1",
            "-m", f"{memory}M,slots=4,maxmem=2G", "-kernel", _asset("kernel"), *root, "-append", " ".join(words),
            "-chardev", f"file,id=console,path={self.console}", "-serial", "chardev:console",
            "-device", "virtio-serial-pci,max_ports=2",
            "-chardev", f"socket,id=channel,fd={listener.fileno()},server=on,wait=off",
            "-device", "virtserialport,chardev=channel,name=agent.channel.0",
            "-fsdev", f"local,id=share,path={self.share},security_model=passthrough,multidevs=remap",
            "-device", "virtio-9p-pci,fsdev=share,mount_tag=kataShared",
            "-device", "virtio-balloon-pci,free-page-reporting=on", "-device", "virtio-scsi-pci,id=scsi0",
            "-drive", f"if=none,id=d2,format=raw,file={self.disk}.scsi",
            "-device", "scsi-hd,drive=d2,bus=scsi0.0,serial=kata-scsi-1",
            "-drive", f"if=none,id=d1,format=raw,file={self.disk}",
            "-device", "virtio-blk-pci,drive=d1,serial=kata-disk-1",
            "-chardev", f"socket,id=qmp,path={folder}/qmp.sock,server=on,wait=off", "-mon", "chardev=qmp,mode=control",
        ]
        for number in range(3):
            argv += ["-device", f"pcie-root-port,id=port{number},chassis={number + 1},slot={number + 1},io-reserve=0"]
        for number, mac in enumerate(MACS):
            argv += ["-netdev", f"user,id=n{number},restrict=on,ipv4=on,ipv6=on", "-device",
                     f"virtio-net-pci,netdev=n{number},mac={mac},romfile="]
        with (folder / "qemu.log").open("wb") as log:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            pass_fds=[listener.fileno()])
        listener.close()

    def connect(self, timeout: float = 60.0) -> Client:
        """A client after the handshake; a guest that is still booting lets it wait."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(str(self.folder / "channel.sock"))
        try:
            client = Client(sock, self.token, timeout)
        except TimeoutError:
            raise AssertionError(f"no agent:\n{self.log()}") from None
        self._clients.append(client)
        return client

    def qmp(self, command: str, **arguments: object) -> object:
        """One QMP command."""
        import json

        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(20)
            sock.connect(str(self.folder / "qmp.sock"))
            stream = sock.makefile("rwb", buffering=0)
            answer: dict[str, object] = {}
            for step in ({"execute": "qmp_capabilities"}, {"execute": command, "arguments": arguments}):
                stream.write(json.dumps(step).encode())
                answer = {}
                while "return" not in answer and "error" not in answer:
                    answer = json.loads(stream.readline())
            assert "return" in answer, answer
            return answer["return"]

    def log(self) -> str:
        """The end of the console."""
        return (self.folder / "qemu.log").read_text() + self.console.read_text(errors="replace")[-5000:]

    def mount_share(self, client: Client) -> None:
        """What the host does first: CreateSandbox with the share."""
        from kata_agent.protocol import agent_pb2

        client.CreateSandbox(hostname="guesty", sandbox_id="sb", storages=[agent_pb2.Storage(
            driver="9p", source="kataShared", fstype="9p", mount_point=SHARED,
            options=["trans=virtio", "version=9p2000.L", "cache=mmap", "msize=524288"])])

    def copy_root(self, source: Path, name: str) -> str:
        """A root file system in the share; its path in the guest."""
        shutil.copytree(source, self.share / name, symlinks=True)
        return f"{SHARED}/{name}"

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)


def _asset(kind: str) -> str:
    path = store.selected_path(kind)
    assert path, f"no {kind}: run `kata image build --kind all` first"
    return path


def wait_for(what: str, probe: object, seconds: float = 20.0) -> None:
    """Ask until it is true."""
    end = time.monotonic() + seconds
    while not probe():  # type: ignore[operator]
        assert time.monotonic() < end, what
        time.sleep(0.05)
