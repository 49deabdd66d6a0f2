"""System calls that Python 3.11 lacks, as thin wrappers around libc.

Every function raises :class:`OSError` with the call's name in ``strerror`` and
the path it was about (if any) in ``filename``, and returns what the kernel
returned.  File descriptors that calls make are close-on-exec.  Nothing heavy is
imported: the agent and the shim load this first.

System calls that are in :mod:`os` and :mod:`signal` (``pidfd_open``,
``pidfd_send_signal``, ``eventfd``, ``memfd_create``, ``waitid``) are used from
there; they are repeated here only where a name or a default is missing.
"""

from __future__ import annotations

import ctypes
import os
import struct

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Iterator

Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]

_libc = ctypes.CDLL(None, use_errno=True)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
_libc.syscall.restype = ctypes.c_long
_libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
_libc.signal.restype = ctypes.c_void_p
_libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
# Keeps the interpreter's lock during the call: see fork().
_libc_locked = ctypes.PyDLL(None, use_errno=True)

# Numbers from 424 on are the same on every architecture; older ones are listed.
_OLD = {
    "x86_64": {"keyctl": 250, "ioprio_set": 251, "ioprio_get": 252, "finit_module": 313, "sched_setattr": 314,
               "seccomp": 317, "bpf": 321, "delete_module": 176, "pivot_root": 155},
    "aarch64": {"keyctl": 219, "ioprio_set": 30, "ioprio_get": 31, "finit_module": 273, "sched_setattr": 274,
                "seccomp": 277, "bpf": 280, "delete_module": 106, "pivot_root": 41},
}
_NEW = {"open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433,
        "openat2": 437, "pidfd_getfd": 438, "mount_setattr": 442}

# --- unshare, setns, clone -------------------------------------------------------
CLONE_NEWTIME = 0x00000080
CLONE_VM = 0x00000100
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

#: OCI names of namespaces (config-linux.md, Namespaces) and their clone flags.
NAMESPACES = {"pid": CLONE_NEWPID, "network": CLONE_NEWNET, "mount": CLONE_NEWNS, "ipc": CLONE_NEWIPC,
              "uts": CLONE_NEWUTS, "user": CLONE_NEWUSER, "cgroup": CLONE_NEWCGROUP, "time": CLONE_NEWTIME}

# --- mount, umount2 --------------------------------------------------------------
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_SYNCHRONOUS = 16
MS_REMOUNT = 32
MS_MANDLOCK = 64
MS_DIRSYNC = 128
MS_NOSYMFOLLOW = 256
MS_NOATIME = 1024
MS_NODIRATIME = 2048
MS_BIND = 4096
MS_MOVE = 8192
MS_REC = 16384
MS_SILENT = 32768
MS_POSIXACL = 1 << 16
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_I_VERSION = 1 << 23
MS_STRICTATIME = 1 << 24
MS_LAZYTIME = 1 << 25

MNT_FORCE = 1
MNT_DETACH = 2
MNT_EXPIRE = 4
UMOUNT_NOFOLLOW = 8

# --- the file-descriptor based mount calls ---------------------------------------
AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_NO_AUTOMOUNT = 0x800
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC

MOVE_MOUNT_F_SYMLINKS = 0x01
MOVE_MOUNT_F_AUTOMOUNTS = 0x02
MOVE_MOUNT_F_EMPTY_PATH = 0x04
MOVE_MOUNT_T_SYMLINKS = 0x10
MOVE_MOUNT_T_AUTOMOUNTS = 0x20
MOVE_MOUNT_T_EMPTY_PATH = 0x40

MOUNT_ATTR_RDONLY = 0x01
MOUNT_ATTR_NOSUID = 0x02
MOUNT_ATTR_NODEV = 0x04
MOUNT_ATTR_NOEXEC = 0x08
MOUNT_ATTR__ATIME = 0x70
MOUNT_ATTR_RELATIME = 0x00
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_IDMAP = 0x100000
MOUNT_ATTR_NOSYMFOLLOW = 0x200000

FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_SET_BINARY = 2
FSCONFIG_SET_PATH = 3
FSCONFIG_SET_PATH_EMPTY = 4
FSCONFIG_SET_FD = 5
FSCONFIG_CMD_CREATE = 6
FSCONFIG_CMD_RECONFIGURE = 7

# --- openat2 ---------------------------------------------------------------------
RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10
RESOLVE_CACHED = 0x20

# --- f_type of statfs(2) ---------------------------------------------------------
NSFS_MAGIC = 0x6E736673
CGROUP2_SUPER_MAGIC = 0x63677270
CGROUP_SUPER_MAGIC = 0x27E0EB
TMPFS_MAGIC = 0x01021994
PROC_SUPER_MAGIC = 0x9FA0
RAMFS_MAGIC = 0x858458F6

# --- prctl -----------------------------------------------------------------------
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_GET_KEEPCAPS = 7
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_GET_SECCOMP = 21
PR_SET_SECCOMP = 22
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_SECUREBITS = 28
PR_SET_CHILD_SUBREAPER = 36
PR_GET_CHILD_SUBREAPER = 37
PR_SET_NO_NEW_PRIVS = 38
PR_GET_NO_NEW_PRIVS = 39
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_IS_SET = 1
PR_CAP_AMBIENT_RAISE = 2
PR_CAP_AMBIENT_LOWER = 3
PR_CAP_AMBIENT_CLEAR_ALL = 4

# --- seccomp ---------------------------------------------------------------------
SECCOMP_SET_MODE_FILTER = 1
SECCOMP_GET_ACTION_AVAIL = 2
SECCOMP_FILTER_FLAG_TSYNC = 1
SECCOMP_FILTER_FLAG_LOG = 2
SECCOMP_FILTER_FLAG_SPEC_ALLOW = 4
SECCOMP_FILTER_FLAG_NEW_LISTENER = 8
SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV = 32

# --- scheduling ------------------------------------------------------------------
IOPRIO_WHO_PROCESS = 1
IOPRIO_CLASS_RT = 1
IOPRIO_CLASS_BE = 2
IOPRIO_CLASS_IDLE = 3
SCHED_DEADLINE = 6
SCHED_FLAG_RESET_ON_FORK = 0x01
SCHED_FLAG_RECLAIM = 0x02
SCHED_FLAG_DL_OVERRUN = 0x04

# --- reboot, personality, keys ---------------------------------------------------
RB_AUTOBOOT = 0x01234567
RB_HALT_SYSTEM = 0xCDEF0123
RB_POWER_OFF = 0x4321FEDC
RB_ENABLE_CAD = 0x89ABCDEF
RB_DISABLE_CAD = 0
PER_LINUX = 0
PER_LINUX32 = 8
KEYCTL_JOIN_SESSION_KEYRING = 1
KEYCTL_SETPERM = 5
KEYCTL_DESCRIBE = 6

# --- inotify ---------------------------------------------------------------------
IN_MODIFY = 0x002
IN_ATTRIB = 0x004
IN_CLOSE_WRITE = 0x008
IN_MOVED_FROM = 0x040
IN_MOVED_TO = 0x080
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_DELETE_SELF = 0x400
IN_MOVE_SELF = 0x800
IN_IGNORED = 0x8000
IN_ONLYDIR = 0x01000000
IN_Q_OVERFLOW = 0x4000


# --- plumbing --------------------------------------------------------------------


def _path(path: Path) -> bytes:
    raw = os.fsencode(path)
    if b"\0" in raw:
        raise ValueError("embedded null byte in path")
    return raw


def keep_freed_memory(size: int) -> None:
    """Let the C library keep up to ``size`` bytes of freed memory, whatever the size of its pieces.

    An emulated processor pays more for taking pages from the kernel, and for giving them back, than for filling them.
    """
    _libc.mallopt(_M_MMAP_THRESHOLD, size)
    _libc.mallopt(_M_TRIM_THRESHOLD, size)


