"""A guest that was taken over ends its own sandbox at most.  Containers here have every right in their guest."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.bundle import Bundle
from harness.oci import Container, Oci
from harness.sandbox import Parts
from harness.wait import eventually

pytestmark = pytest.mark.vm_only

ALL_CAPS = [
    f"CAP_{name}" for name in
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE "
    "NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT "
    "SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP "
    "SYSLOG WAKE_ALARM".split()
]
MIB = 1 << 20
LOG_LIMIT = 1 * MIB


def privileged(bundle: Bundle) -> Bundle:
    """What ``docker run --privileged --pid=host`` asks for; the "host" is the guest."""
    bundle.process["capabilities"] = {k: list(ALL_CAPS) for k in ("bounding", "effective", "permitted")}
    bundle.linux["resources"]["devices"] = [{"allow": True, "access": "rwm"}]
    bundle.linux["maskedPaths"] = bundle.linux["readonlyPaths"] = []
    bundle.linux["namespaces"] = [n for n in bundle.linux["namespaces"] if n["type"] not in ("pid", "cgroup")]
    for place in ("/proc", "/sys"):
        bundle.mount_at(place)["options"] = []
    return bundle


@pytest.fixture(scope="module")
def taken(oci: Oci) -> Iterator[Container]:
    """A container whose root is root of its guest, with a volume."""
    bundle = privileged(oci.bundle())
    volume = bundle.path / "volume"
    volume.mkdir()
    (volume / "file").write_text("inside\n")
    (bundle.path / "secret").write_text("outside\n")
    bundle.bind(volume, "/data")
    with oci.running(bundle) as container:
        yield container


def test_share_root_cannot_be_changed(taken: Container) -> None:
    """From the agent's own view of the share: nothing is made, renamed, linked or removed beside the mounts."""
    share = "/proc/1/root/run/kata/shared"
    listing = taken.sh(f"ls {share}").ok().out
    assert taken.id in listing, listing
    for attempt in (f"mkdir {share}/new", f"echo x > {share}/new", f"ln -s / {share}/root",
                    f"mv {share}/{taken.id} {share}/moved", f"rmdir {share}/{taken.id}",
                    f"mknod {share}/sda b 8 0", f"chmod 777 {share}", f"rm -rf {share}/{taken.id}/nosuch/../../new",
                    f"ln {share}/{taken.id}/rootfs/bin/busybox {share}/link"):
        result = taken.sh(f"{attempt} && echo MADE")
        assert "MADE" not in result.stdout or attempt.startswith("rm -rf"), f"{attempt}: {result}"
    assert taken.sh(f"ls {share}").ok().out == listing


def test_links_and_dots_lead_nowhere(taken: Container) -> None:
    """Links that a guest makes in a share are its own affair: whoever follows them is in the guest."""
    volume = taken.bundle.path / "volume"
    share = f"/proc/1/root/run/kata/shared/{taken.id}"
    secret = taken.bundle.path / "secret"
    taken.sh(f"ln -s {secret} /data/link; ln -s ../secret /data/up; ln -s / /data/root").ok()
    assert os.readlink(volume / "link") == str(secret), "the link itself is on the host"
    for path in ("/data/link", "/data/up", f"/data/root{secret}", "/data/../secret", f"{share}/../../secret",
                 "/proc/1/root/run/kata/shared/../../../etc/shadow"):
        result = taken.exec("cat", path)
        assert "outside" not in result.stdout and "root:" not in result.stdout, f"{path}: {result}"
    # Nor do the host's own operations follow them.
    taken.sh("mv /etc /etc.old && ln -s / /etc && ln -s /data/root /tmp/out").ok()
    assert taken.exec("echo", "works").ok().out == "works"
    taken.sh("rm /etc /data/link /data/up /data/root && mv /etc.old /etc").ok()


def test_device_nodes_in_a_share_open_nothing_on_the_host(taken: Container) -> None:
    """A node made through the share names a device of the guest to the guest; the host's is never opened."""
    taken.sh("mknod /data/mem c 1 1; mknod /data/disk b 8 0; mknod /data/zero c 1 5").ok()
    assert taken.sh("head -c 4 /data/zero | wc -c").out == "4", "the guest's own device"
    volume = taken.bundle.path / "volume"
    # They lie on the host; its server has the share mounted so that no device opens through it.
    assert stat.S_ISCHR((volume / "zero").lstat().st_mode)
    mountinfo = Path(f"/proc/{Parts(taken.oci.root, taken.id).qemu}/mountinfo").read_text()
    shares = [line.split() for line in mountinfo.splitlines() if f"/share/{taken.id}/" in line]
    assert len(shares) >= 2, mountinfo
    assert all("nodev" in fields[5].split(",") for fields in shares), shares
    taken.sh("rm /data/mem /data/disk /data/zero").ok()


def test_agent_channel_is_taken(taken: Container) -> None:
    """The port is not in a container's /dev; who makes its node finds it in use by the agent."""
    assert taken.sh("ls /dev").ok().stdout.count("vport") == 0
    script = ("set -e; for d in /sys/class/virtio-ports/*/dev; do IFS=: read major minor < $d; "
              "mknod /tmp/port$minor c $major $minor; cat /tmp/port$minor && echo OPENED; rm /tmp/port$minor; done")
    result = taken.sh(script)
    assert "OPENED" not in result.stdout, result
    assert "busy" in result.stderr.lower(), result
    assert taken.exec("echo", "still").ok().out == "still"


