"""Mounts: which become shares of the host, which the guest has itself.

=============================  =====================================================
mount                          in the guest
=============================  =====================================================
bind of a file or directory    a share, bound from there
bind of host shared memory     a tmpfs of the same size, one for all containers of
(/dev/shm, memory emptyDir)    the sandbox that name the same source
bind of a block device         a disk (:mod:`kata.guestspec.devices`)
bind of a character device     the guest's own device
bind from /proc, /sys, /dev    the guest's own, with a warning
bind of a socket or FIFO       a share, with a warning: the other end cannot be reached
proc, sysfs, tmpfs, ...        made by the guest
cgroup                         cgroup2
ext4, xfs, ... of a device     a disk, mounted by the guest
any other                      refused
=============================  =====================================================
"""

from __future__ import annotations

import os
import stat

from kata.contract import Share
from kata.digest import hexdigest
from kata.errors import BundleError, UnsupportedError
from kata.guestspec.host import Host
from kata.oci import Bundle, reason

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

SHARED = "/run/kata/shared"  #: the shared folder in the guest
EPHEMERAL = "/run/kata/ephemeral"  #: tmpfs that containers of a sandbox share
DISKS = "/run/kata/disks"  #: where disks that back a mount are mounted

MAX_MOUNTS = 1000  #: each bind is an open file here and a mount in the share
#: File systems that need nothing of the host.
GUEST_TYPES = frozenset((
    "proc", "sysfs", "tmpfs", "ramfs", "devpts", "mqueue", "cgroup", "cgroup2", "devtmpfs", "hugetlbfs",
    "debugfs", "tracefs", "securityfs", "bpf", "fusectl", "configfs", "binfmt_misc", "pstore"))
DISK_TYPES = frozenset(("ext2", "ext3", "ext4", "xfs", "btrfs", "erofs", "squashfs", "vfat", "iso9660"))

_FLAGS = frozenset((
    "async", "atime", "bind", "defaults", "dev", "diratime", "dirsync", "exec", "iversion", "lazytime", "loud", "mand",
    "noatime", "nodev", "nodiratime", "noexec", "noiversion", "nolazytime", "nomand", "norelatime", "nostrictatime",
    "nosuid", "nosymfollow", "rbind", "relatime", "remount", "ro", "rw", "silent", "strictatime", "suid", "symfollow",
    "sync"))
_KINDS = {f"r{kind}": kind for kind in ("private", "shared", "slave", "unbindable")}
_PROPAGATION = frozenset((*_KINDS, *_KINDS.values()))
_RECURSIVE = frozenset("r" + k for k in (
    "ro", "rw", "nosuid", "suid", "nodev", "dev", "noexec", "exec", "nodiratime", "diratime", "relatime",
    "norelatime", "noatime", "atime", "strictatime", "nostrictatime", "nosymfollow", "symfollow"))
#: All that a bind mount may have.
OPTIONS = _FLAGS | _PROPAGATION | _RECURSIVE | {"idmap", "ridmap", "tmpcopyup"}

#: Devices that behave the same in every Linux, so that no one needs to be told.
_PLAIN_DEVICES = frozenset(f"/dev/{d}" for d in ("null", "zero", "full", "random", "urandom", "tty", "fuse", "net/tun"))
_NAMESERVER = rb"(?m)^[ \t]*nameserver[ \t]+(127\.\d+\.\d+\.\d+)[ \t]*$"


