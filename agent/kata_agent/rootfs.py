"""The file systems of a container, made by its first process in a mount namespace of its own."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Mapping, Sequence

from kata_agent import devices, log
from kata_agent.identity import StageError
from kata_agent.linux import syscalls as sc
from kata_agent.mountopts import PROPAGATION, Attributes, MountOptions
from kata_agent.protocol import guest_pb2, oci_pb2
from kata_agent.resolve import ensure, fd_path, open_in_root

_BOTH_EMPTY = sc.MOVE_MOUNT_F_EMPTY_PATH | sc.MOVE_MOUNT_T_EMPTY_PATH
_COPY_CHUNK = 1 << 20  # bytes


class Mounts:
    """The mounts of one container.

    Two steps: :meth:`collect` while the agent's mounts are visible and the
    child has all privileges (sources may lie below folders that the container's
    user may not enter), :meth:`build` in the new namespaces.
    """

    __slots__ = (
        "_cgroup", "_extras", "_idmaps", "_nodes", "_read_only", "_spec", "_staging", "_tmp", "_trees", "_userns",
        "root",
    )

    def __init__(
        self, spec: oci_pb2.Spec, extras: Mapping[int, guest_pb2.MountExtras], nodes: Sequence[devices.DeviceNode],
        cgroup: str, staging: str, userns: bool,
    ) -> None:
        self._spec = spec
        self._extras = extras
        self._nodes = nodes
        self._cgroup = cgroup  # path of the container's cgroup, "" = there is none
        self._staging = staging  # an empty folder of the agent
        self._userns = userns
        self._trees: dict[int, int] = {}
        self._idmaps: dict[int, int] = {}
        self._read_only: list[int] = []  # descriptors of mounts that become it last: something goes into them before
        self.root = -1  #: descriptor of the container's root

    # --- step one ------------------------------------------------------------------

    def collect(self, idmaps: Mapping[int, int]) -> None:
        """Clone the trees that are to be bound.

        :param idmaps: descriptors of user namespaces, by index of the mount.
        """
        self._idmaps = dict(idmaps)
        self.root = self._clone(self._spec.Root.Path, True, "rootfs")
        for index, mount in enumerate(self._spec.Mounts):
            options = MountOptions(mount.options)
            if options.bind or mount.type == "bind":
                self._trees[index] = self._clone(mount.source, options.recursive, f"mount {mount.destination}")
            elif mount.type == "sysfs" and self._userns:
                # A user namespace may mount a sysfs only with a network namespace of its own.
                self._trees[index] = self._clone("/sys", True, "mount /sys")
        # The working directory moves along into the new mount namespace.
        os.chdir(self._staging)

    @staticmethod
    def _clone(path: str, recursive: bool, what: str) -> int:
        try:
            flags = sc.OPEN_TREE_CLONE | (sc.AT_RECURSIVE if recursive else 0)
            return sc.open_tree(sc.AT_FDCWD, path, flags)
        except OSError as error:
            raise _stage(what, path, error) from None

    # --- step two ------------------------------------------------------------------

    def build(self) -> None:
        """Make the container's root with everything in it; :attr:`root` is open on it."""
        os.umask(0)
        sc.mount("none", "/", "", sc.MS_REC | sc.MS_PRIVATE)
        tree = self.root
        sc.mount_setattr(tree, "", sc.AT_EMPTY_PATH | sc.AT_RECURSIVE, propagation=sc.MS_PRIVATE)
        staging = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sc.move_mount(tree, "", staging, "", _BOTH_EMPTY)
        finally:
            os.close(staging)
        dev_mounted = False
        for index, mount in enumerate(self._spec.Mounts):
            try:
                self._mount(index, mount)
            except OSError as error:
                raise _stage("mount", f"{mount.source or mount.type} on {mount.destination}", error) from None
            if os.path.normpath(mount.destination) == "/dev":
                dev_mounted = mount.type != "bind" and not MountOptions(mount.options).bind
        self._devices(dev_mounted)

    def _mount(self, index: int, mount: oci_pb2.Mount) -> None:
        options = MountOptions(mount.options)
        tree = self._trees.pop(index, -1)
        if tree >= 0:
            self._bind(index, tree, mount.destination, options)
            return
        target = ensure(self.root, mount.destination, True)
        try:
            self._mount_fs(mount, options, target)
        finally:
            os.close(target)
        self._propagate(mount.destination, options)

    def _bind(self, index: int, tree: int, destination: str, options: MountOptions) -> None:
        directory = stat.S_ISDIR(os.fstat(tree).st_mode)
        target = ensure(self.root, destination, directory)
        try:
            if options.idmap:
                flags = sc.AT_EMPTY_PATH | (sc.AT_RECURSIVE if options.idmap == "ridmap" else 0)
                sc.mount_setattr(tree, "", flags, attr_set=sc.MOUNT_ATTR_IDMAP, userns_fd=self._idmaps[index])
            _set(tree, options.attributes, 0)
            _set(tree, options.tree, sc.AT_RECURSIVE)
            for propagation, recursive in options.propagation:
                sc.mount_setattr(tree, "", sc.AT_EMPTY_PATH | (sc.AT_RECURSIVE if recursive else 0),
                                 propagation=propagation)
            sc.move_mount(tree, "", target, "", _BOTH_EMPTY)
        finally:
            os.close(target)
            os.close(tree)

    def _mount_fs(self, mount: oci_pb2.Mount, options: MountOptions, target: int) -> None:
        kind = mount.type
        where = fd_path(target)
        data, flags = options.data, options.flags
        if kind in ("cgroup", "cgroup2"):
            self._mount_cgroup(options, where)
            return
        if kind == "tmpfs":
            if "mode=" not in data:
                # As runc: the folder's own mode, else /tmp would lose its sticky bit.
                mode = stat.S_IMODE(os.fstat(target).st_mode)
                data = ",".join(filter(None, (data, f"mode={mode:o}")))
            # A read-only /dev (podman --read-only) still takes devices and mount points.
            flags &= ~sc.MS_RDONLY
            if options.copy_up:
                self._copy_up(mount.source, where, flags, data)
                self._read_only_later(mount.destination, options)
                return
        if kind in ("mqueue", "proc"):
            data = ""
        try:
            sc.mount(mount.source or kind, where, kind, flags, data)
        except OSError as error:
            if kind == "devpts" and error.errno == errno.EINVAL and "gid=" in data:
                # The group is not mapped into the user namespace.
                data = ",".join(part for part in data.split(",") if not part.startswith("gid="))
                sc.mount(mount.source or kind, where, kind, flags, data)
                return
            raise
        if options.tree:
            fd = open_in_root(self.root, mount.destination)
            _set(fd, options.tree, sc.AT_RECURSIVE)
            os.close(fd)
        if kind == "tmpfs":
            self._read_only_later(mount.destination, options)

    def _read_only_later(self, destination: str, options: MountOptions) -> None:
        if options.flags & sc.MS_RDONLY:
            self._read_only.append(open_in_root(self.root, destination))

    def _mount_cgroup(self, options: MountOptions, where: str) -> None:
        if not self._cgroup:
            log.warning("no cgroup file system in the guest: the container gets an empty folder")
            sc.mount("tmpfs", where, "tmpfs", options.flags | sc.MS_RDONLY, "mode=755,size=0")
            return
        flags = options.flags & ~sc.MS_STRICTATIME
        sc.mount("cgroup", where, "cgroup2", flags)

    def _copy_up(self, source: str, where: str, flags: int, data: str) -> None:
        """A tmpfs that starts with what it covers."""
        context = sc.fsopen("tmpfs")
        try:
            sc.fsconfig(context, sc.FSCONFIG_SET_STRING, "source", source or "tmpfs")
            for part in filter(None, data.split(",")):
                key, equals, value = part.partition("=")
                if equals:
                    sc.fsconfig(context, sc.FSCONFIG_SET_STRING, key, value)
                else:
                    sc.fsconfig(context, sc.FSCONFIG_SET_FLAG, key)
            sc.fsconfig(context, sc.FSCONFIG_CMD_CREATE)
            tree = sc.fsmount(context)
        finally:
            os.close(context)
        covered = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        target = os.open(where, os.O_PATH | os.O_CLOEXEC)
        try:
            copy_tree(covered, tree)
            attributes = Attributes()
            for bit in range(32):
                if flags >> bit & 1:
                    attributes.add(1 << bit, True)
            _set(tree, attributes, 0)
            sc.move_mount(tree, "", target, "", _BOTH_EMPTY)
        finally:
            for fd in (covered, target, tree):
                os.close(fd)

    def _propagate(self, destination: str, options: MountOptions) -> None:
        if not options.propagation:
            return
        fd = open_in_root(self.root, destination)
        try:
            for propagation, recursive in options.propagation:
                sc.mount_setattr(fd, "", sc.AT_EMPTY_PATH | (sc.AT_RECURSIVE if recursive else 0),
                                 propagation=propagation)
        finally:
            os.close(fd)

    def _devices(self, dev_mounted: bool) -> None:
        nodes: list[devices.DeviceNode] = []
        bound = any(os.path.normpath(m.destination) == "/dev" for m in self._spec.Mounts) and not dev_mounted
        if not bound:
            nodes += devices.DEFAULTS
        asked = {node.path for node in self._nodes}
        nodes = [n for n in nodes if n.path not in asked] + list(self._nodes)
        for node in nodes:
            try:
                devices.make(self.root, node)
            except OSError as error:
                raise _stage("device", node.path, error) from None
        if not bound:
            try:
                devices.make_links(self.root, self._has("/dev/pts"))
            except OSError as error:
                raise _stage("device", "links in /dev", error) from None

    def _has(self, path: str) -> bool:
        return any(os.path.normpath(m.destination) == path for m in self._spec.Mounts)

    # --- step three: the container's root becomes the root ---------------------------

    def enter(self) -> None:
        """pivot_root, and the old root is gone; else (a root that cannot be pivoted) move and chroot."""
        os.fchdir(self.root)
        try:
            sc.pivot_root(".", ".")
            sc.umount2(".", sc.MNT_DETACH)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise _stage("pivot_root", self._spec.Root.Path, error) from None
            sc.mount(".", "/", "", sc.MS_MOVE)
            os.chroot(".")
        os.chdir("/")
        os.close(self.root)
        self.root = -1

    def finish(self) -> None:
        """Read-only mounts, read-only and masked paths, propagation; runs in the container's root."""
        for fd in self._read_only:
            try:
                sc.mount_setattr(fd, "", sc.AT_EMPTY_PATH, attr_set=sc.MOUNT_ATTR_RDONLY)
            except OSError as error:
                raise _stage("mount", "read-only", error) from None
            os.close(fd)
        for path in self._spec.Linux.ReadonlyPaths:
            _read_only(path)
        if self._spec.Linux.MaskedPaths:
            _mask(self._spec.Linux.MaskedPaths)
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            name = self._spec.Linux.RootfsPropagation
            if name:
                propagation, recursive = PROPAGATION[name]
                sc.mount_setattr(root, "", sc.AT_EMPTY_PATH | (sc.AT_RECURSIVE if recursive else 0),
                                 propagation=propagation)
            if self._spec.Root.Readonly:
                sc.mount_setattr(root, "", sc.AT_EMPTY_PATH, attr_set=sc.MOUNT_ATTR_RDONLY)
        except OSError as error:
            raise _stage("rootfs", "/", error) from None
        finally:
            os.close(root)


