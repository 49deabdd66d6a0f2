"""State on disk: container records and sandbox records.

A record is one JSON file, written aside and renamed, so a reader sees the old
or the new one and never half of either.  A record of an unknown version is
refused, never guessed.  ``state`` and ``list`` need nothing but these files
and ``/proc``, and import next to nothing: every verb pays for this module.

Layout: see ARCHITECTURE.md, "Where things live on the host".
"""

from __future__ import annotations

import errno
import os

from kata.errors import Damaged, Foreign, HostError, InUse, NotFound, StateError, UsageError
from kata.jsontext import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

VERSION = 1
RUN_DIR = "/run/kata"
DEFAULT_ROOT = f"{RUN_DIR}/containers"

# Legal status values, runtime-spec "State", plus the runtime's own "paused".
STATUSES = ("creating", "created", "running", "paused", "stopped")

_NEW, _OLD = ".new-", ".old-"  # folders on their way in and out; no id begins with a dot
_REMOVE = "remove the container with 'delete --force'"

#: What every verb may rely on in a container's record.
_FIELDS: dict[str, type] = {
    **dict.fromkeys(("ociVersion", "id", "status", "bundle", "rootfs", "created", "owner", "flavor", "backend",
                     "sandbox_id", "sandbox_key", "role", "cgroup"), str),
    **dict.fromkeys(("pid", "pid_start", "creator", "creator_start"), int),
    **dict.fromkeys(("annotations", "hooks"), dict),
}


def check_id(container_id: str) -> str:
    """A container id that can be a file name, or :raise UsageError:."""
    if not container_id:
        raise UsageError("Missing container ID", kind="missing-id")
    plain = container_id.translate({ord(c): None for c in "_+.-"})
    if (len(container_id) > 255 or not container_id.isascii() or container_id[0] in ".-"
            or not (plain.isalnum() or not plain)):
        raise UsageError(f"invalid container ID {container_id[:80]!r}",
                         "it must be at most 255 letters, digits, '_', '+', '.', '-' and start with none of '.-'")
    return container_id


def sandbox_key(root: str, sandbox_id: str) -> str:
    """Name of a sandbox's directory: short, since socket paths are."""
    return _short(f"{root}\0{sandbox_id}")


def _short(text: str) -> str:
    from kata.digest import hexdigest  # for who makes something

    return hexdigest(text)[:20]


def sandbox_dir(key: str) -> str:
    return f"{RUN_DIR}/sandboxes/{key}"


def container_dir(root: str, container_id: str) -> str:
    return f"{root}/{container_id}"


# --- files ------------------------------------------------------------------------


def write_json(path: str, value: Mapping[str, Any]) -> None:
    """Replace ``path`` atomically; durable where the file system outlives a crash."""
    aside = f"{path}.{os.getpid()}.tmp"
    try:
        # Not O_EXCL: a writer of the same pid may have been killed here.
        fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            data = dumps(value).encode()
            while data:
                data = data[os.write(fd, data):]
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(aside, path)
    except OSError as e:
        try:
            os.unlink(aside)
        except FileNotFoundError:
            pass
        raise HostError(f"cannot write {path}: {e.strerror}", full_disk(e)) from e


def full_disk(error: OSError) -> str:
    """A hint, if that is why."""
    return "the file system is full: make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""


def read_json(path: str) -> dict[str, Any]:
    """A record.

    :raise FileNotFoundError: there is none.
    :raise Damaged: it is no record.
    :raise StateError: it is of another version: whole, but not ours to judge; or it cannot be read.
    :raise Foreign: it is runc's, which shares a folder with us under docker and containerd.
    """
    try:
        with open(path, "rb", buffering=0) as f:
            data = f.read()
    except (FileNotFoundError, NotADirectoryError):
        raise
    except IsADirectoryError as e:
        raise Damaged(f"the state file {path} is damaged: {e.strerror}", _REMOVE) from e
    except OSError as e:
        raise StateError(f"cannot read the state file {path}: {e.strerror}") from e
    try:
        value = loads(data)
        if isinstance(value, dict) and "init_process_pid" in value:
            raise _foreign(path)
        version = value["version"]
    except (ValueError, KeyError, TypeError) as e:
        raise Damaged(f"the state file {path} is damaged", _REMOVE) from e
    if version != VERSION:
        raise StateError(f"the state file {path} has version {version}, this program knows version {VERSION}",
                         "use the program that wrote it")
    result: dict[str, Any] = value
    return result


def _foreign(path: str) -> Foreign:
    return Foreign(f"{path} is of another runtime", "use the one that made the container: runc or crun")


