"""Options of mounts (runtime-spec, config.md, "Linux mount options")."""

from __future__ import annotations

from collections.abc import Iterable

from kata_agent.linux import syscalls as sc

#: option -> (MS_* flags, True = sets them).
_FLAGS = {
    "async": (sc.MS_SYNCHRONOUS, False),
    "atime": (sc.MS_NOATIME, False),
    "defaults": (0, True),
    "dev": (sc.MS_NODEV, False),
    "diratime": (sc.MS_NODIRATIME, False),
    "dirsync": (sc.MS_DIRSYNC, True),
    "exec": (sc.MS_NOEXEC, False),
    "iversion": (sc.MS_I_VERSION, True),
    "lazytime": (sc.MS_LAZYTIME, True),
    "loud": (sc.MS_SILENT, False),
    "mand": (sc.MS_MANDLOCK, True),
    "noatime": (sc.MS_NOATIME, True),
    "nodev": (sc.MS_NODEV, True),
    "nodiratime": (sc.MS_NODIRATIME, True),
    "noexec": (sc.MS_NOEXEC, True),
    "noiversion": (sc.MS_I_VERSION, False),
    "nolazytime": (sc.MS_LAZYTIME, False),
    "nomand": (sc.MS_MANDLOCK, False),
    "norelatime": (sc.MS_RELATIME, False),
    "nostrictatime": (sc.MS_STRICTATIME, False),
    "nosuid": (sc.MS_NOSUID, True),
    "nosymfollow": (sc.MS_NOSYMFOLLOW, True),
    "relatime": (sc.MS_RELATIME, True),
    "ro": (sc.MS_RDONLY, True),
    "rw": (sc.MS_RDONLY, False),
    "silent": (sc.MS_SILENT, True),
    "strictatime": (sc.MS_STRICTATIME, True),
    "suid": (sc.MS_NOSUID, False),
    "symfollow": (sc.MS_NOSYMFOLLOW, False),
    "sync": (sc.MS_SYNCHRONOUS, True),
}

#: option -> (propagation, recursive).
PROPAGATION = {
    "private": (sc.MS_PRIVATE, False),
    "rprivate": (sc.MS_PRIVATE, True),
    "shared": (sc.MS_SHARED, False),
    "rshared": (sc.MS_SHARED, True),
    "slave": (sc.MS_SLAVE, False),
    "rslave": (sc.MS_SLAVE, True),
    "unbindable": (sc.MS_UNBINDABLE, False),
    "runbindable": (sc.MS_UNBINDABLE, True),
}

# MS_* of a mount (not of its file system), and the MOUNT_ATTR_* of mount_setattr(2).
_ATTRS = {
    sc.MS_RDONLY: sc.MOUNT_ATTR_RDONLY,
    sc.MS_NOSUID: sc.MOUNT_ATTR_NOSUID,
    sc.MS_NODEV: sc.MOUNT_ATTR_NODEV,
    sc.MS_NOEXEC: sc.MOUNT_ATTR_NOEXEC,
    sc.MS_NODIRATIME: sc.MOUNT_ATTR_NODIRATIME,
    sc.MS_NOSYMFOLLOW: sc.MOUNT_ATTR_NOSYMFOLLOW,
}
_ATIMES = {
    sc.MS_NOATIME: sc.MOUNT_ATTR_NOATIME,
    sc.MS_RELATIME: sc.MOUNT_ATTR_RELATIME,
    sc.MS_STRICTATIME: sc.MOUNT_ATTR_STRICTATIME,
}
#: Options that also exist with an "r" in front, for the whole tree.
_RECURSIVE = frozenset({
    "ro", "rw", "nosuid", "suid", "nodev", "dev", "noexec", "exec", "nodiratime", "diratime", "relatime", "norelatime",
    "noatime", "atime", "strictatime", "nostrictatime", "nosymfollow", "symfollow",
})


class Attributes:
    """What mount_setattr(2) is to set and clear."""

    __slots__ = ("clear", "set")

    def __init__(self) -> None:
        self.set = 0
        self.clear = 0

    def __bool__(self) -> bool:
        return bool(self.set or self.clear)

    def add(self, flag: int, on: bool) -> None:
        """Take over one MS_* flag, if it is one of a mount."""
        if flag in _ATIMES:
            # One of three values in one field, which has to be cleared as a whole.
            self.clear |= sc.MOUNT_ATTR__ATIME
            self.set = self.set & ~sc.MOUNT_ATTR__ATIME | (_ATIMES[flag] if on else sc.MOUNT_ATTR_RELATIME)
            return
        attr = _ATTRS.get(flag, 0)
        if on:
            self.set |= attr
            self.clear &= ~attr
        else:
            self.clear |= attr
            self.set &= ~attr


class MountOptions:
    """Parsed options of one mount."""

    __slots__ = ("attributes", "bind", "copy_up", "data", "flags", "idmap", "propagation", "recursive", "tree")

    def __init__(self, options: Iterable[str]) -> None:
        self.flags = 0  #: MS_* for mount(2)
        self.attributes = Attributes()  #: the same for an existing mount
        self.tree = Attributes()  #: for the whole tree ("rro", ...)
        self.propagation: list[tuple[int, bool]] = []  #: (MS_*, recursive), in order
        self.bind = False
        self.recursive = False
        self.copy_up = False
        self.idmap = ""  #: "", "idmap" or "ridmap"
        data = []
        for option in options:
            if option in ("bind", "rbind"):
                self.bind = True
                self.recursive = self.recursive or option == "rbind"
            elif option in PROPAGATION:
                self.propagation.append(PROPAGATION[option])
            elif option in _FLAGS:
                flag, on = _FLAGS[option]
                self.flags = self.flags | flag if on else self.flags & ~flag
                if flag:
                    self.attributes.add(flag, on)
            elif option[:1] == "r" and option[1:] in _RECURSIVE:
                self.tree.add(*_FLAGS[option[1:]])
            elif option == "tmpcopyup":
                self.copy_up = True
            elif option in ("idmap", "ridmap"):
                self.idmap = option
            elif option:
                data.append(option)
        self.data = ",".join(data)  #: options of the file system itself