def test_second_mount_of_the_share_is_refused(taken: Container) -> None:
    result = taken.sh("mkdir -p /tmp/m; mount -t 9p -o trans=virtio,version=9p2000.L kataShared /tmp/m && echo MOUNTED")
    assert "MOUNTED" not in result.stdout, result


def test_console_is_bounded(oci: Oci) -> None:
    """A flood on the console ends in a file of about a mebibyte, also after the proxy was restarted."""
    bundle = privileged(oci.bundle())
    with oci.running(bundle) as c:
        parts = Parts(oci.root, c.id)
        flood = "mknod /tmp/tty c 4 64; while :; do cat /bin/busybox | tr '\\0' x; done > /tmp/tty"
        c.exec_detached("sh", "-c", flood)
        console, kept = parts.folder / "console.log", parts.folder / "console.log.1"

        def turned() -> bool:
            return kept.exists() and kept.stat().st_size > 0

        eventually("console.log to be cut", turned, 90, 0.5)
        kept.unlink()
        parts.kill_proxy()
        eventually("console.log to be cut by the next proxy", turned, 90, 0.5)
        assert console.stat().st_size < 8 * LOG_LIMIT
        assert kept.stat().st_size <= LOG_LIMIT
        assert c.exec("true").rc == 0


def pod(oci: Oci, sandbox: str, script: str = "") -> Bundle:
    bundle = oci.bundle(script)
    bundle.config["annotations"] = {"io.kubernetes.cri.container-type": "container" if sandbox else "sandbox"}
    if sandbox:
        bundle.config["annotations"]["io.kubernetes.cri.sandbox-id"] = sandbox
    return bundle


@pytest.mark.parametrize("attack", ["pids", "memory", "tmpfs", "output", "files"])
def test_neighbours_live_on(oci: Oci, attack: str) -> None:
    """A container that takes all it can get in its guest: the others of its pod and the agent answer."""
    scripts = {
        "pids": "b() { b | b & }; b; sleep 1000",
        "memory": "tail /dev/zero",
        "tmpfs": "cat /dev/zero > /fill/x; sleep 1000",
        "output": "while :; do echo oooooooooooooooooooooooooooooooooooooooooooooooo; done",
        "files": "i=0; while :; do echo > /fill/$i; i=$((i+1)); done",
    }
    with oci.running(pod(oci, "")) as neighbour:
        bundle = pod(oci, neighbour.id, scripts[attack])
        bundle.tmpfs("/fill", "size=100%")
        bundle.linux["resources"]["pids"] = {"limit": 200}
        bundle.linux["resources"]["memory"] = {"limit": 256 * MIB}
        with oci.running(bundle) as c:
            if attack in ("memory", "tmpfs"):
                if attack == "memory":
                    assert c.wait(120) == 137
                else:
                    eventually("the kernel to end what fills memory",
                               lambda: "oom" in neighbour.sh("grep -h oom_kill /proc/vmstat").stdout, 60, 1)
            for _ in range(3):
                assert neighbour.exec("echo", "alive").ok().out == "alive"
            assert neighbour.status == "running"
            c.delete("--force").ok()
        assert neighbour.exec("echo", "alive").ok().out == "alive"


def test_memory_without_limit(oci: Oci) -> None:
    """All of the guest's memory: the kernel ends the container, not the agent."""
    config = oci.work_dir / "small.toml"
    config.write_text("[hypervisor.qemu]\ndefault_memory = 256\n[factory]\nenable_template = false\n")
    with oci.container(pod(oci, "")) as neighbour:
        neighbour.launch_verb("create", globals=["--kata-config", str(config)]).ok()
        neighbour.start().ok()
        with oci.container(pod(oci, neighbour.id, "tail /dev/zero")) as c:
            c.launch_verb("create", globals=["--kata-config", str(config)]).ok()
            c.start().ok()
            assert c.wait(180) == 137
            assert neighbour.exec("echo", "alive").ok().out == "alive"


def test_shim_of_a_dead_reader(oci: Oci) -> None:
    """Nobody reads a container's output any more: it gets its SIGPIPE, and nothing grows."""
    bundle, id = oci.bundle("trap '' PIPE; while echo x; do :; done; exit 6"), oci.new_id()
    argv = oci.argv("run", "--bundle", str(bundle.write().path), id)
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    process.stdout.read(1000)
    process.stdout.close()
    assert process.wait(60) == 6


def test_guest_cannot_reach_the_host_by_vsock_or_files(taken: Container) -> None:
    """Nothing of the host's /run, /proc or /etc can be seen from the guest's root."""
    marker = Path("/run/kata/sandboxes")
    assert marker.exists()
    assert taken.exec("ls", "/proc/1/root/run/kata/sandboxes").rc != 0
    assert taken.sh("cat /proc/1/root/proc/1/cmdline").stdout.count("kata") <= 3
