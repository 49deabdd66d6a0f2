"""OCI bundles: a config.json in plain Python, and a root file system."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

#: What docker gives a container.
DEFAULT_CAPS = [
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
    "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
]  # fmt: skip

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: A first process that ends when told to; without handlers pid 1 ignores TERM.
SLEEPER = "trap 'exit 0' TERM INT; while :; do sleep 3600 & wait $!; done"


def default_config(*args: str) -> dict[str, Any]:
    """A container like the one `docker run` asks for."""
    nodev = ["nosuid", "noexec", "nodev"]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": list(args) or ["/bin/sh", "-c", SLEEPER],
            "env": [PATH, "TERM=xterm"],
            "cwd": "/",
            "capabilities": {k: list(DEFAULT_CAPS) for k in ("bounding", "effective", "permitted")},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": False,
        },
        "root": {"path": "rootfs", "readonly": False},
        "hostname": "guest",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": list(nodev)},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": [*nodev, "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": list(nodev)},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*nodev, "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": [*nodev, "relatime", "ro"]},
        ],
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [{"type": t} for t in ("pid", "network", "ipc", "uts", "mount")],
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    }  # fmt: skip


class Bundle:
    """A bundle directory; ``config`` may be changed until :meth:`write`."""

    def __init__(self, path: Path, rootfs: Path, *args: str) -> None:
        self.path = path
        self.rootfs = path / "rootfs"
        path.mkdir(parents=True)
        shutil.copytree(rootfs, self.rootfs, symlinks=True)
        self.config = default_config(*args)

    @property
    def process(self) -> dict[str, Any]:
        process: dict[str, Any] = self.config["process"]
        return process

    @property
    def linux(self) -> dict[str, Any]:
        linux: dict[str, Any] = self.config["linux"]
        return linux

    @property
    def mounts(self) -> list[dict[str, Any]]:
        mounts: list[dict[str, Any]] = self.config["mounts"]
        return mounts

    def sh(self, script: str) -> Bundle:
        """Make the process a shell that runs ``script``."""
        self.process["args"] = ["/bin/sh", "-c", script]
        return self

    def in_network(self, path: Path) -> Bundle:
        """Give the container the network namespace at ``path``."""
        next(n for n in self.linux["namespaces"] if n["type"] == "network")["path"] = str(path)
        return self

    def bind(self, source: Path | str, destination: str, *options: str) -> Bundle:
        """Add a bind mount (``rbind`` unless an option says otherwise)."""
        kind = [] if {"bind", "rbind"} & set(options) else ["rbind"]
        self.mounts.append(
            {"destination": destination, "type": "bind", "source": str(source), "options": [*kind, *options]}
        )
        return self

    def tmpfs(self, destination: str, *options: str) -> Bundle:
        self.mounts.append({"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": list(options)})
        return self

    def mount_at(self, destination: str) -> dict[str, Any]:
        """The default mount of a place, to change it."""
        return next(m for m in self.mounts if m["destination"] == destination)

    def merge(self, changes: dict[str, Any]) -> Bundle:
        """Merge nested dicts into the configuration; lists and values replace."""

        def into(old: dict[str, Any], new: dict[str, Any]) -> None:
            for key, value in new.items():
                if isinstance(value, dict) and isinstance(old.get(key), dict):
                    into(old[key], value)
                else:
                    old[key] = copy.deepcopy(value)

        into(self.config, changes)
        return self

    def write(self) -> Bundle:
        """Write config.json."""
        (self.path / "config.json").write_text(json.dumps(self.config, indent=1))
        return self
