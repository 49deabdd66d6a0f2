"""Where engines name their runtimes, and how such a file is changed: docker, containerd, CRI-O, podman.

A :class:`File` is one file of an engine as it is read; every kind says which runtimes it has (:class:`Named`), which
is the default, and makes the text with other programs in it.  What is not changed stays as it is.
"""

from __future__ import annotations

import glob
import os
import re
from abc import ABC, abstractmethod

from kata.config import jsonfile
from kata.config.edit import edited
from kata.errors import ConfigError
from kata.migrate import sources
from kata.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

#: Engine -> kind of file -> places.  A glob names drop-ins.
PLACES: dict[str, dict[str, tuple[str, ...]]] = {
    "docker": {
        "daemon.json": ("/etc/docker/daemon.json",),
        "unit": ("/etc/systemd/system/docker.service", "/etc/systemd/system/docker.service.d/*.conf",
                 "/usr/lib/systemd/system/docker.service.d/*.conf", "/etc/default/docker"),
    },
    "containerd": {"containerd": ("/etc/containerd/config.toml", "/etc/containerd/conf.d/*.toml")},
    "crio": {"crio": ("/etc/crio/crio.conf", "/etc/crio/crio.conf.d/*")},
    "podman": {"podman": ("/etc/containers/containers.conf", "/etc/containers/containers.conf.d/*.conf",
                          "/usr/share/containers/containers.conf")},
}


class Named(Record):
    """A runtime that a file names.  ``fixed``: it cannot be given options there."""

    name: str
    program: str
    args: tuple[str, ...]
    line: int
    fixed: bool = True


class File(ABC):
    """One file; ``path`` is below the sysroot, ``shown`` with it."""

    def __init__(self, engine: str, path: str, sysroot: str) -> None:
        self.engine = engine
        self.path = path
        self.shown = f"{sysroot}{path}"
        self.sysroot = sysroot
        try:
            with open(sources.real(self.shown, sysroot), encoding="utf-8", newline="") as f:
                self.text = f.read()
        except UnicodeDecodeError as e:
            raise ConfigError(f"{self.shown}: is not UTF-8") from e
        except OSError as e:
            raise ConfigError(f"cannot read {self.shown}: {(e.strerror or str(e)).lower()}",
                              "leave the engine out with --engine, or make it readable") from e
        self.default, self.default_line = "", 0
        self.runtimes = list(self._read())

    @abstractmethod
    def _read(self) -> Iterator[Named]:
        """The runtimes; sets ``default`` too.

        :raise ConfigError: the file is wrong.
        """

    @abstractmethod
    def changed(self, programs: Mapping[str, tuple[str, Sequence[str]]], new: Mapping[str, str], default: str) -> str:
        """The text with other programs and options.

        :param programs: name -> program, options.
        :param new: name of a runtime that is added -> the one whose entry it gets, as it is after the change.
        :param default: name of the default runtime, "" to leave it.
        """


class DaemonJson(File):
    """docker's daemon.json."""

    def _read(self) -> Iterator[Named]:
        node = jsonfile.parse(self.text, self.shown) if self.text.strip() else jsonfile.Node({}, 0, 0)
        if not isinstance(node.value, dict):
            raise ConfigError(f"{self.shown}:1: an object is expected")
        if "default-runtime" in node.members:
            at, found = node.members["default-runtime"]
            self.default, self.default_line = str(found.value), jsonfile.line(self.text, at)
        runtimes = node.members.get("runtimes", (0, jsonfile.Node({}, 0, 0)))[1]
        if not isinstance(runtimes.value, dict):
            line = jsonfile.line(self.text, runtimes.start)
            raise ConfigError(f"{self.shown}:{line}: runtimes: an object is expected")
        for name, (at, found) in runtimes.members.items():
            entry, line = found.value, jsonfile.line(self.text, at)
            args = entry.get("runtimeArgs", []) if isinstance(entry, dict) else None
            if not isinstance(args, list) or not all(isinstance(a, str) for a in args):
                raise ConfigError(f"{self.shown}:{line}: the runtime {name!r} is no object with path and runtimeArgs")
            if isinstance(entry.get("path"), str):
                yield Named(name, entry["path"], tuple(args), line, fixed=False)

    def changed(self, programs: Mapping[str, tuple[str, Sequence[str]]], new: Mapping[str, str], default: str) -> str:
        changes: dict[tuple[str, ...], Any] = {}
        for name, (program, args) in programs.items():
            changes["runtimes", name, "path"] = program
            if args or any(r.name == name and r.args for r in self.runtimes):
                changes["runtimes", name, "runtimeArgs"] = list(args)
        for name, like in new.items():
            program, args = programs[like]
            changes["runtimes", name] = {"path": program, **({"runtimeArgs": list(args)} if args else {})}
        if default:
            changes["default-runtime",] = default
        return jsonfile.edited(self.text, changes, self.shown)


