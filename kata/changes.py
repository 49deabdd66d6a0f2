"""Sets of file changes that hold together: all files old, or all new, and the way back.

A set has a name and a folder, ``/var/lib/kata/changes/NAME``, with the bytes of
every file before and after, and a journal.  In this order:

1. the folder is written aside, flushed and renamed: from here on the set is known;
2. every file's new bytes, and a copy of its old ones, are written beside it: a disk
   that fills up does so here, where nothing has changed;
3. what is there is compared with what was planned on;
4. files are renamed into place, one by one;
5. the journal says *applied*, and the copies beside the files are removed.

Who is killed before 5 leaves a journal that says *applying*; :meth:`Changes.recover`,
which every other method calls first, renames the old copies back.  This takes no room
on the disk.  :meth:`Changes.rollback` is made the same way: copies first, then the
journal (*rolling back*), then renames; killed there, it is carried to its end.  So a
set that was interrupted always ends as the old files, and never needs a decision.

A link is followed, as an editor does: the file it leads to is replaced and the link
stays.  Hosts that keep /etc in links to a managed tree go on working.  A file with
several names (hard links) is refused, since a rename would part them.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from functools import partial
from hashlib import sha256

from kata.errors import HostError, KataError, StateError
from kata.jsontext import dumps, loads
from kata.record import Record
from kata.state import full_disk, locked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any

FOLDER = "/var/lib/kata/changes"
VERSION = 1
MAX_SIZE = 16 << 20  #: bytes of a file that is changed; configuration is smaller
MAX_LINKS = 40  #: as many as Linux follows

APPLYING, APPLIED, ROLLING_BACK = "applying", "applied", "rolling back"
OLD, NEW, FOREIGN = "old", "new", "changed since"  #: what a file is now

_ATTRIBUTES = ("user.", "security.selinux", "system.posix_acl_access")  #: extended attributes that go along


class Found(Record):
    """What is at a path.  ``data`` None: nothing."""

    data: bytes | None
    mode: int = 0o644
    uid: int = 0
    gid: int = 0


class Change(Record):
    """One file: ``path`` as a user knows it, ``target`` the file behind it, what was found and what shall be.

    ``after`` None removes the file.  An existing file keeps mode and owner.
    """

    path: str
    target: str
    before: Found
    after: bytes | None
    mode: int

    @property
    def changes(self) -> bool:
        return self.before.data != self.after


class Status(Record):
    """A set: ``state`` is :data:`APPLYING`, :data:`APPLIED` or :data:`ROLLING_BACK`.

    ``files`` are (path, :data:`OLD` | :data:`NEW` | :data:`FOREIGN`); ``note`` is the maker's.
    """

    name: str
    state: str
    files: tuple[tuple[str, str], ...]
    note: Mapping[str, Any]

    @property
    def now(self) -> str:
        """What all files are, or :data:`FOREIGN` if they are not all old or all new."""
        states = {state for _path, state in self.files}
        return states.pop() if len(states) == 1 else FOREIGN


def resolve(path: str, sysroot: str = "") -> str:
    """The file behind an absolute path below ``sysroot``, its links followed as if that were the root.

    :raise HostError: links lead in a circle.
    """
    left, found, links = path.split("/")[::-1], sysroot, 0
    while left:
        part = left.pop()
        if part in ("", "."):
            continue
        if part == "..":
            found = found if found == sysroot else os.path.dirname(found)
            continue
        try:
            link = os.readlink(f"{found}/{part}")
        except OSError:
            found = f"{found}/{part}"
            continue
        links += 1
        if links > MAX_LINKS:
            raise HostError(f"cannot read {sysroot}{path}: its links lead in a circle")
        if link.startswith("/"):
            found = sysroot
        left += link.split("/")[::-1]
    return found or "/"


def look(target: str) -> Found:
    """What is at ``target``, which is no link.

    :raise HostError: it cannot be read, is no regular file, is too large, or has several names.
    """
    try:
        fd = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return Found(None)
    except OSError as e:
        raise HostError(f"cannot read {target}: {e.strerror}", "" if os.geteuid() == 0 else "run as root") from e
    try:
        meta = os.fstat(fd)
        if not stat.S_ISREG(meta.st_mode):
            raise HostError(f"cannot change {target}: it is not a regular file")
        if meta.st_nlink > 1:
            raise HostError(f"cannot change {target}: it has {meta.st_nlink} names (hard links), and the others would "
                            "keep the old contents", "replace the links by copies or symbolic links")
        if meta.st_size > MAX_SIZE:
            raise HostError(f"cannot change {target}: it has {meta.st_size} bytes, at most {MAX_SIZE} are expected")
        with open(fd, "rb", closefd=False) as f:
            return Found(f.read(), stat.S_IMODE(meta.st_mode), meta.st_uid, meta.st_gid)
    finally:
        os.close(fd)


def change(path: str, after: bytes | None, *, sysroot: str = "", mode: int = 0o644) -> Change:
    """The change that makes ``path`` (absolute, below ``sysroot``) hold ``after``; ``mode`` is that of a new file.

    :raise HostError: what is there cannot be changed.
    """
    target = resolve(path, sysroot)
    return Change(f"{sysroot}{path}", target, look(target), after, mode)


class Changes:
    """All sets of a host.

    :param folder: where they are kept.
    """

    def __init__(self, folder: str = FOLDER) -> None:
        self.folder = folder

    # --- what there is ---

    def names(self) -> list[str]:
        """Sets that were applied and not rolled back, and interrupted ones."""
        try:
            return sorted(n for n in os.listdir(self.folder) if not n.startswith("."))
        except FileNotFoundError:
            return []

    def status(self, name: str) -> Status | None:
        """A set as it is now, None if there is none.  Nothing is changed.

        :raise StateError: its journal is damaged.
        """
        journal = self._read(name)
        if journal is None:
            return None
        files = tuple((str(f["path"]), _now(f)) for f in journal["files"])
        return Status(name, journal["state"], files, journal["note"])

    def recover(self, name: str) -> bool:
        """Carry an interrupted set back to the old files; says whether there was one.

        :raise HostError: somebody else has changed a file since.
        """
        if not os.path.isdir(self.folder):
            return False
        with locked(self.folder):
            return self._recover(name)

    # --- what is done ---

    def apply(self, name: str, changes: Sequence[Change], note: Mapping[str, Any] | None = None) -> None:
        """Make all changes, or none.

        :raise StateError: a set of this name is applied.
        :raise HostError: a file is not what was planned on, or cannot be written.
        """
        wanted = [c for c in changes if c.changes]
        twice = sorted({c.target for c in wanted if sum(c.target == o.target for o in wanted) > 1})
        if twice:
            raise HostError(f"{', '.join(twice)} would be changed twice", "two of the files are links to one")
        try:
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
        except OSError as e:
            raise HostError(f"cannot make {self.folder}: {e.strerror}", full_disk(e) or "run as root") from e
        with locked(self.folder):
            self._recover(name)
            if os.path.isdir(self._dir(name)):
                raise StateError(f"the changes {name} are applied already", "roll them back first")
            for c in wanted:
                _as_planned(c)
            journal = self._record(name, wanted, note or {})
            try:
                _stage(journal["files"], self._dir(name), (OLD, NEW))
                for c in wanted:
                    _as_planned(c)
                for f in journal["files"]:
                    _put(f, NEW)
                _flush_folders(journal)
                self._write(name, {**journal, "state": APPLIED})
            except BaseException as e:
                self._undo(name, journal)
                if isinstance(e, OSError):
                    raise HostError(f"cannot apply the changes {name}: {e.strerror}: {e.filename}",
                                    full_disk(e) or "nothing was changed") from e
                raise
            _unstage(journal["files"])

    def rollback(self, name: str, *, force: bool = False) -> list[str]:
        """Bring back what was before; returns the paths.

        :param force: also over files that somebody has changed since; what they hold is kept in the folder
            of the changes, whose name is then that of the set with ``.rolled-back``.
        :raise StateError: there is no such set.
        :raise HostError: a file was changed since, or cannot be written.
        """
        missing = StateError(f"there are no changes {name} to roll back")
        if not os.path.isdir(self.folder):
            raise missing
        with locked(self.folder):
            journal = self._read(name)
            if journal is None:
                raise missing
            if self._recover(name):
                return [str(f["path"]) for f in journal["files"]]
            files = journal["files"]
            foreign = [f for f in files if _now(f) == FOREIGN]
            if foreign and not force:
                raise HostError(f"{', '.join(f['path'] for f in foreign)} changed since", self._others(name, foreign)
                                or "look at it; --force replaces it and keeps a copy")
            try:
                for number, f in enumerate(files):
                    if f in foreign and look(f["target"]).data is not None:
                        _copy(f["target"], f"{self._dir(name)}/found-{number}")
                _stage(files, self._dir(name), (OLD,))
                self._write(name, {**journal, "state": ROLLING_BACK, "force": force})
            except OSError as e:
                _unstage(files)
                raise HostError(f"cannot roll back {name}: {e.strerror}: {e.filename}", full_disk(e)) from e
            self._undo(name, journal, force=force)
            return [str(f["path"]) for f in files]

    def forget(self, name: str) -> None:
        """The set is final: its files stay, and what was before is no longer kept.

        :raise StateError: it was interrupted, or there is none.
        """
        with locked(self.folder):
            journal = self._read(name)
            if journal is None or journal["state"] != APPLIED:
                raise StateError(f"the changes {name} are not applied")
            away = f"{self.folder}/.old"
            shutil.rmtree(away, ignore_errors=True)
            os.rename(self._dir(name), away)
            _flush(self.folder)
            shutil.rmtree(away, ignore_errors=True)

    def annotate(self, name: str, note: Mapping[str, Any]) -> None:
        """Replace the note of a set.

        :raise StateError: there is no such set.
        """
        with locked(self.folder):
            journal = self._read(name)
            if journal is None:
                raise StateError(f"there are no changes {name}")
            self._write(name, {**journal, "note": dict(note)})

    # --- the journal ---

    def _dir(self, name: str) -> str:
        return f"{self.folder}/{name}"

    def _read(self, name: str) -> dict[str, Any] | None:
        path = f"{self._dir(name)}/journal.json"
        try:
            with open(path, "rb") as f:
                journal = loads(f.read())
            if journal["version"] != VERSION:
                raise StateError(f"{path} has version {journal['version']}, this program knows version {VERSION}",
                                 "use the program that wrote it")
        except FileNotFoundError:
            return None
        except OSError as e:
            raise HostError(f"cannot read {path}: {e.strerror}", "run as root") from e
        except (ValueError, KeyError, TypeError) as e:
            raise StateError(f"{path} is damaged", "the files before the change are beside it: restore them by hand, "
                             "then remove the folder") from e
        result: dict[str, Any] = journal
        return result

    def _write(self, name: str, journal: Mapping[str, Any]) -> None:
        path = f"{self._dir(name)}/journal.json"
        _write_file(f"{path}.new", dumps(journal).encode())
        os.rename(f"{path}.new", path)
        _flush(self._dir(name))

    def _record(self, name: str, changes: Sequence[Change], note: Mapping[str, Any]) -> dict[str, Any]:
        """The set's folder: from its rename on, the set is known."""
        files = [{"path": c.path, "target": c.target, "number": number,
                  "before": _digest(c.before.data), "after": _digest(c.after),
                  "mode": c.mode, "aside": f"{os.path.dirname(c.target)}/.kata-{name}-{number}"}
                 for number, c in enumerate(changes)]
        folders = sorted({folder for c in changes if c.after is not None for folder in _missing_folders(c.target)})
        journal = {"version": VERSION, "state": APPLYING, "files": files, "folders": folders, "note": dict(note)}
        aside = f"{self.folder}/.new"
        try:
            shutil.rmtree(aside, ignore_errors=True)  # of somebody who was killed
            os.mkdir(aside, 0o700)
            for number, c in enumerate(changes):
                if c.before.data is not None:
                    _copy(c.target, f"{aside}/{OLD}-{number}")
                if c.after is not None:
                    _write_file(f"{aside}/{NEW}-{number}", c.after)
            _write_file(f"{aside}/journal.json", dumps(journal).encode())
            _flush(aside)
            os.rename(aside, self._dir(name))
            _flush(self.folder)
            for folder in folders:
                os.makedirs(folder, exist_ok=True)
        except OSError as e:
            shutil.rmtree(aside, ignore_errors=True)
            if os.path.isdir(self._dir(name)):
                self._undo(name, journal)
            raise HostError(f"cannot write the changes {name}: {e.strerror}: {e.filename}", full_disk(e)) from e
        return journal

    # --- the way back ---

    def _recover(self, name: str) -> bool:
        shutil.rmtree(f"{self.folder}/.new", ignore_errors=True)
        shutil.rmtree(f"{self.folder}/.old", ignore_errors=True)
        journal = self._read(name)
        if journal is None:
            return False
        if journal["state"] == APPLIED:
            _unstage(journal["files"])
            return False
        force = bool(journal.get("force"))
        foreign = [f["path"] for f in journal["files"] if _now(f) == FOREIGN]
        if foreign and not force:
            raise HostError(f"the changes {name} were interrupted, and {', '.join(foreign)} changed since",
                            f"what was before is in {self._dir(name)}: restore it by hand, then remove that folder")
        self._undo(name, journal, force=force)
        return True

    def _undo(self, name: str, journal: Mapping[str, Any], *, force: bool = False) -> None:
        """Old files into place, and the set is gone."""
        for f in reversed(journal["files"]):
            now = _now(f)
            if now == NEW or (now == FOREIGN and force):
                if f["before"] and not os.path.exists(_aside(f, OLD)):
                    _stage([f], self._dir(name), (OLD,))
                _put(f, OLD)
        _unstage(journal["files"])
        for folder in reversed(journal["folders"]):
            try:
                os.rmdir(folder)
            except OSError:  # somebody else has put something there
                pass
        _flush_folders(journal)
        kept = [n for n in os.listdir(self._dir(name)) if n.startswith("found-")]
        away = f"{self.folder}/.{name}.rolled-back" if kept else f"{self.folder}/.old"
        shutil.rmtree(away, ignore_errors=True)
        os.rename(self._dir(name), away)
        _flush(self.folder)
        if not kept:
            shutil.rmtree(away, ignore_errors=True)

    def _others(self, name: str, files: Sequence[Mapping[str, Any]]) -> str:
        """Later sets that have changed the same files, as a hint."""
        targets = {f["target"] for f in files}
        others = [other for other in self.names() if other != name
                  and any(f["target"] in targets for f in (self._read(other) or {"files": ()})["files"])]
        return f"roll back {', '.join(others)} first" if others else ""