def _set(fd: int, attributes: Attributes, flags: int) -> None:
    if attributes:
        sc.mount_setattr(fd, "", sc.AT_EMPTY_PATH | flags, attr_set=attributes.set, attr_clr=attributes.clear)


def _stage(stage: str, about: str, error: OSError) -> StageError:
    reason = error.strerror or str(error)
    return StageError(stage, error.errno or 0, f"{stage}: {about}: {reason}")


def _read_only(path: str) -> None:
    fd = _find(path, "readonly path")
    if fd < 0:
        return
    try:
        tree = sc.open_tree(fd, "", sc.OPEN_TREE_CLONE | sc.AT_RECURSIVE | sc.AT_EMPTY_PATH)
        try:
            sc.mount_setattr(tree, "", sc.AT_EMPTY_PATH | sc.AT_RECURSIVE, attr_set=sc.MOUNT_ATTR_RDONLY)
            sc.move_mount(tree, "", fd, "", _BOTH_EMPTY)
        finally:
            os.close(tree)
    except OSError as error:
        raise _stage("readonly path", path, error) from None
    finally:
        os.close(fd)


def _find(path: str, what: str) -> int:
    """A descriptor of ``path``, -1 if there is no such thing."""
    try:
        return os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return -1
        raise _stage(what, path, error) from None


