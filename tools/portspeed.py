#!/usr/bin/python3.11 -ISB
"""How fast a virtio-serial port of the guest is, with nothing of Kata's on it but machine, kernel and initrd.

``python tools/portspeed.py [--megabytes N] [--json]`` boots the machine that
the present configuration plans, with this very file as the guest's first
program, and lets the two ends of the agent's port exchange bytes by plain
reads and writes of several sizes.  What a container's streams carry is
measured against the best of these.

In the guest, where it is ``/portspeed``, it serves the port.
"""

from __future__ import annotations

import os
import struct
import sys

TYPE_CHECKING = False  # the guest has no typing in its image
if TYPE_CHECKING:
    from typing import Any

COMMAND = struct.Struct("!4sIQ")  #: what, block in bytes, bytes in all
PAGE = 4096  #: bytes of one receive buffer of the guest's driver
LARGEST_WRITE = 32 << 10  #: bytes the guest's driver takes by one write


# --- in the guest ------------------------------------------------------------------------


def guest() -> None:
    sys.path.insert(0, "/usr/lib/kata")
    from kata_agent import boot
    from kata_agent.boot import Clock
    from kata_agent.settings import Settings

    boot.guest(Settings(), Clock())
    while (path := boot.find_port("agent.channel.0")) is None:
        pass
    port = os.open(path, os.O_RDWR)
    serve = {b"writ": guest_write, b"wrtv": guest_writev, b"read": guest_read, b"rdv_": guest_readv}
    while True:
        head = b""
        while len(head) < COMMAND.size:
            head += os.read(port, COMMAND.size - len(head))
        what, block, total = COMMAND.unpack(head)
        before = os.times()
        serve[what](port, block, total)
        after = os.times()
        os.write(port, struct.pack("!d", after.user + after.system - before.user - before.system))


def guest_write(port: int, block: int, total: int) -> None:
    data = memoryview(bytes(block))
    while total:
        total -= os.write(port, data[: min(block, total)])