def _digest(data: bytes | None) -> str:
    return "" if data is None else sha256(data).hexdigest()


def _now(file: Mapping[str, Any]) -> str:
    """What a file of a set is now."""
    try:
        digest = _digest(look(file["target"]).data)
    except KataError:
        return FOREIGN
    return NEW if digest == file["after"] else OLD if digest == file["before"] else FOREIGN


def _as_planned(c: Change) -> None:
    if look(c.target) != c.before:
        raise HostError(f"{c.path} changed while this went on", "nothing was changed; try again")


def _aside(file: Mapping[str, Any], which: str) -> str:
    """Beside the file, so that a rename brings it into place; no daemon reads names that begin with a dot."""
    return f"{file['aside']}.{which}"


def _stage(files: Sequence[Mapping[str, Any]], folder: str, which: Sequence[str]) -> None:
    """Copies beside each file, flushed."""
    for f in files:
        for state in which:
            if not f["after" if state == NEW else "before"]:
                continue
            aside, kept = _aside(f, state), f"{folder}/{state}-{f['number']}"
            if state == OLD:
                _copy(kept, aside)
                continue
            # As the file that it replaces, or as a new one.
            if f["before"]:
                _copy(f"{folder}/{OLD}-{f['number']}", aside, kept)
            else:
                with open(kept, "rb") as new:
                    _write_file(aside, new.read(), partial(os.fchmod, mode=f["mode"]))