def _mask(paths: Iterable[str]) -> None:
    """Cover files with /dev/null, folders with one empty read-only tmpfs."""
    empty = ""  # where that tmpfs is already; a detached mount cannot be cloned before Linux 6.15
    for path in paths:
        fd = _find(path, "masked path")
        if fd < 0:
            continue
        try:
            if not stat.S_ISDIR(os.fstat(fd).st_mode):
                tree = sc.open_tree(sc.AT_FDCWD, "/dev/null", sc.OPEN_TREE_CLONE)
            elif empty:
                tree = sc.open_tree(sc.AT_FDCWD, empty, sc.OPEN_TREE_CLONE)
            else:
                tree = _empty_tmpfs()
                empty = path
            try:
                sc.move_mount(tree, "", fd, "", _BOTH_EMPTY)
            finally:
                os.close(tree)
        except OSError as error:
            raise _stage("masked path", path, error) from None
        finally:
            os.close(fd)


def _empty_tmpfs() -> int:
    context = sc.fsopen("tmpfs")
    try:
        sc.fsconfig(context, sc.FSCONFIG_SET_STRING, "source", "tmpfs")
        sc.fsconfig(context, sc.FSCONFIG_SET_STRING, "mode", "755")
        sc.fsconfig(context, sc.FSCONFIG_SET_STRING, "nr_inodes", "1")
        sc.fsconfig(context, sc.FSCONFIG_CMD_CREATE)
        return sc.fsmount(context, sc.MOUNT_ATTR_RDONLY | sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NODEV)
    finally:
        os.close(context)