def guest_writev(port: int, block: int, total: int) -> None:
    pieces = [bytes(LARGEST_WRITE)] * (block // LARGEST_WRITE)
    while total:
        total -= os.writev(port, pieces)


def guest_read(port: int, block: int, total: int) -> None:
    while total:
        total -= len(os.read(port, min(block, total)))


def guest_readv(port: int, block: int, total: int) -> None:
    view = memoryview(bytearray(block))
    pages = [view[i : i + PAGE] for i in range(0, block, PAGE)]
    os.set_blocking(port, False)
    import select

    poll = select.poll()
    poll.register(port, select.POLLIN)
    while total:
        try:
            total -= os.readv(port, pages)
        except BlockingIOError:
            poll.poll()
    os.set_blocking(port, True)


# --- on the host ---------------------------------------------------------------------------


class Ended(Exception):
    """The machine is gone; the text is the end of its console."""


def main() -> int:
    import argparse
    import json

    parser = argparse.ArgumentParser(description="How fast a bare virtio-serial port is here.")
    parser.add_argument("--megabytes", type=int, default=64, help="of each measurement (64)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    try:
        rows = measure(options.megabytes << 20)
    except Ended as e:
        print(f"portspeed: {e}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
    print(table(rows))
    return 0


def table(rows: list[dict[str, Any]]) -> str:
    """As text; QEMU's CPU time includes the guest's."""
    lines = [f"{'direction':10}{'by':8}{'block':>9}{'MB/s':>8}{'guest CPU s':>13}{'QEMU CPU s':>12}"]
    lines += [f"{row['direction']:10}{row['by']:8}{row['block']:9}{row['mb_per_s']:8.1f}"
              f"{row['guest_cpu_s']:13.2f}{row['qemu_cpu_s']:12.2f}" for row in rows]
    return "\n".join(lines)


#: (direction as a container's stream, what the guest does, block in bytes).  No splice: Linux 6.1 crashes in it, in the
#: port's driver, now and then.
CASES = (
    ("stdout", "writ", 4 << 10), ("stdout", "writ", 32 << 10), ("stdout", "wrtv", 256 << 10),
    ("stdin", "read", 4 << 10), ("stdin", "rdv_", 64 << 10), ("stdin", "rdv_", 256 << 10),
)
NAMES = {"writ": "write", "wrtv": "writev", "read": "read", "rdv_": "readv"}


def measure(total: int) -> list[dict[str, Any]]:
    """One row per case; ``total`` bytes each."""
    import socket
    import tempfile
    import threading
    import time

    with tempfile.TemporaryDirectory(prefix="portspeed-") as folder:
        process = start_machine(folder)
        try:
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(f"{folder}/channel")
            sock.settimeout(60)
            # The guest opens the port some time after we connect: what is sent before waits there.
            rows: list[dict[str, Any]] = []
            buffer = bytearray(1 << 20)
            for case in (("stdout", "writ", 4096), *CASES):
                direction, what, block = case
                size = total if rows else 1 << 20
                began, cpu = time.monotonic(), cpu_seconds(process.pid)
                sock.sendall(COMMAND.pack(what.encode(), block, size))
                if direction == "stdin":
                    sender = threading.Thread(target=send, args=(sock, size))
                    sender.start()
                    answer = receive(sock, buffer, 8)
                    sender.join()
                else:
                    receive(sock, buffer, size)
                    answer = None
                took = time.monotonic() - began
                if answer is None:
                    answer = receive(sock, buffer, 8)
                rows.append({
                    "direction": direction, "by": NAMES[what], "block": block, "mb_per_s": size / 1e6 / took,
                    "guest_cpu_s": struct.unpack("!d", answer)[0], "qemu_cpu_s": cpu_seconds(process.pid) - cpu,
                })
            return rows[1:]  # the first one waited for the boot
        except (Ended, ConnectionError, BrokenPipeError) as e:
            with open(f"{folder}/console", encoding="utf-8", errors="replace") as f:
                raise Ended(f"the machine ended; its console ends with:\n{f.read()[-2000:]}") from e
        finally:
            process.kill()
            process.wait()


def send(sock: object, size: int) -> None:
    data = bytes(1 << 20)
    while size:
        size -= sock.send(data[: min(size, len(data))])  # type: ignore[attr-defined]


def receive(sock: object, buffer: bytearray, size: int) -> bytes:
    """The last bytes of ``size``."""
    view, count = memoryview(buffer), 0
    while size:
        count = sock.recv_into(view, min(size, len(buffer)))  # type: ignore[attr-defined]
        if not count:
            raise Ended
        size -= count
    return bytes(view[:count])


def cpu_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat", "rb") as f:
        fields = f.read().rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start_machine(folder: str):  # type: ignore[no-untyped-def]
    """QEMU as the configuration plans it, this file in its initrd; its channel is ``folder/channel``."""
    import json
    import pathlib
    import subprocess
    import uuid

    from kata import wire
    from kata.assets import cpio
    from kata.contract import MachinePlan
    from kata.planjson import from_json
    from kata.record import replace
    from kata.vm.argv import Endpoints, qemu_argv

    config = {"ociVersion": "1.0.2", "process": {"args": ["true"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
              "root": {"path": "rootfs"}, "linux": {"namespaces": [{"type": "network"}, {"type": "mount"}]}}
    os.makedirs(f"{folder}/bundle/rootfs")
    pathlib.Path(f"{folder}/bundle/config.json").write_text(json.dumps(config))
    kata = str(pathlib.Path(sys.executable).parent / "kata")
    planned = subprocess.run([kata, "plan", f"{folder}/bundle"], stdout=subprocess.PIPE, check=True)
    plan = from_json(MachinePlan, json.loads(planned.stdout)["sandbox"]["machine"])
    os.makedirs(f"{folder}/tree")
    program = pathlib.Path(f"{folder}/tree/portspeed")
    program.write_bytes(pathlib.Path(__file__).read_bytes())
    program.chmod(0o755)
    cpio.pack(pathlib.Path(f"{folder}/tree"), pathlib.Path(f"{folder}/extra.cpio"))
    initrd = plan.initrd or "/var/lib/kata/assets/selected/initrd"
    cpio.join([pathlib.Path(initrd), pathlib.Path(f"{folder}/extra.cpio")], pathlib.Path(f"{folder}/initrd"))
    plan = replace(plan, initrd=f"{folder}/initrd", image="",
                   kernel_params=(*plan.kernel_params, "rdinit=/portspeed"))
    os.makedirs(f"{folder}/share")
    channel, qmp = wire.listening_socket(f"{folder}/channel"), wire.listening_socket(f"{folder}/qmp")
    for sock in (channel, qmp):
        os.set_inheritable(sock.fileno(), True)
    ends = Endpoints("portspeed", channel.fileno(), qmp.fileno(), f"{folder}/console", f"{folder}/share",
                     str(uuid.uuid4()), "0" * 64)
    process = subprocess.Popen(qemu_argv(plan, ends), pass_fds=(channel.fileno(), qmp.fileno()))
    channel.close()
    qmp.close()
    return process


if __name__ == "__main__":
    if os.getpid() == 1:
        guest()
    else:
        sys.exit(main())
