"""User and group names, looked up in the files of the container (passwd(5), group(5))."""

from __future__ import annotations

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_MAX_FILE = 16 << 20  # bytes
_CHUNK = 1 << 17  # bytes
_MAX_ID = (1 << 32) - 2  # (uid_t) -1 means "unchanged" to the kernel


class UserError(Exception):
    """A name that is not in the container's files; the text is runc's."""


class Identity:
    """Numbers of a user."""

    __slots__ = ("gid", "groups", "home", "uid")

    def __init__(self, uid: int, gid: int, groups: Sequence[int], home: str) -> None:
        self.uid = uid
        self.gid = gid
        self.groups = list(groups)
        self.home = home


def _entries(path: str, fields: int) -> Iterator[list[str]]:
    try:
        data = _read(path)
    except OSError:
        return
    for line in data.decode("utf-8", "surrogateescape").splitlines():
        parts = line.strip().split(":")
        if len(parts) >= fields and not line.startswith("#"):
            yield parts


def _read(path: str) -> bytes:
    """A file's first bytes; unbuffered, as each look at the file is a message to the host."""
    with open(path, "rb", buffering=0) as file:
        data = b""
        # A read that comes back short has met the end: 9p asks on until then.
        while len(piece := file.read(_CHUNK)) == _CHUNK and len(data) < _MAX_FILE:
            data += piece
        return data + piece


def _number(text: str) -> int | None:
    if text.isascii() and text.isdigit() and int(text) <= _MAX_ID:
        return int(text)
    return None


def home_of(uid: int) -> str:
    """Home directory of a uid, "/" when it has none."""
    for entry in _entries("/etc/passwd", 6):
        if _number(entry[2]) == uid:
            return entry[5] or "/"
    return "/"


def look_up(user: str, group: str, additional: Sequence[str]) -> Identity:
    """The numbers of names or decimal numbers.

    Without ``group``, a user that is in passwd has the group of its entry, and
    is in the groups that list it.

    :raise UserError: a name is in no file.
    """
    uid = _number(user) if user else 0
    gid: int | None = None
    home = ""
    name = ""
    for entry in _entries("/etc/passwd", 6):
        if entry[0] == user or (uid is not None and _number(entry[2]) == uid):
            uid, gid, home, name = _number(entry[2]), _number(entry[3]), entry[5], entry[0]
            break
    if uid is None:
        raise UserError(f"unable to find user {user}: no matching entries in passwd file")
    groups = []
    if group:
        gid = group_of(group)
    elif name:
        groups = [g for e in _entries("/etc/group", 4) if name in e[3].split(",") and (g := _number(e[2])) is not None]
    for text in additional:
        groups.append(group_of(text))
    return Identity(uid, gid or 0, list(dict.fromkeys(groups)), home or "/")


def group_of(group: str) -> int:
    """Number of a group.

    :raise UserError: it is in no file.
    """
    for entry in _entries("/etc/group", 3):
        if entry[0] == group and (found := _number(entry[2])) is not None:
            return found
    number = _number(group)
    if number is None:
        raise UserError(f"unable to find group {group}: no matching entries in group file")
    return number