class locked:
    """Hold a directory exclusively among processes, ``with locked(DIRECTORY)``; needs no room on the disk.

    :raise FileNotFoundError: there is none.
    :raise HostError: somebody else has held it for ``timeout`` seconds.
    """

    def __init__(self, directory: str, timeout: float = 120.0) -> None:
        self._directory = directory
        self._timeout = timeout
        self._fd = -1

    def __enter__(self) -> int:
        import fcntl

        self._fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                wait_for_lock(self._fd, self._directory, self._timeout)
        except BaseException:
            os.close(self._fd)
            raise
        return self._fd

    def __exit__(self, *_exc: object) -> None:
        os.close(self._fd)


def wait_for_lock(fd: int, directory: str, timeout: float) -> None:
    """Take it; flock has no deadline of its own, so an alarm ends it.  Call from the main thread.

    :raise HostError: somebody else has held it for ``timeout`` seconds.
    """
    import fcntl
    import signal

    def late(_number: int, _frame: object) -> None:
        raise HostError(f"another process has held the lock of {directory} for {timeout:g} s",
                        "see /proc/locks for who it is")

    previous = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, timeout)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


# --- processes ----------------------------------------------------------------------


def start_time(pid: int) -> int:
    """Clock ticks after boot when ``pid`` started; 0 if there is no such process.

    With the pid it names one process for as long as the host is up.  A zombie
    counts as gone.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            fields = f.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])


def alive(pid: int, started: int) -> bool:
    return pid > 0 and start_time(pid) == started != 0


# --- containers ---------------------------------------------------------------------


class Container:
    """A container's record, ``ROOT/ID/state.json``."""

    def __init__(self, root: str, container_id: str, record: dict[str, Any]) -> None:
        self.root = root
        self.id = container_id
        self.record = record

    @property
    def dir(self) -> str:
        return container_dir(self.root, self.id)

    @property
    def sandbox_dir(self) -> str:
        return sandbox_dir(self.record["sandbox_key"])

    @property
    def proxy_socket(self) -> str:
        return f"{self.sandbox_dir}/proxy.sock"

    def status(self) -> str:
        """The recorded status, corrected when the processes behind it are gone."""
        recorded: str = self.record["status"]
        if recorded == "creating" and not alive(self.record["creator"], self.record["creator_start"]):
            return "stopped"
        if recorded in ("created", "running", "paused") and not alive(self.record["pid"], self.record["pid_start"]):
            return "stopped"
        return recorded

    def update(self, **changes: Any) -> None:
        self.record = {**self.record, **changes}
        write_json(f"{self.dir}/state.json", self.record)

    def made_of(self, *names: str) -> dict[str, Any]:
        """What it was made of, ``process.json``: ``process``, ``extras``, ``resources``.

        :param names: those that are needed.
        :raise Damaged: one is not there.
        """
        path = f"{self.dir}/process.json"
        try:
            found = read_json(path)
        except FileNotFoundError:
            found = {}
        wrong = [name for name in names if not isinstance(found.get(name), dict)]
        if wrong:
            raise Damaged(f"the state file {path} is damaged: {', '.join(wrong)}", _REMOVE)
        return found

    def view(self) -> dict[str, Any]:
        """The record as the verbs show it: OCI keys, effective status."""
        status = self.status()
        pid = 0 if status == "stopped" else self.record["pid"]
        return {**self.record, "status": status, "pid": pid}


class Unrecorded(Container):
    """A container whose record cannot be read: what its sandbox's record says.  Nothing is written over what is there.

    :param entry: of ``containers`` in ``sandbox.json``; {} where it is in no sandbox.
    """

    def __init__(self, root: str, container_id: str, key: str, entry: Mapping[str, Any]) -> None:
        super().__init__(root, container_id, {
            "id": container_id, "status": "created", "pid": 0, "pid_start": 0, "sandbox_key": key,
            "cgroup": entry.get("cgroup", ""), "flavor": entry["plan"]["flavor"] if entry else "",
            "hooks": {"poststart": [], "poststop": []}})

    def update(self, **changes: Any) -> None:
        self.record = {**self.record, **changes}


def _read_container(root: str, container_id: str) -> Container:
    """:raise: see :func:`read_json`."""
    path = f"{container_dir(root, container_id)}/state.json"
    record = read_json(path)
    wrong = [name for name, kind in _FIELDS.items() if not isinstance(record.get(name), kind)]
    if wrong:
        raise Damaged(f"the state file {path} is damaged: {', '.join(wrong)}", _REMOVE)
    return Container(root, container_id, record)


def new_container(root: str, container_id: str, record: Mapping[str, Any]) -> Container:
    """Claim an id and write its first record, in one step: an id that is taken has a record.

    :raise InUse: the id exists.
    """
    path = container_dir(root, container_id)
    aside = f"{root}/{_NEW}{os.getpid()}"
    try:
        os.makedirs(root, mode=0o700, exist_ok=True)
        _register_root(root)
        _remove_tree(aside)  # of a creator of the same pid that was killed
        os.mkdir(aside, 0o700)
        try:
            write_json(f"{aside}/state.json", {"version": VERSION, **record})
            # Fails where there is a folder with something in it; an empty one holds no container.
            os.rename(aside, path)
        except BaseException:
            _remove_tree(aside)
            raise
    except OSError as e:
        if e.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise InUse(f"ID already in use, unique ID should be provided: {container_id}",
                        f"delete it first: kata --root {root} delete {container_id}",
                        values={"id": container_id}) from e
        raise HostError(f"cannot make {path}: {e.strerror}", full_disk(e)) from e
    return Container(root, container_id, {"version": VERSION, **record})


