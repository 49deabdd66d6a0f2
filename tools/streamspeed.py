"""How fast a container's streams are, and what they cost.

``python tools/streamspeed.py [--megabytes N] [--raw] [--json]`` starts one
container and measures, by ``kata exec``: standard output and standard input
in MB/s with the CPU seconds of each part, the same through a checksum on both
sides, and the round trip of one small write.  With ``--raw`` the bare port is
measured in the same run (:mod:`portspeed`), and the ratio is given.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import demo
import portspeed

KATA = str(Path(sys.executable).parent / "kata")
MB = 10**6
BLOCK = 1 << 20
ROUND_TRIPS = 100
TICK = os.sysconf("SC_CLK_TCK")


class Sandbox:
    """A running container with a sandbox of its own."""

    def __init__(self, root: str, id: str) -> None:
        self.root, self.id = root, id
        key = hashlib.sha256(f"{os.path.realpath(root)}\0{id}".encode()).hexdigest()[:20]
        record = json.loads(Path(f"/run/kata/sandboxes/{key}/sandbox.json").read_text())
        self.proxy, self.qemu = int(record["proxy"]["pid"]), int(record["qemu"]["pid"])

    def exec(self, script: str, **kwargs: Any) -> subprocess.Popen[bytes]:
        argv = [KATA, "--root", self.root, "exec", self.id, "/bin/sh", "-c", script]
        return subprocess.Popen(argv, **kwargs)

    def cpu(self) -> dict[str, float]:
        """CPU seconds so far: ``guest`` is what QEMU's vCPU thread ran, ``qemu`` its other threads."""
        threads = {"guest": 0.0, "qemu": 0.0}
        for task in Path(f"/proc/{self.qemu}/task").iterdir():
            name = (task / "comm").read_text()
            threads["guest" if name.startswith(("CPU", "ALL CPUs")) else "qemu"] += _cpu(task / "stat")
        return {**threads, "proxy": _cpu(Path(f"/proc/{self.proxy}/stat"))}


def _cpu(stat: Path) -> float:
    fields = stat.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


@contextmanager
def sandbox() -> Iterator[Sandbox]:
    """Start a container; at the end it is removed."""
    with tempfile.TemporaryDirectory(prefix="streamspeed-") as folder:
        base, root, id = Path(folder), f"{folder}/root", f"streamspeed-{os.getpid()}"
        (base / "bundle").mkdir()
        demo.make_rootfs(base / "bundle/rootfs")
        demo.make_bundle(base / "bundle", ["/bin/sh", "-c", "while :; do sleep 3600; done"])
        try:
            with open(base / "log", "wb") as log:
                done = subprocess.run([KATA, "--root", root, "run", "--detach", "--bundle", str(base / "bundle"), id],
                                      stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False)
            if done.returncode:
                raise SystemExit(f"streamspeed: {(base / 'log').read_text(errors='replace')}")
            yield Sandbox(root, id)
        finally:
            with open(base / "log", "ab") as log:
                subprocess.run([KATA, "--root", root, "delete", "--force", id], stdout=log, stderr=log, check=False)
            shutil.rmtree(root, ignore_errors=True)


def row(box: Sandbox, name: str, size: int, process: subprocess.Popen[bytes], carry: Any) -> dict[str, Any]:
    """Measure ``carry()``, which moves ``size`` bytes through ``process`` and waits for its end."""
    cpu, began = box.cpu(), time.monotonic()
    carry()
    _pid, status, usage = os.wait4(process.pid, 0)
    took = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"streamspeed: {name} ended with code {process.returncode}")
    spent = {part: round(seconds - cpu[part], 2) for part, seconds in box.cpu().items()}
    # The verb becomes the shim: its own start is in here.
    return {"what": name, "mb_per_s": size / MB / took, "cpu_s": {**spent, "shim": usage.ru_utime + usage.ru_stime}}