def _unstage(files: Sequence[Mapping[str, Any]]) -> None:
    for f in files:
        for state in (OLD, NEW):
            try:
                os.unlink(_aside(f, state))
            except OSError:  # renamed, or never made
                pass


def _put(file: Mapping[str, Any], state: str) -> None:
    """One file as it shall be: the step that others see."""
    if file["after" if state == NEW else "before"]:
        os.rename(_aside(file, state), file["target"])
    else:
        try:
            os.unlink(file["target"])
        except FileNotFoundError:
            pass


def _write_file(path: str, data: bytes, finish: Callable[[int], None] | None = None) -> None:
    """A file with ``data``, mode 0600 and ours unless ``finish`` makes the descriptor otherwise; flushed."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        while data:
            data = data[os.write(fd, data):]
        if finish is not None:
            finish(fd)
        os.fsync(fd)
    except OSError as e:
        e.filename = path
        raise
    finally:
        os.close(fd)


def _copy(model: str, path: str, contents: str = "") -> None:
    """``path`` becomes what ``model`` is: bytes (or those of ``contents``), mode, owner, times, attributes.

    By descriptors: the folder may be a user's, who could put a link in place of either.
    """
    of = os.open(model, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def liken(fd: int) -> None:
        meta = os.fstat(of)
        os.fchown(fd, meta.st_uid, meta.st_gid)
        os.fchmod(fd, stat.S_IMODE(meta.st_mode))
        for name in os.listxattr(of):
            if name.startswith(_ATTRIBUTES):
                try:
                    os.setxattr(fd, name, os.getxattr(of, name))
                except OSError as e:
                    if e.errno not in (errno.ENOTSUP, errno.EPERM):
                        raise
        if not contents:
            os.utime(fd, ns=(meta.st_atime_ns, meta.st_mtime_ns))

    try:
        with open(contents or of, "rb", closefd=bool(contents)) as f:
            _write_file(path, f.read(), liken)
    finally:
        os.close(of)


def _missing_folders(target: str) -> Iterator[str]:
    folder = os.path.dirname(target)
    while not os.path.lexists(folder):
        yield folder
        folder = os.path.dirname(folder)


def _flush_folders(journal: Mapping[str, Any]) -> None:
    for folder in sorted({os.path.dirname(f["target"]) for f in journal["files"]}):
        if os.path.isdir(folder):
            _flush(folder)


def _flush(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