_RUNTIME = re.compile(r"--add-runtime(?P<gap>[= ]\s*)(?P<quote>[\"']?)(?P<name>[^\s=\"']+)=(?P<path>[^\s\"'\\]+)")
_DEFAULT = re.compile(r"--default-runtime(?P<gap>[= ]\s*)(?P<quote>[\"']?)(?P<name>[^\s\"'\\]+)")


class Unit(File):
    """dockerd's options in a unit of systemd, or in /etc/default/docker.  An option can name a program only."""

    def _lines(self) -> Iterator[tuple[int, str]]:
        for number, line in enumerate(self.text.splitlines(), 1):
            if not line.lstrip().startswith(("#", ";")):
                yield number, line

    def _read(self) -> Iterator[Named]:
        seen: dict[str, int] = {}
        for number, line in self._lines():
            for match in _RUNTIME.finditer(line):
                if match["name"] in seen:
                    raise ConfigError(f"{self.shown}:{number}: the runtime {match['name']!r} is added twice, first on "
                                      f"line {seen[match['name']]}", "remove one")
                seen[match["name"]] = number
                yield Named(match["name"], match["path"], (), number)
            if default := _DEFAULT.search(line):
                self.default, self.default_line = default["name"], number

    def changed(self, programs: Mapping[str, tuple[str, Sequence[str]]], new: Mapping[str, str], default: str) -> str:
        def runtime(match: re.Match[str]) -> str:
            name, gap, quote = match["name"], match["gap"], match["quote"]
            program = programs.get(name, (match["path"], ()))[0]
            more = "".join(f"{quote} --add-runtime{gap}{quote}{added}={program}"
                           for added, like in new.items() if like == name)
            return f"--add-runtime{gap}{quote}{name}={program}{more}"

        lines = self.text.splitlines(keepends=True)
        for number, line in self._lines():
            after = _RUNTIME.sub(runtime, line)
            if default:
                after = _DEFAULT.sub(lambda m: f"--default-runtime{m['gap']}{m['quote']}{default}", after)
            lines[number - 1] = after + lines[number - 1][len(line) :]  # and how the line ends
        return "".join(lines)


