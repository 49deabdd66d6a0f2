"""From the kernel's start of PID 1 to a guest that can hold containers."""

from __future__ import annotations

import errno
import os
import resource
import time

from kata_agent import log, modules
from kata_agent.linux import syscalls as sc
from kata_agent.settings import Settings

CGROUP = "/sys/fs/cgroup"
PORT_NAMES = "/sys/class/virtio-ports"
_GUARDED = sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC

#: (type, target, flags, options) in order; the first three before modules are loaded.
_MOUNTS = (
    ("proc", "/proc", _GUARDED, ""),
    ("sysfs", "/sys", _GUARDED, ""),
    ("devtmpfs", "/dev", sc.MS_NOSUID, "mode=755"),
    ("devpts", "/dev/pts", sc.MS_NOSUID | sc.MS_NOEXEC, "gid=5,mode=620,ptmxmode=666"),
    ("tmpfs", "/dev/shm", sc.MS_NOSUID | sc.MS_NODEV, "mode=1777"),
    ("tmpfs", "/run", sc.MS_NOSUID | sc.MS_NODEV, "mode=755"),
    # favordynmods: each container and each exec'd process is moved into its cgroup.
    ("cgroup2", CGROUP, _GUARDED, "nsdelegate,memory_recursiveprot,favordynmods"),
)
#: Folders that must be writable, for a root that is not.
_VOLATILE = ("/tmp", "/var")
_ETC_FILES = ("machine-id", "resolv.conf", "hostname", "hosts")
_NOFILE = 1 << 20


class Clock:
    """When which phase of the boot was reached, in nanoseconds since the kernel's start."""

    def __init__(self) -> None:
        self.phases: dict[str, int] = {}
        self.mark("agent")

    def mark(self, phase: str) -> None:
        self.phases[phase] = time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def guest(settings: Settings, clock: Clock) -> str:
    """Set the guest up; the path of its cgroup2 mount, "" if the kernel has none.

    :raise OSError: a step without which there is no guest.
    """
    os.umask(0o022)
    _leave_rootfs()
    for fstype, target, flags, data in _MOUNTS[:3]:
        _mount(fstype, target, flags, data)
    log.setup(_standard_streams(), log.INFO)
    _raise_limits()
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("-1000")
    with open("/proc/cmdline", encoding="utf-8", errors="replace") as file:
        settings.add(file.read().split())
    log.set_level(settings.log_level)
    clock.mark("mounts")
    modules.load_listed()
    clock.mark("modules")
    cgroup = ""
    for fstype, target, flags, data in _MOUNTS[3:]:
        try:
            _mount(fstype, target, flags, data)
        except OSError as error:
            if fstype != "cgroup2":
                raise
            log.error(f"cgroup2: {error.strerror}")
        else:
            cgroup = CGROUP if fstype == "cgroup2" else cgroup
    if not os.access("/etc", os.W_OK):
        _make_writable()
    return cgroup


def _leave_rootfs() -> None:
    """Make the root a mount with a parent, so that containers can leave it by pivot_root(2).

    An initramfs is the root of the mount tree and cannot be pivoted away from;
    a bind mount of it, moved over it, can.
    """
    if sc.statfs_type("/") not in (sc.TMPFS_MAGIC, sc.RAMFS_MAGIC):
        return
    os.makedirs("/run", exist_ok=True)
    sc.mount("/", "/run", "", sc.MS_BIND)
    os.chdir("/run")
    sc.mount(".", "/", "", sc.MS_MOVE)
    os.chroot(".")
    os.chdir("/")


def _mount(fstype: str, target: str, flags: int, data: str) -> None:
    if not os.path.isdir(target):
        os.makedirs(target)
    try:
        sc.mount(fstype, target, fstype, flags, data)
    except OSError as error:
        if error.errno == errno.EINVAL and fstype == "cgroup2":
            sc.mount(fstype, target, fstype, flags)  # a kernel without these options
        elif error.errno != errno.EBUSY:  # EBUSY: the kernel or an earlier init has mounted it
            raise


def _standard_streams() -> int:
    """Open 0, 1 and 2 (the kernel leaves them closed if the image has no /dev/console); a descriptor for the log."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    while null < 3:
        null = os.dup(null)
    try:
        console = os.open("/dev/console", os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        console = os.open("/dev/kmsg", os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(console, 1)
    os.dup2(console, 2)
    os.close(null)
    return console


def _raise_limits() -> None:
    """What processes of containers inherit unless they have limits of their own: as under containerd."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (_NOFILE, _NOFILE))
    for kind in (resource.RLIMIT_NPROC, resource.RLIMIT_CORE):
        resource.setrlimit(kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def _make_writable() -> None:
    """A read-only root gets tmpfs where something is written; files of /etc are bound from /run."""
    for folder in _VOLATILE:
        if os.path.isdir(folder):
            mode = "mode=1777" if folder == "/tmp" else "mode=755"
            sc.mount("tmpfs", folder, "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, mode)
    os.makedirs("/run/etc", exist_ok=True)
    for name in _ETC_FILES:
        if not os.path.isfile(f"/etc/{name}"):
            continue
        with open(f"/etc/{name}", "rb") as source, open(f"/run/etc/{name}", "wb") as copy:
            copy.write(source.read())
        sc.mount(f"/run/etc/{name}", f"/etc/{name}", "", sc.MS_BIND)


def find_port(name: str) -> str | None:
    """Device of the virtio-serial port called ``name``."""
    try:
        ports = os.listdir(PORT_NAMES)
    except FileNotFoundError:
        return None
    for port in ports:
        try:
            with open(f"{PORT_NAMES}/{port}/name", encoding="utf-8", errors="replace") as file:
                if file.read().strip() == name and os.path.exists(f"/dev/{port}"):
                    return f"/dev/{port}"
        except OSError:
            continue
    return None