def _check(result: int, call: str, *paths: Path | None) -> int:
    """``result``, or the OSError that errno stands for."""
    if result >= 0:
        return result
    code = ctypes.get_errno()
    names = [os.fsdecode(p) if p is not None else None for p in paths]
    first, second = [*names, None, None][:2]
    raise OSError(code, f"{call}: {os.strerror(code)}", first, None, second)


def invoke(call: str, *args: object, about: Path | None = None) -> int:
    """The system call ``call``; ints become longs, bytes pointers."""
    number = _NEW.get(call)
    if number is None:
        machine = os.uname().machine
        if machine not in _OLD:
            raise OSError(38, f"{call}: no system call number known for {machine}")
        number = _OLD[machine][call]
    converted = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    return _check(int(_libc.syscall(ctypes.c_long(number), *converted)), call, about)


# --- namespaces ------------------------------------------------------------------


def unshare(flags: int) -> None:
    """Give the calling thread (mount, net...) or its children (pid, time) new namespaces."""
    _check(_libc.unshare(flags), "unshare")


def setns(fd: int, nstype: int = 0) -> None:
    """Move the calling thread into the namespace ``fd``; ``nstype`` guards its kind (0 = any).

    ``fd`` may be a pidfd; then ``nstype`` is the CLONE_NEW* mask of what to join.
    """
    _check(_libc.setns(fd, nstype), "setns")


def sethostname(name: str) -> None:
    """Host name of the UTS namespace, at most 64 bytes."""
    raw = name.encode()
    _check(_libc.sethostname(raw, ctypes.c_size_t(len(raw))), "sethostname", name)


def setdomainname(name: str) -> None:
    """NIS domain name of the UTS namespace, at most 64 bytes."""
    raw = name.encode()
    _check(_libc.setdomainname(raw, ctypes.c_size_t(len(raw))), "setdomainname", name)


# --- mounts ----------------------------------------------------------------------


def mount(source: Path, target: Path, fstype: str = "", flags: int = 0, data: str | bytes = "") -> None:
    """mount(2); ``data`` are the file system's own options, comma separated."""
    options = data.encode() if isinstance(data, str) else data
    if b"\0" in options:
        raise ValueError("embedded null byte in mount options")
    result = _libc.mount(_path(source), _path(target), fstype.encode() or None, ctypes.c_ulong(flags), options or None)
    _check(result, "mount", source, target)


def umount2(target: Path, flags: int = 0) -> None:
    """Unmount ``target``; see MNT_* and UMOUNT_NOFOLLOW."""
    _check(_libc.umount2(_path(target), flags), "umount2", target)


def pivot_root(new_root: Path, put_old: Path) -> None:
    """Make ``new_root`` the root mount, the old one appears at ``put_old`` (both may be ".")."""
    number = ctypes.c_long(_OLD[os.uname().machine]["pivot_root"])
    _check(int(_libc.syscall(number, _path(new_root), _path(put_old))), "pivot_root", new_root, put_old)


def open_tree(dirfd: int, path: Path, flags: int = OPEN_TREE_CLOEXEC) -> int:
    """A descriptor of a mount, or (OPEN_TREE_CLONE) of a detached copy; add AT_RECURSIVE for submounts."""
    return invoke("open_tree", dirfd, _path(path), flags | OPEN_TREE_CLOEXEC, about=path)


def move_mount(from_fd: int, from_path: Path, to_fd: int, to_path: Path, flags: int = 0) -> None:
    """Attach a detached mount, or move one; MOVE_MOUNT_{F,T}_EMPTY_PATH use the descriptors themselves."""
    invoke("move_mount", from_fd, _path(from_path), to_fd, _path(to_path), flags, about=to_path or from_path or None)


