"""Which cgroup hierarchies there are, and where in them a container belongs.

The rules for ``linux.cgroupsPath`` are runc's, because engines build the path
for runc (runtime-spec, config-linux.md, "Cgroups Path").
"""

from __future__ import annotations

import os

from kata.errors import BundleError, HostError, UnsupportedError
from kata.record import Record

CGROUP_ROOT = "/sys/fs/cgroup"
_SYSTEMD = "/run/systemd/system"  # sd_booted(3)
_OPTIONS = ("rw", "ro", "xattr", "noprefix", "clone_children", "cpuset_v2_mode")


class Hierarchy(Record):
    """One mounted hierarchy."""

    mount: str
    root: str  #: the cgroup that ``mount`` shows, "/" unless this is a container
    controllers: tuple[str, ...]  #: ("cpu", "cpuacct"), ("name=systemd",); () for cgroup v2

    @property
    def unified(self) -> bool:
        return not self.controllers

    @property
    def key(self) -> str:
        """The controllers as /proc/PID/cgroup has them."""
        return ",".join(self.controllers)

    def directory(self, cgroup: str) -> str:
        """The directory of a cgroup whose path is as in /proc/PID/cgroup."""
        relative = os.path.relpath(cgroup, self.root) if _below(cgroup, self.root) else cgroup.lstrip("/")
        return os.path.normpath(os.path.join(self.mount, relative))


def _below(path: str, top: str) -> bool:
    return top in ("/", path) or path.startswith(top + "/")


def hierarchies(mountinfo: str) -> list[Hierarchy]:
    """The hierarchies to use, from the text of /proc/self/mountinfo: all of v1, or else v2.

    Of several mounts of one hierarchy that below /sys/fs/cgroup is taken.
    """
    found: dict[tuple[str, ...], Hierarchy] = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        left, right = before.split(" "), after.split(" ")
        if len(left) < 5 or len(right) < 3 or right[0] not in ("cgroup", "cgroup2"):
            continue
        controllers: tuple[str, ...] = ()
        if right[0] == "cgroup":
            controllers = tuple(o for o in right[2].split(",")
                                if o not in _OPTIONS and not o.startswith("release_agent="))
        this = Hierarchy(left[4], left[3], controllers)
        old = found.get(controllers)
        if old is None or (_below(this.mount, CGROUP_ROOT) and not _below(old.mount, CGROUP_ROOT)):
            found[controllers] = this
    v1 = [h for h in found.values() if not h.unified]
    return v1 or list(found.values())


def mounted() -> list[Hierarchy]:
    """The hierarchies of this process's mount namespace.

    :raise HostError: there are none.
    """
    with open("/proc/thread-self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        found = hierarchies(file.read())
    if not found:
        raise HostError("no cgroup file system is mounted", f"mount cgroup v2 on {CGROUP_ROOT}")
    return found


def own(pid: int | str = "self") -> dict[str, str]:
    """``controllers -> path`` of a process, "" standing for cgroup v2.

    :raise HostError: there is no such process.
    """
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError as error:
        raise HostError(f"cannot read the cgroup of process {pid}: {error.strerror}") from error
    return {key: path for _number, key, path in (line.split(":", 2) for line in lines)}


def own_lines(pid: int) -> str:
    """Where process ``pid`` is, as a :attr:`kata.cgroups.group.Cgroup.path`."""
    paths = own(pid)
    return encode({h.key: paths[h.key] for h in mounted() if h.key in paths})


def encode(paths: dict[str, str]) -> str:
    """One path if it is the same in all hierarchies, else a line ``controllers:path`` for each."""
    if len(set(paths.values())) == 1:
        return next(iter(paths.values()))
    return "\n".join(f"{key}:{path}" for key, path in paths.items())


def decode(text: str, all_hierarchies: list[Hierarchy]) -> dict[Hierarchy, str]:
    """Directories by hierarchy of what :func:`encode` made."""
    if text.startswith("/"):
        return {h: h.directory(text) for h in all_hierarchies}
    by_key = {h.key: h for h in all_hierarchies}
    found = {}
    for line in text.split("\n"):
        key, _, path = line.partition(":")
        if key in by_key and path.startswith("/"):
            found[by_key[key]] = by_key[key].directory(path)
    return found


def place(cgroups_path: str, container_id: str, *, systemd: bool) -> str:
    """Where the container belongs; see :func:`kata.cgroups.for_container`."""
    if systemd:
        return systemd_path(cgroups_path, container_id)
    if cgroups_path.count(":") == 2 and not cgroups_path.startswith("/"):
        raise BundleError(f"linux.cgroupsPath {cgroups_path!r} is systemd's slice:prefix:name",
                          "the engine has to say --systemd-cgroup too, or use its cgroupfs driver")
    if "\0" in cgroups_path or "\n" in cgroups_path:
        raise BundleError(f"linux.cgroupsPath {cgroups_path!r} holds a control character")
    # ".." at the start cannot leave the hierarchy, whatever the path is relative to.
    inner = os.path.normpath("/" + cgroups_path) if cgroups_path else "/" + container_id
    if inner.startswith("//"):
        inner = inner[1:]
    if inner == "/":
        raise BundleError(f"linux.cgroupsPath {cgroups_path!r} is the root of the hierarchy",
                          "it has to be a cgroup of the container's own")
    if cgroups_path.startswith("/"):
        return inner
    here = own()
    paths = {}
    for hierarchy in mounted():
        base = here.get(hierarchy.key, "/")
        if hierarchy.unified:
            # Our own cgroup holds processes, so it can have no children with controllers: use its parent.
            base = os.path.dirname(base)
        paths[hierarchy.key] = base.rstrip("/") + inner
    return encode(paths)


def systemd_path(cgroups_path: str, container_id: str) -> str:
    """The path of a ``slice:prefix:name`` below the slice.

    It is made directly; systemd is not asked, so its tools do not show the scope.

    :raise UnsupportedError: the host does not run systemd.
    :raise BundleError: it is not of that form.
    """
    if not os.path.isdir(_SYSTEMD):
        raise UnsupportedError("--systemd-cgroup cannot hold: this host does not run systemd",
                               "use the engine's cgroupfs driver (docker: native.cgroupdriver=cgroupfs)")
    parts = cgroups_path.split(":") if cgroups_path else ["system.slice", "kata", container_id]
    if len(parts) != 3 or not parts[2] or "/" in cgroups_path or "\0" in cgroups_path or "\n" in cgroups_path:
        raise BundleError(f"linux.cgroupsPath {cgroups_path!r} is not slice:prefix:name",
                          "that is its form with --systemd-cgroup")
    slice_name, prefix, name = parts
    unit = name if name.endswith(".slice") else f"{prefix}-{name}.scope" if prefix else f"{name}.scope"
    return f"{expand_slice(slice_name or 'system.slice')}/{unit}"


def expand_slice(name: str) -> str:
    """``a-b.slice`` lies below ``a.slice`` (systemd.slice(5)); "" for the root slice ``-.slice``.

    :raise BundleError: it is not the name of a slice.
    """
    if name == "-.slice":
        return ""
    stem = name.removesuffix(".slice")
    if stem == name or not stem or stem.startswith("-") or stem.endswith("-") or "--" in stem:
        raise BundleError(f"{name!r} is not the name of a slice", "as in system.slice or user-1000.slice")
    path, so_far = "", ""
    for part in stem.split("-"):
        so_far = f"{so_far}-{part}" if so_far else part
        path += f"/{so_far}.slice"
    return path
