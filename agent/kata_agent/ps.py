"""The processes of a container, as ps(1) shows them."""

from __future__ import annotations

import os
import time

from kata_agent.cgroup import memory
from kata_agent.errors import invalid
from kata_agent.stats import inner_pid

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from kata_agent.container import Container

_FULL = ("UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD")
_AUX = ("USER", "PID", "%CPU", "%MEM", "VSZ", "RSS", "TTY", "STAT", "START", "TIME", "COMMAND")
#: Names of -o and the headings they get.
_COLUMNS = {
    "pid": "PID", "ppid": "PPID", "uid": "UID", "user": "USER", "group": "GROUP", "gid": "GID", "comm": "COMMAND",
    "args": "COMMAND", "cmd": "CMD", "command": "COMMAND", "time": "TIME", "tty": "TT", "tt": "TT", "stat": "STAT",
    "state": "S", "s": "S", "vsz": "VSZ", "rss": "RSS", "nice": "NI", "ni": "NI", "pcpu": "%CPU", "%cpu": "%CPU",
    "pmem": "%MEM", "%mem": "%MEM", "stime": "STIME", "start": "START", "etime": "ELAPSED", "c": "C",
}
_HERTZ = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class _Process:
    """What /proc says of one process; numbers are those in the container's pid namespace."""

    def __init__(self, pid: int, uptime: float, memory_total: int) -> None:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            text = file.read()
        name, _, rest = text.partition("(")[2].rpartition(")")
        fields = rest.split()
        info = os.stat(f"/proc/{pid}")
        with open(f"/proc/{pid}/cmdline", "rb") as raw:
            line = raw.read(4096).rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")
        cpu = (int(fields[11]) + int(fields[12])) / _HERTZ
        age = max(uptime - int(fields[19]) / _HERTZ, 0.0)
        started = time.localtime(time.time() - age)
        share = int(100 * cpu / age) if age > 0 else 0
        rss = int(fields[21]) * _PAGE
        tty = int(fields[4])
        self.pid = inner_pid(pid)
        parent = int(fields[1])
        command = line or f"[{name}]"
        clock = time.strftime("%H:%M", started)
        self.values = {
            "PID": str(self.pid), "PPID": str(inner_pid(parent) if parent else 0), "UID": str(info.st_uid),
            "USER": str(info.st_uid), "GROUP": str(info.st_gid), "GID": str(info.st_gid), "CMD": command,
            "COMMAND": command, "COMM": name, "TIME": _clock(cpu), "TTY": _tty(tty), "TT": _tty(tty),
            "STAT": fields[0], "S": fields[0], "VSZ": str(int(fields[20]) // 1024), "RSS": str(rss // 1024),
            "NI": fields[16], "%CPU": f"{share:.1f}", "%MEM": f"{100 * rss / memory_total:.1f}", "STIME": clock,
            "START": clock, "ELAPSED": _clock(age), "C": str(min(share, 99)),
        }


def _clock(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}"


def _tty(number: int) -> str:
    major = number >> 8 & 0xFFF
    minor = number & 0xFF | number >> 12 & 0xFFF00
    if number == 0:
        return "?"
    return f"pts/{(major - 136) * 256 + minor}" if 136 <= major <= 143 else f"{major}:{minor}"


def listing(container: Container, form: str, args: list[str]) -> bytes:
    """The list in format ``json`` (an array of pids) or ``table`` (text; ``args`` as for ps).

    Pids are those that processes of the container see.

    :raise AgentError: INVALID_ARGUMENT.
    """
    pids = container.pids()
    if form == "json":
        return f"[{','.join(str(inner) for pid in pids if (inner := inner_pid(pid)))}]".encode()
    if form not in ("", "table"):
        raise invalid(f"unknown format {form!r}: json or table is expected")
    columns = _columns(args)
    with open("/proc/uptime", encoding="ascii") as file:
        uptime = float(file.read().split()[0])
    total, _available = memory()
    found = []
    for pid in pids:
        try:
            found.append(_Process(pid, uptime, total))
        except (OSError, ValueError, IndexError):
            continue  # it has ended meanwhile
    found.sort(key=lambda process: process.pid)
    rows = [[heading for heading, _key in columns]]
    rows += [[process.values[key] for _heading, key in columns] for process in found]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    lines = [" ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return ("\n".join(lines) + "\n").encode()


def _columns(args: list[str]) -> list[tuple[str, str]]:
    """(heading, key of a process's values) of ps's arguments: -ef, aux, -o LIST; others are refused."""
    words = [word for arg in args for word in arg.split()]
    wanted: list[str] = []
    aux = False
    index = 0
    while index < len(words):
        word = words[index]
        if word in ("-o", "o", "--format") or word.startswith(("-o", "--format=", "-eo")):
            value = word.partition("=")[2] if word.startswith("--format=") else word.lstrip("-").lstrip("e")[1:]
            if word in ("-o", "o", "--format", "-eo"):
                index += 1
                value = words[index] if index < len(words) else ""
            wanted += [part for part in value.split(",") if part]
        elif word.lstrip("-") in ("ef", "e", "f", "A", "Af", "fe", "efw", "efww", "w", "ww"):
            pass
        elif word.lstrip("-") in ("aux", "auxw", "auxww", "u", "ax", "a", "x"):
            aux = "u" in word
        else:
            raise invalid(f"ps option {word!r} is not supported: -ef, aux or -o LIST is")
        index += 1
    if wanted:
        return [_column(name) for name in wanted]
    return [(heading, heading) for heading in (_AUX if aux else _FULL)]


def _column(name: str) -> tuple[str, str]:
    key, equals, heading = name.partition("=")
    lowered = key.lower()
    if lowered not in _COLUMNS:
        raise invalid(f"ps column {key!r} is not supported: {', '.join(sorted(_COLUMNS))} are")
    value = "COMM" if lowered == "comm" else _COLUMNS[lowered]
    return (heading if equals else _COLUMNS[lowered]), value
