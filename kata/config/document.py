"""TOML files and the lines their keys stand on.  The only module that imports tomli.

tomli, with ``re`` and ``enum`` that it brings, takes as long as half of all else that a verb
imports.  So what a file said is kept in :func:`memo`, and holds as long as the
file's text is the same.
"""

from __future__ import annotations

import os
import stat

from kata import state
from kata.digest import hexdigest
from kata.errors import ConfigError, HostError, KataError
from kata.record import Record

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

MAX_SIZE = 1 << 20  #: bytes
MOST_KEPT = 64  #: files that are remembered

_TABLE = r"^\s*\[\[?\s*([^\[\]#]+?)\s*\]\]?\s*(#.*)?$"
_KEY = r"""^\s*([A-Za-z0-9_.\s"'-]+?)\s*="""


class Document(Record):
    """A parsed file."""

    path: str
    data: Mapping[str, Any]
    lines: Mapping[tuple[str, str], int]

    def place(self, table: str, key: str = "") -> str:
        """``FILE:LINE`` of a key or, without one, of a table's header."""
        line = self.lines.get((table, key)) or self.lines.get((table, "")) or self.lines.get(("", table))
        return f"{self.path}:{line}" if line else self.path


def read(path: str) -> Document:
    """Read a configuration file.

    :raise FileNotFoundError: there is none.
    :raise ConfigError: it cannot be read or is not TOML; the text has file and line.
    """
    return _remembered(text_of(path), path)


def text_of(path: str, name: str = "", limit: int = MAX_SIZE) -> str:
    """What is in a regular file of at most ``limit`` bytes; a FIFO is not waited for.

    :param name: what errors call it, if not by its path.
    :raise FileNotFoundError: there is none.
    :raise ConfigError: it cannot be read.
    """
    name = name or path
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as e:
        raise ConfigError(f"cannot read {name}: {_reason(e)}") from e
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ConfigError(f"cannot read {name}: it is not a regular file")
    with os.fdopen(fd, "rb") as f:
        raw = f.read(limit + 1)
    if len(raw) > limit:
        raise ConfigError(f"{name} is larger than {limit >> 20} MiB")
    try:
        return raw.decode()
    except UnicodeDecodeError as e:
        line = raw.count(b"\n", 0, e.start) + 1
        raise ConfigError(f"{name}:{line}: is not UTF-8") from e


def memo() -> str:
    """The folder with what files said, one file for each path."""
    return f"{state.RUN_DIR}/parsed"


def _remembered(text: str, path: str) -> Document:
    """:func:`parse`, or what it answered for the same text at the same path."""
    kept, digest = f"{memo()}/{hexdigest(os.path.abspath(path))[:20]}.json", hexdigest(text)
    try:
        known = state.read_json(kept)
        if known["text"] == digest:
            return Document(path, known["data"], {(table, key): line for table, key, line in known["lines"]})
    except (OSError, KataError, KeyError, TypeError, ValueError):
        pass  # none, or not ours
    document = parse(text, path)
    try:
        os.makedirs(memo(), mode=0o700, exist_ok=True)
        names = os.listdir(memo())
        for name in names if len(names) >= MOST_KEPT else ():
            os.unlink(f"{memo()}/{name}")
        state.write_json(kept, {"version": state.VERSION, "text": digest, "data": document.data,
                                "lines": [[*place, line] for place, line in document.lines.items()]})
    except (OSError, HostError, TypeError):
        pass  # not root, say, or a date, which JSON has no word for: it is slower without
    return document


def parse(text: str, path: str) -> Document:
    """What a file says.

    :raise ConfigError: it is not TOML; the text has file and line.
    """
    import tomli  # here, so that a verb which reads no configuration does not pay for it

    try:
        data = tomli.loads(text)
    except tomli.TOMLDecodeError as e:
        raise ConfigError(_syntax(path, str(e), text)) from e
    except RecursionError as e:
        raise ConfigError(f"{path} is nested too deeply") from e
    return Document(path, data, _lines(text))


def _syntax(path: str, message: str, text: str) -> str:
    """tomli's message with the line where editors look for it."""
    import re

    found = re.search(r"^(.*) \(at line (\d+), column (\d+)\)$", message)
    if found:
        return f"{path}:{found[2]}: {found[1]} (column {found[3]})"
    return f"{path}:{text.count(chr(10)) + 1}: {message}"


def _lines(text: str) -> dict[tuple[str, str], int]:
    """Line of each (table, key) and each (table, "").

    A line inside a multi-line string may look like a key; the first one counts
    and only the line number in an error depends on it.
    """
    import re  # tomli has imported it

    lines: dict[tuple[str, str], int] = {}
    table = ""
    for number, line in enumerate(text.split("\n"), 1):
        if header := re.match(_TABLE, line):
            table = _plain(header[1])
            lines.setdefault((table, ""), number)
        elif key := re.match(_KEY, line):
            dotted = f"{table}.{_plain(key[1])}".strip(".")
            parent, _dot, name = dotted.rpartition(".")
            lines.setdefault((parent, name), number)
            lines.setdefault((parent, ""), number)
    return lines


def _plain(name: str) -> str:
    """A dotted name without the quotes and blanks TOML allows in it."""
    return ".".join(part.strip().strip("\"'") for part in name.split("."))


def _reason(e: OSError | ValueError) -> str:
    return (e.strerror or str(e)).lower() if isinstance(e, OSError) else str(e)