def stdout(box: Sandbox, size: int, check: bool) -> dict[str, Any]:
    count = size // BLOCK
    script = f"read x; dd if=/dev/zero bs={BLOCK} count={count} 2>/dev/null"
    if check:
        # Busybox has no fast source of bytes that differ: the file is read again and again.
        script = (f"head -c {BLOCK} /dev/urandom >/tmp/b; for i in $(seq {count}); do cat /tmp/b; done >/tmp/all; "
                  "read x; cat /tmp/all; sha256sum </tmp/all >&2; rm /tmp/all")
    process = box.exec(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                       stderr=subprocess.PIPE if check else None)
    assert process.stdin and process.stdout
    digest, total, source = hashlib.sha256(), 0, process.stdout
    _settle(box)

    def carry() -> None:
        nonlocal total
        assert process.stdin
        process.stdin.write(b"\n")
        process.stdin.close()
        while data := os.read(source.fileno(), BLOCK):
            total += len(data)
            if check:
                digest.update(data)
        if process.stderr:
            said = process.stderr.read().split()[0].decode()
            if said != digest.hexdigest():
                raise SystemExit(f"streamspeed: the guest sent {said}, {digest.hexdigest()} came")

    result = row(box, "stdout, sums compared" if check else "stdout", size, process, carry)
    if total != size:
        raise SystemExit(f"streamspeed: {total} bytes of {size} came out")
    return result


def stdin(box: Sandbox, size: int, check: bool) -> dict[str, Any]:
    command = "sha256sum" if check else f"dd of=/dev/null bs={BLOCK} 2>/dev/null; echo x"
    process = box.exec(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin and process.stdout
    block = os.urandom(BLOCK)
    digest = hashlib.sha256()
    _settle(box)

    def carry() -> None:
        assert process.stdin and process.stdout
        for _ in range(size // BLOCK):
            view = memoryview(block)
            while view:
                view = view[os.write(process.stdin.fileno(), view):]
            if check:
                digest.update(block)
        process.stdin.close()
        said = process.stdout.read().split()[0].decode()
        if check and said != digest.hexdigest():
            raise SystemExit(f"streamspeed: {digest.hexdigest()} was sent, the guest got {said}")

    return row(box, "stdin, sums compared" if check else "stdin", size, process, carry)


def _settle(box: Sandbox) -> None:
    """Let the exec before begin, so that its start is not measured: an exec of its own takes longer."""
    box.exec("true", stdin=subprocess.DEVNULL).wait()


def round_trip(box: Sandbox) -> dict[str, Any]:
    """Milliseconds from one byte in to the same byte out."""
    process = box.exec("cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin and process.stdout
    times = []
    for number in range(ROUND_TRIPS + 10):
        began = time.perf_counter()
        os.write(process.stdin.fileno(), b"k")
        os.read(process.stdout.fileno(), 1)
        if number >= 10:
            times.append((time.perf_counter() - began) * 1e3)
    process.stdin.close()
    process.wait()
    times.sort()
    p95 = times[len(times) * 95 // 100]
    return {"what": "round trip of a byte", "median_ms": statistics.median(times), "p95_ms": p95}


def both(box: Sandbox, size: int) -> dict[str, Any]:
    """In by standard input and out by standard output at once."""
    process = box.exec("cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin and process.stdout
    sink, source = process.stdin, process.stdout
    _settle(box)

    def feed() -> None:
        block = bytes(BLOCK)
        for _ in range(size // BLOCK):
            sink.write(block)
        sink.close()

    def carry() -> None:
        feeder = threading.Thread(target=feed)
        feeder.start()
        while os.read(source.fileno(), BLOCK):
            pass
        feeder.join()

    return row(box, "through cat", size, process, carry)


def measure(size: int, raw: bool) -> dict[str, Any]:
    bare = portspeed.measure(size) if raw else []
    with sandbox() as box:
        rows = [round_trip(box), stdout(box, size, False), stdin(box, size, False), both(box, size),
                stdout(box, size, True), stdin(box, size, True)]
    for entry in rows:
        if entry["what"] in ("stdin", "stdout") and bare:
            best = max(r["mb_per_s"] for r in bare if r["direction"] == entry["what"])
            entry["of_raw"] = entry["mb_per_s"] / best
    return {"streams": rows, "port": bare}


def main() -> int:
    parser = argparse.ArgumentParser(description="How fast a container's streams are.")
    parser.add_argument("--megabytes", type=int, default=100, help="of each measurement, in MiB (100)")
    parser.add_argument("--raw", action="store_true", help="measure the bare port too")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    result = measure(options.megabytes << 20, options.raw)
    if options.json:
        print(json.dumps(result, indent=1))
        return 0
    if result["port"]:
        print(portspeed.table(result["port"]), end="\n\n")
    for entry in result["streams"]:
        print(entry["what"], end=": ")
        print(", ".join(f"{key} {value:.2f}" for key, value in entry.items() if isinstance(value, float)), end="")
        print("".join(f"; {part} {seconds:.2f} s CPU" for part, seconds in entry.get("cpu_s", {}).items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