def copy_tree(source: int, target: int) -> None:
    """Copy everything in folder ``source`` into folder ``target`` (descriptors), with owners, modes and times."""
    with os.scandir(source) as entries:
        for entry in entries:
            name = entry.name
            info = os.stat(name, dir_fd=source, follow_symlinks=False)
            kind = stat.S_IFMT(info.st_mode)
            if kind == stat.S_IFLNK:
                os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
            elif kind == stat.S_IFDIR:
                os.mkdir(name, 0o700, dir_fd=target)
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                below, copy = os.open(name, flags, dir_fd=source), os.open(name, flags, dir_fd=target)
                try:
                    copy_tree(below, copy)
                finally:
                    os.close(below)
                    os.close(copy)
            elif kind == stat.S_IFREG:
                _copy_file(source, target, name)
            elif kind != stat.S_IFSOCK:
                os.mknod(name, info.st_mode, info.st_rdev, dir_fd=target)
            else:
                continue
            os.chown(name, info.st_uid, info.st_gid, dir_fd=target, follow_symlinks=False)
            if kind != stat.S_IFLNK:
                os.chmod(name, stat.S_IMODE(info.st_mode), dir_fd=target)
            os.utime(name, ns=(info.st_atime_ns, info.st_mtime_ns), dir_fd=target, follow_symlinks=False)


def _copy_file(source: int, target: int, name: str) -> None:
    reading = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
    try:
        writing = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=target)
        try:
            while os.sendfile(writing, reading, None, _COPY_CHUNK):
                pass
        finally:
            os.close(writing)
    finally:
        os.close(reading)