def mount_setattr(
    dirfd: int, path: Path, flags: int = 0, *, attr_set: int = 0, attr_clr: int = 0,
    propagation: int = 0, userns_fd: int = 0,
) -> None:
    """Change MOUNT_ATTR_* of a mount; AT_RECURSIVE in ``flags`` for its whole tree.

    :param propagation: 0 or one of MS_SHARED, MS_SLAVE, MS_PRIVATE, MS_UNBINDABLE.
    :param userns_fd: user namespace of MOUNT_ATTR_IDMAP.
    """
    attr = struct.pack("=QQQQ", attr_set, attr_clr, propagation, userns_fd)
    invoke("mount_setattr", dirfd, _path(path), flags, attr, len(attr), about=path or None)


def fsopen(fstype: str, flags: int = 1) -> int:
    """A configuration context for a new file system (flag 1 = close-on-exec)."""
    return invoke("fsopen", fstype.encode(), flags, about=fstype)


def fsconfig(fd: int, cmd: int, key: str | None = None, value: str | bytes | None = None, aux: int = 0) -> None:
    """One FSCONFIG_* step of an :func:`fsopen` context."""
    raw = value.encode() if isinstance(value, str) else value
    invoke("fsconfig", fd, cmd, key.encode() if key is not None else None, raw, aux, about=key)


def fsmount(fd: int, attrs: int = 0, flags: int = 1) -> int:
    """The detached mount of a created file system context; ``attrs`` are MOUNT_ATTR_*."""
    return invoke("fsmount", fd, flags, attrs)


def openat2(dirfd: int, path: Path, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """openat2(2): open with RESOLVE_* limits on how the path is walked."""
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve)
    return invoke("openat2", dirfd, _path(path), how, len(how), about=path)


def statfs_type(target: Path | int) -> int:
    """``f_type`` of the file system that holds ``target`` (a path or a descriptor)."""
    buffer = ctypes.create_string_buffer(256)
    if isinstance(target, int):
        _check(_libc.fstatfs(target, buffer), "fstatfs")
    else:
        _check(_libc.statfs(_path(target), buffer), "statfs", target)
    return int(ctypes.c_ulong.from_buffer(buffer).value)


def syncfs(fd: int) -> None:
    """Write back the file system that holds ``fd``."""
    _check(_libc.syncfs(fd), "syncfs")


# --- processes -------------------------------------------------------------------


def fork() -> int:
    """fork(2) for a program with one thread: 0 in the child.

    os.fork() also puts locks and threads of the interpreter in order, which
    takes the child longer than all the rest when there is one thread only.
    """
    return _check(int(_libc_locked.fork()), "fork")


def pidfd_open(pid: int) -> int:
    """A descriptor of process ``pid``, readable when it ends."""
    return os.pidfd_open(pid)


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """A copy of descriptor ``fd`` of another process."""
    return invoke("pidfd_getfd", pidfd, fd, 0)