class Mounts:
    """The mounts of one container, sorted by how they reach the guest.

    :ivar spec: mounts of the guest's configuration, in order.
    :ivar shares: what the host shares for them.
    :ivar storages: what the guest mounts beforehand (``Storage`` of agent.proto as JSON).
    :ivar block: block devices to attach: (path, destination or "", read-only, file system mount).
    :ivar extras: ``kata.v1.MountExtras`` as JSON.
    :ivar warnings: what does not hold.
    :ivar dns_relay: loopback name servers of the resolver configuration.
    """

    def __init__(self, bundle: Bundle, host: Host) -> None:
        self.bundle = bundle
        self.host = host
        self.spec: list[dict[str, Any]] = []
        self.shares: list[Share] = []
        self.storages: list[dict[str, Any]] = []
        self.block: list[tuple[str, str, bool, dict[str, Any] | None]] = []
        self.extras: list[dict[str, Any]] = []
        self.warnings: list[str] = []
        self.dns_relay: tuple[str, ...] = ()
        if len(bundle.mounts) > MAX_MOUNTS:
            raise BundleError(f"config.json: mounts: there are more than {MAX_MOUNTS}", "mount folders, not files")
        for i, mount in enumerate(bundle.mounts):
            self._add(f"mounts[{i}]", i, mount)

    def _add(self, at: str, index: int, mount: Mapping[str, Any]) -> None:
        options = list(mount.get("options", ()))
        kind = mount.get("type", "")
        if "bind" in options or "rbind" in options or kind == "bind":
            unknown = [o for o in options if o not in OPTIONS]
            if unknown:
                raise BundleError(f"config.json: {at}.options: unknown option {unknown[0]!r} of a bind mount")
            if "bind" not in options and "rbind" not in options:
                options.append("rbind")
            self._bind(at, index, mount, options)
        elif kind in GUEST_TYPES:
            if kind == "cgroup":
                kind = "cgroup2"
            self._keep(mount, kind, mount.get("source", kind), options)
        elif kind in DISK_TYPES:
            self._disk_mount(at, mount, kind, options)
        else:
            what = f"type {kind!r}" if kind else "a mount without a type"
            raise UnsupportedError(f"{at}: {what} at {mount['destination']!r} cannot be made in the guest",
                                   "mount it on the host and use a bind mount")

    def _keep(self, mount: Mapping[str, Any], kind: str, source: str, options: list[str]) -> None:
        """A mount that the guest makes; ``source`` is a path or name of the guest."""
        extra: dict[str, Any] = {}
        if "tmpcopyup" in options:
            options = [o for o in options if o != "tmpcopyup"]
            extra["copy_up"] = True
        for key, name in (("uidMappings", "uid_mappings"), ("gidMappings", "gid_mappings")):
            if mount.get(key):
                extra[name] = [{"host_id": m["hostID"], "container_id": m["containerID"], "size": m["size"]}
                               for m in mount[key]]
        if extra:
            self.extras.append({"index": len(self.spec), **extra})
        self.spec.append({"destination": mount["destination"], "type": kind, "source": source, "options": options})

    def _bind(self, at: str, index: int, mount: Mapping[str, Any], options: list[str]) -> None:
        source = mount.get("source", "")
        if not source:
            raise BundleError(f"config.json: {at}.source: is missing")
        source = os.path.normpath(os.path.join(self.bundle.path, source))
        destination = mount["destination"]
        if _within(source, "/proc", "/sys"):
            self._own(at, mount, source, options)
            return
        try:
            found = self.host.stat(source)
        except (OSError, ValueError) as e:
            raise BundleError(f"config.json: {at}.source: {source!r}: {reason(e)}",
                              f"what is bound to {destination!r} must exist on the host") from e
        mode = found.st_mode
        read_only = is_read_only(options)
        if stat.S_ISBLK(mode):
            self.block.append((source, destination, read_only, None))
        elif stat.S_ISCHR(mode):
            if source not in _PLAIN_DEVICES:
                self.warnings.append(f"{at}: {source!r} is the guest's own device, not the host's")
            self._keep(mount, "bind", source, options)
        elif stat.S_ISDIR(mode) and _within(source, "/dev") and not _within(source, "/dev/shm"):
            self._own(at, mount, source, options)
        elif stat.S_ISDIR(mode) and self._is_memory(source, destination):
            self._memory(mount, source, found, options)
        else:
            if stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode):
                self.warnings.append(f"{at}: {source!r} is a {'socket' if stat.S_ISSOCK(mode) else 'FIFO'}: "
                                     "the container sees it but cannot reach its other end on the host")
            name = f"{index}-{_sanitised(destination)}"
            propagation = propagation_of(options)
            if propagation == "shared":
                self.warnings.append(f"{at}: mounts made in the container do not reach the host; "
                                     "those made on the host reach the container")
            self.shares.append(Share(
                source=source, name=name, is_dir=stat.S_ISDIR(mode), read_only=read_only,
                recursive="bind" not in options or "rbind" in options,
                propagation="slave" if propagation in ("shared", "slave") else "private"))
            self._keep(mount, "bind", f"{SHARED}/{self.bundle.id}/{name}", options)
            if destination == "/etc/resolv.conf" and stat.S_ISREG(mode):
                self.dns_relay = loopback_nameservers(self.host.read(source, 65536))

    def _own(self, at: str, mount: Mapping[str, Any], source: str, options: list[str]) -> None:
        """The guest's own part of /proc, /sys or /dev; its control groups are cgroup2."""
        self.warnings.append(f"{at}: {source!r} is the guest's own, not the host's")
        if _within(source, "/sys/fs/cgroup"):
            self._keep(mount, "cgroup2", "cgroup", [o for o in options if o not in ("bind", "rbind")])
        else:
            self._keep(mount, "bind", source, options)

    def _is_memory(self, source: str, destination: str) -> bool:
        """Shared memory of an engine, or a Kubernetes volume in memory: faster and complete only as a tmpfs."""
        if destination != "/dev/shm" and "/volumes/kubernetes.io~empty-dir/" not in source:
            return False
        return self.host.file_system(source).kind == "tmpfs"

    def _memory(self, mount: Mapping[str, Any], source: str, found: os.stat_result, options: list[str]) -> None:
        place = f"{EPHEMERAL}/{hexdigest(source)[:16]}"
        size = self.host.file_system(source).size
        wanted = [f"mode={found.st_mode & 0o7777:o}", f"uid={found.st_uid}", f"gid={found.st_gid}"]
        if size:
            wanted.append(f"size={size}")
        self.storages.append({"driver": "ephemeral", "source": "tmpfs", "fstype": "tmpfs", "mount_point": place,
                              "options": ["nosuid", "nodev", *wanted]})
        self._keep(mount, "bind", place, options)

    def _disk_mount(self, at: str, mount: Mapping[str, Any], kind: str, options: list[str]) -> None:
        source = mount.get("source", "")
        try:
            mode = self.host.stat(source).st_mode
        except (OSError, ValueError) as e:
            raise BundleError(f"config.json: {at}.source: {source!r}: {reason(e)}") from e
        if not stat.S_ISBLK(mode):
            raise UnsupportedError(f"{at}: {source!r} is not a block device, which type {kind!r} needs",
                                   "mount it on the host and use a bind mount")
        place = f"{DISKS}/{hexdigest(source)[:16]}"
        storage = {"driver": "blk", "fstype": kind, "mount_point": place, "options": options}
        self.block.append((source, "", is_read_only(options), storage))
        self._keep(mount, "bind", place, ["rbind", *(["ro"] if is_read_only(options) else [])])


def is_read_only(options: list[str]) -> bool:
    """Whether mount options ask for read-only: the last word counts."""
    words = [o for o in options if o in ("ro", "rw", "rro", "rrw")]
    return bool(words) and words[-1] in ("ro", "rro")


def propagation_of(options: list[str]) -> str:
    """``private``, ``shared``, ``slave`` or ``unbindable``: the last word counts."""
    words = [o for o in options if o in _PROPAGATION]
    return _KINDS.get(words[-1], words[-1]) if words else "private"


def loopback_nameservers(text: bytes) -> tuple[str, ...]:
    """Name servers in 127.0.0.0/8, which only the host's network namespace can reach."""
    if b"nameserver" not in text or b"127." not in text:
        return ()
    import re  # few resolvers are on the loopback

    return tuple(dict.fromkeys(a.decode() for a in re.findall(_NAMESERVER, text)))


def _within(path: str, *tops: str) -> bool:
    return any(path == top or path.startswith(top + "/") for top in tops)


def _sanitised(path: str) -> str:
    """The last component of a path as part of a share's name."""
    name = path.rsplit("/", 1)[-1][:64]
    return "".join(c if c.isascii() and (c.isalnum() or c in "_.-") else "_" for c in name)
