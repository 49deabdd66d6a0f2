"""What only a machine of its own can show: another kernel, its size, its parts, its end."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from harness.leaks import SANDBOXES, sandbox_key
from harness.oci import Oci
from harness.proc import Result, run
from harness.text import compare, script, sections
from harness.wait import eventually

pytestmark = pytest.mark.vm_only

MIB = 1 << 20


def test_own_kernel_and_size(oci: Oci) -> None:
    """Another kernel; default memory and processors; what limits add; the container's limit inside."""
    check = script(
        kernel="uname -r; cat /proc/sys/kernel/random/boot_id",
        cpus="nproc",
        memory="awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo",
    )
    host_boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with oci.running(oci.bundle()) as c:
        plain = sections(c.sh(check).ok().stdout)
    assert host_boot not in plain["kernel"]
    bundle = oci.bundle()
    bundle.linux["resources"].update({"memory": {"limit": 256 * MIB}, "cpu": {"quota": 100000, "period": 100000}})
    with oci.running(bundle) as c:
        grown = sections(c.sh(check).ok().stdout)
        more = int(grown["memory"]) - int(plain["memory"])
        assert 200 <= more <= 260, f"256 MiB of limit added {more} MiB to the machine"
        compare(grown, {"cpus": str(min(int(plain["cpus"]) + 1, os.cpu_count() or 1))})


def test_sandbox_folder(oci: Oci) -> None:
    """The folder of a sandbox: root only, its sockets and logs; a folder less after delete."""
    with oci.running(oci.bundle()) as c:
        folder = SANDBOXES / sandbox_key(oci.root, c.id)
        assert folder.is_dir() and folder.stat().st_mode & 0o077 == 0, oct(folder.stat().st_mode)
        for name in ("sandbox.json", "proxy.sock", "qmp.sock", "agent.sock", "console.log", "proxy.log"):
            path = folder / name
            assert path.exists(), name
            if not name.endswith(".log"):
                assert path.stat().st_mode & 0o077 == 0, f"{name} is open to others: {oct(path.stat().st_mode)}"
        record = json.loads((oci.root / c.id / "state.json").read_text())
        assert record["id"] == c.id


def processes_of(oci: Oci, container_id: str) -> dict[str, int]:
    """Host processes of a sandbox: name -> pid, by the sandbox's key in their command lines or files."""
    key = sandbox_key(oci.root, container_id)
    found: dict[str, int] = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            line = Path(f"/proc/{entry}/cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if "qemu-system" in line and key in line:
            found["qemu"] = int(entry)
        elif "proxy" in line and key in line:
            found["proxy"] = int(entry)
    return found


@pytest.mark.parametrize("victim", ["qemu", "proxy", "shim"])
def test_killed_part(oci: Oci, victim: str) -> None:
    """Whichever process is killed: the container ends or goes on, and delete --force leaves nothing."""
    with oci.running(oci.bundle()) as c:
        parts = {**processes_of(oci, c.id), "shim": c.pid}
        assert victim in parts, f"no {victim} found among {parts}"
        os.kill(parts[victim], signal.SIGKILL)
        if victim == "qemu":
            assert c.wait(30) not in (0,)
            eventually("the container stopped", lambda: c.status == "stopped", 20)
        elif victim == "shim":
            eventually("the container stopped", lambda: c.status == "stopped", 20)
        oci.verb("list").ok()
        c.delete("--force").ok()
        c.assert_gone()


def test_guest_panic(oci: Oci) -> None:
    """A guest whose kernel dies takes its container along: status stopped, an exit code, nothing left."""
    bundle = oci.bundle()
    bundle.linux["readonlyPaths"] = []
    bundle.process["capabilities"] = {
        k: ["CAP_SYS_ADMIN", "CAP_SYS_BOOT"] for k in ("bounding", "effective", "permitted")
    }
    bundle.mount_at("/proc")["options"] = []
    with oci.running(bundle) as c:
        # The guest may be gone before it has answered that the process runs: any outcome is right.
        c.sh("echo c > /proc/sysrq-trigger")
        assert c.wait(40) != 0
        eventually("the container stopped", lambda: c.status == "stopped", 20)
        c.delete().ok()
        c.assert_gone()


def test_mount_namespace_of_the_pid(oci: Oci) -> None:
    """Who enters the mount namespace of the container's pid meets the container's files, not the host's.

    podman copies files that way.  What exists in the guest alone cannot be written there.
    """
    bundle = oci.bundle()
    volume = bundle.path / "volume"
    volume.mkdir()
    (volume / "there").write_text("in the volume\n")
    bundle.config["mounts"] += [
        {"destination": "/vol", "type": "bind", "source": str(volume), "options": ["rbind"]},
        {"destination": "/scratch", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m"]},
    ]
    with oci.running(bundle) as c:

        def inside(*words: str) -> Result:
            return run("nsenter", "-t", str(c.pid), "-m", *words)

        assert inside("/bin/cat", "/vol/there").ok().stdout == "in the volume\n"
        inside("/bin/sh", "-c", "echo copied > /root/copied").ok()
        assert c.sh("cat /root/copied").ok().stdout == "copied\n"
        assert (bundle.rootfs / "root/copied").exists() and not Path("/root/copied").exists()
        refused = inside("/bin/sh", "-c", "echo lost > /scratch/lost")
        assert refused.rc != 0 and "Read-only" in refused.stderr, refused