class Toml(File):
    """A TOML file.  ``_find`` yields what names a program: its tables, key, and the program."""

    def _read(self) -> Iterator[Named]:
        doc = sources.read(self.shown, self.sysroot)
        self.found: dict[str, tuple[tuple[str, ...], str]] = {}
        self.tables: dict[str, Any] = {}
        for name, tables, key, program in self._find(doc.data):
            line = doc.lines.get((".".join(tables), key)) or doc.lines.get((".".join(tables), "")) or 0
            self.found[name] = (tables, key)
            yield Named(name, program, (), line)
        tables, key = self.default_key
        value: Any = doc.data
        for table in tables:
            value = value.get(table, {}) if isinstance(value, dict) else {}
        if isinstance(value, dict) and isinstance(value.get(key), str):
            self.default, self.default_line = value[key], doc.lines.get((".".join(tables), key), 0)

    default_key: tuple[tuple[str, ...], str]

    @abstractmethod
    def _find(self, data: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...], str, str]]: ...

    def _value(self, name: str, program: str) -> Any:
        """What the key of a runtime holds for a program."""
        return program

    def _added(self, name: str, like: str, program: str) -> tuple[tuple[tuple[str, ...], str], Any]:
        """The key and value that add a runtime."""
        tables, _key = self.found[like]
        return (tables, name), self._value(like, program)

    def changed(self, programs: Mapping[str, tuple[str, Sequence[str]]], new: Mapping[str, str], default: str) -> str:
        changes: dict[Any, Any] = {self.found[name]: self._value(name, program)
                                   for name, (program, _args) in programs.items()}
        for name, like in new.items():
            place, value = self._added(name, like, programs[like][0])
            changes[place] = value
        if default:
            changes[self.default_key] = default
        return edited(self.text, changes, self.shown)


class Containerd(Toml):
    """containerd's config.toml, version 2 or 3: the runc shim with another program."""

    PLUGINS = ("io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri")

    def _find(self, data: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...], str, str]]:
        plugins = data.get("plugins", {})
        plugin = next((p for p in self.PLUGINS if p in plugins), self.PLUGINS[0])
        base = ("plugins", plugin, "containerd")
        self.default_key = (base, "default_runtime_name")
        for name, entry in plugins.get(plugin, {}).get("containerd", {}).get("runtimes", {}).items():
            program = entry.get("options", {}).get("BinaryName", "") if isinstance(entry, dict) else ""
            if program:
                self.tables[name] = entry
                yield name, (*base, "runtimes", name, "options"), "BinaryName", program

    def _added(self, name: str, like: str, program: str) -> tuple[tuple[tuple[str, ...], str], Any]:
        tables, _key = self.found[like]
        entry = self.tables[like]
        return (tables[:-2], name), {**entry, "options": {**entry["options"], "BinaryName": program}}


class Crio(Toml):
    """CRI-O's configuration."""

    default_key = (("crio", "runtime"), "default_runtime")

    def _find(self, data: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...], str, str]]:
        for name, entry in data.get("crio", {}).get("runtime", {}).get("runtimes", {}).items():
            if isinstance(entry, dict) and isinstance(entry.get("runtime_path"), str) and entry["runtime_path"]:
                self.tables[name] = entry
                yield name, ("crio", "runtime", "runtimes", name), "runtime_path", entry["runtime_path"]

    def _added(self, name: str, like: str, program: str) -> tuple[tuple[tuple[str, ...], str], Any]:
        tables, _key = self.found[like]
        return (tables[:-1], name), {**self.tables[like], "runtime_path": program}


class Podman(Toml):
    """containers.conf: a runtime has a list of places; the first that exists is used."""

    default_key = (("engine",), "runtime")

    def _find(self, data: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...], str, str]]:
        for name, places in data.get("engine", {}).get("runtimes", {}).items():
            if isinstance(places, list) and places and isinstance(places[0], str):
                yield name, ("engine", "runtimes"), name, places[0]

    def _value(self, name: str, program: str) -> Any:
        return [program]


KINDS: dict[str, type[File]] = {"daemon.json": DaemonJson, "unit": Unit, "containerd": Containerd, "crio": Crio,
                                "podman": Podman}


def files(sysroot: str, names: Sequence[str]) -> list[File]:
    """The files of the engines ``names`` that exist.

    :raise ConfigError: one cannot be read or is wrong.
    """
    found = []
    for engine in names:
        for kind, places in PLACES[engine].items():
            for place in places:
                for path in sorted(glob.glob(f"{glob.escape(sysroot)}{place}")):
                    if not os.path.basename(path).startswith(".") and not os.path.isdir(path):
                        found.append(KINDS[kind](engine, path.removeprefix(sysroot), sysroot))
    return found