def prctl(option: int, arg2: int = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    """prctl(2) with integer arguments."""
    result = int(_libc.prctl(option, arg2, arg3, arg4, arg5))
    return result if result >= 0 else _check(result, f"prctl {option}")


def default_signal(signum: int) -> None:
    """Give a signal its default action; signal.signal() takes much longer for the same."""
    _libc.signal(int(signum), None)


def set_pdeathsig(signum: int) -> None:
    """Signal this thread's process when the thread that made it ends."""
    prctl(PR_SET_PDEATHSIG, signum)


def set_child_subreaper(on: bool = True) -> None:
    """Inherit orphans among this process's descendants."""
    prctl(PR_SET_CHILD_SUBREAPER, int(on))


def set_no_new_privs() -> None:
    """execve gives no more privileges from now on; cannot be undone."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def set_keepcaps(on: bool) -> None:
    """Keep permitted capabilities over the next change of uid."""
    prctl(PR_SET_KEEPCAPS, int(on))


def set_name(name: str) -> None:
    """Name of the calling thread, cut to 15 bytes."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    _check(_libc.prctl(PR_SET_NAME, ctypes.addressof(buffer), 0, 0, 0), "prctl PR_SET_NAME")


def personality(persona: int) -> int:
    """Set the execution domain; returns the previous one (0xffffffff only asks)."""
    return _check(_libc.personality(ctypes.c_ulong(persona)), "personality")


def ioprio_set(pid: int, io_class: int, level: int) -> None:
    """I/O class (IOPRIO_CLASS_*) and level 0..7 of a process; pid 0 = this one."""
    invoke("ioprio_set", IOPRIO_WHO_PROCESS, pid, io_class << 13 | level)


def sched_setattr(
    pid: int, policy: int, *, flags: int = 0, nice: int = 0, priority: int = 0,
    runtime: int = 0, deadline: int = 0, period: int = 0,
) -> None:
    """Scheduling policy and attributes; runtime, deadline and period in nanoseconds."""
    attr = struct.pack("=IIQiIQQQ", 48, policy, flags, nice, priority, runtime, deadline, period)
    invoke("sched_setattr", pid, attr, 0)


def seccomp_set_filter(program: bytes, flags: int = 0) -> int:
    """Install a filter (array of ``struct sock_filter``); needs no_new_privs or CAP_SYS_ADMIN.

    :return: 0, or the listener descriptor with SECCOMP_FILTER_FLAG_NEW_LISTENER.
    """
    if not program or len(program) % 8 or len(program) // 8 > 4096:
        raise ValueError("a seccomp program is 1 to 4096 instructions of 8 bytes")
    buffer = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    return invoke("seccomp", SECCOMP_SET_MODE_FILTER, flags, fprog)


def seccomp_action_available(action: int) -> bool:
    """Whether the kernel knows the SECCOMP_RET_* ``action``."""
    try:
        invoke("seccomp", SECCOMP_GET_ACTION_AVAIL, 0, struct.pack("=I", action))
    except OSError:
        return False
    return True


def join_session_keyring(name: str | None = None) -> int:
    """Join (or make) the session keyring ``name``, None for an anonymous one; its serial number."""
    return invoke("keyctl", KEYCTL_JOIN_SESSION_KEYRING, name.encode() if name is not None else None, 0, 0, 0)


def keyctl_setperm(key: int, permissions: int) -> None:
    """Set the permission bits of a key."""
    invoke("keyctl", KEYCTL_SETPERM, key, permissions, 0, 0)


# --- the machine -----------------------------------------------------------------


def finit_module(fd: int, parameters: str = "", flags: int = 0, name: Path | None = None) -> None:
    """Load the kernel module open at ``fd``; ``name`` is for the error only."""
    invoke("finit_module", fd, parameters.encode(), flags, about=name)


def reboot(command: int) -> None:
    """reboot(2): RB_POWER_OFF, RB_AUTOBOOT...; returns only for the CAD commands."""
    _check(_libc.reboot(ctypes.c_int(command - (1 << 32) if command >= 1 << 31 else command)), "reboot")


# --- inotify ---------------------------------------------------------------------


def inotify_init() -> int:
    """A non-blocking inotify descriptor."""
    return _check(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK), "inotify_init1")


def inotify_add_watch(fd: int, path: Path, mask: int) -> int:
    """Watch ``path`` for IN_*; the watch descriptor."""
    return _check(_libc.inotify_add_watch(fd, _path(path), ctypes.c_uint32(mask)), "inotify_add_watch", path)


def inotify_rm_watch(fd: int, watch: int) -> None:
    """Stop a watch."""
    _check(_libc.inotify_rm_watch(fd, watch), "inotify_rm_watch")


def inotify_events(data: bytes) -> Iterator[tuple[int, int, str]]:
    """``(watch, mask, name)`` of each event in what was read from the descriptor."""
    offset = 0
    while offset + 16 <= len(data):
        watch, mask, _cookie, length = struct.unpack_from("=iIII", data, offset)
        offset += 16
        yield watch, mask, os.fsdecode(data[offset : offset + length].split(b"\0", 1)[0])
        offset += length