def identity(root: str) -> list[int]:
    """Device and inode of a root of records as it is seen from here; [] where there is none."""
    try:
        found = os.stat(root)
    except OSError:
        return []
    return [found.st_dev, found.st_ino]


def stale_folders() -> list[str]:
    """Folders of verbs that were killed while they made or removed a record."""
    found = []
    for root in known_roots():
        try:
            names = _names(root)
        except StateError:  # `list` says so
            continue
        for name in names:
            pid = name[len(_NEW):]
            if name.startswith((_NEW, _OLD)) and pid.isdecimal() and not start_time(int(pid)):
                found.append(f"{root}/{name}")
    return found


def load_container(root: str, container_id: str) -> Container:
    """The container ``container_id``; with ``root`` "" it is looked for in every known root.

    :raise NotFound: there is no such container.
    :raise StateError: it exists in several roots, or is of another version.
    :raise Damaged: its record is unreadable.
    :raise Foreign: another runtime made it.
    """
    check_id(container_id)
    roots = [root] if root else [r for r in known_roots() if os.path.isdir(container_dir(r, container_id))]
    if len(roots) > 1:
        where = ", ".join(roots)
        raise StateError(f"container {container_id} exists in several roots: {where}", "name one with --root")
    if roots:
        directory = container_dir(roots[0], container_id)
        try:
            return _read_container(roots[0], container_id)
        except (FileNotFoundError, NotADirectoryError):
            names = _names(directory)
            if "status" in names:  # crun's record; none of ours has this name
                raise _foreign(f"{directory}/status") from None
            if names:
                raise Damaged(f"the record of container {container_id} is not in its folder", _REMOVE) from None
    raise NotFound(f"Container ID ({container_id}) does not exist", values={"id": container_id})


def remove_container(container: Container) -> None:
    """Remove the record, in one step: nobody sees a part of it.

    :raise HostError: it cannot be removed.
    """
    aside = f"{container.root}/{_OLD}{os.getpid()}"
    _remove_tree(aside)
    try:
        os.rename(container.dir, aside)
    except FileNotFoundError:
        return
    except OSError as e:
        raise HostError(f"cannot remove {container.dir}: {e.strerror}") from e
    _remove_tree(aside)


def _remove_tree(path: str) -> None:
    """Remove a record's folder, as far as it goes; nothing is no error.  It holds files only.  Of a link, the link."""
    if os.path.islink(path):
        os.unlink(path)
        return
    for name in _names(path):
        try:
            os.unlink(f"{path}/{name}")
        except OSError:  # whatever a damaged one may hold
            import shutil

            shutil.rmtree(f"{path}/{name}", ignore_errors=True)
    try:
        os.rmdir(path)
    except OSError:
        pass


def _names(directory: str) -> list[str]:
    """What is in a folder; nothing, if there is none.

    :raise StateError: it cannot be read.
    """
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as e:
        raise StateError(f"cannot read {directory}: {e.strerror}") from e


def list_containers(root: str) -> Iterator[tuple[str, Container | StateError]]:
    """Every container of ``root`` ("": of all known roots), damaged ones as their error, without other runtimes'."""
    for each in [root] if root else known_roots():
        try:
            names = sorted(_names(each))
        except StateError as e:
            if root:
                raise
            yield each, e
            continue
        for name in names:
            try:
                yield name, _read_container(each, name)
            except (FileNotFoundError, NotADirectoryError, Foreign):
                continue
            except StateError as e:
                yield name, e


def _register_root(root: str) -> None:
    """Remember ``root``, so that a verb without ``--root`` finds its containers."""
    if root == DEFAULT_ROOT:
        return
    index = f"{RUN_DIR}/roots"
    os.makedirs(index, mode=0o700, exist_ok=True)
    try:
        os.symlink(root, f"{index}/{_short(root)}")
    except FileExistsError:
        pass


def known_roots() -> list[str]:
    """The default root and every other one in use; forgotten ones are dropped."""
    roots = [DEFAULT_ROOT]
    index = f"{RUN_DIR}/roots"
    for name in sorted(_names(index)):
        try:
            root = os.readlink(f"{index}/{name}")
            if os.path.isdir(root):
                roots.append(root)
            else:
                os.unlink(f"{index}/{name}")
        except OSError:  # another verb has dropped it
            pass
    return roots
