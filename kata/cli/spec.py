"""``spec``: write a config.json to start from."""

from __future__ import annotations

import json
import os
from typing import Any

from kata import OCI_VERSION
from kata.cli.context import Context
from kata.errors import HostError, UnsupportedError
from kata.table import FLAG, Namespace, Option, Verb

VERB = Verb(
    "Write config.json, a container with a shell, into the bundle's directory.",
    Option("--bundle", "-b", help="directory; the current one by default", metavar="DIR"),
    Option("--rootless", kind=FLAG, help="refused: a rootless container cannot hold here", hidden=True),
)

CAPABILITIES = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]


def run(context: Context, args: Namespace) -> int:
    if args["rootless"]:
        raise UnsupportedError("--rootless cannot hold", "run as root: taps, mounts and cgroups need it")
    path = os.path.join(args["bundle"] or ".", "config.json")
    try:
        with open(path, "x", encoding="utf-8") as f:
            json.dump(example(), f, indent="\t")
            f.write("\n")
    except FileExistsError:
        raise HostError(f"File {path} exists", "remove it first") from None
    except OSError as e:
        raise HostError(f"cannot write {path}: {e.strerror}") from e
    return 0


def example() -> dict[str, Any]:
    """The configuration that runc's ``spec`` writes, for a guest with cgroup v2."""
    kernel_files = ["kcore", "keys", "latency_stats", "timer_list", "timer_stats", "sched_debug", "scsi"]
    return {
        "ociVersion": OCI_VERSION,
        "process": {
            "terminal": True,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), CAPABILITIES),
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "kata",
        "mounts": [
            _mount("/proc", "proc"),
            _mount("/dev", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
            _mount("/dev/pts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
            _mount("/dev/shm", "tmpfs", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k", source="shm"),
            _mount("/dev/mqueue", "mqueue", "nosuid", "noexec", "nodev"),
            _mount("/sys", "sysfs", "nosuid", "noexec", "nodev", "ro"),
            _mount("/sys/fs/cgroup", "cgroup", "nosuid", "noexec", "nodev", "relatime", "ro"),
        ],
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [{"type": t} for t in ("pid", "network", "ipc", "uts", "mount", "cgroup")],
            "maskedPaths": ["/proc/acpi", "/proc/asound", *(f"/proc/{name}" for name in kernel_files), "/sys/firmware"],
            "readonlyPaths": [f"/proc/{name}" for name in ("bus", "fs", "irq", "sys", "sysrq-trigger")],
        },
    }


def _mount(destination: str, kind: str, *options: str, source: str = "") -> dict[str, Any]:
    mount: dict[str, Any] = {"destination": destination, "type": kind, "source": source or kind}
    return mount | {"options": list(options)} if options else mount
