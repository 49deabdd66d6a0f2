"""docker: daemon.json, and options in units of systemd and in /etc/default/docker."""

from __future__ import annotations

import re

from kata.config import jsonfile
from kata.engines.files import File, Named
from kata.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from typing import Any

PLACES = {
    "daemon.json": ("/etc/docker/daemon.json",),
    "unit": ("/etc/systemd/system/docker.service", "/etc/systemd/system/docker.service.d/*.conf",
             "/usr/lib/systemd/system/docker.service.d/*.conf", "/etc/default/docker"),
}

_RUNTIME = re.compile(r"--add-runtime(?P<gap>[= ]\s*)(?P<quote>[\"']?)(?P<name>[^\s=\"']+)=(?P<path>[^\s\"'\\]+)")
_DEFAULT = re.compile(r"--default-runtime(?P<gap>[= ]\s*)(?P<quote>[\"']?)(?P<name>[^\s\"'\\]+)")


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

    def installed(self, programs: Mapping[str, str], default: str = "") -> str:
        there = {r.name: r for r in self.runtimes}
        changes: dict[tuple[str, ...], Any] = {
            ("runtimes", name): {"path": program} for name, program in programs.items()
            if name not in there or (there[name].program, there[name].args) != (program, ())}
        if default:
            changes["default-runtime",] = default
        return jsonfile.edited(self.text, changes, self.shown)

    def removed(self, names: Collection[str], default: str = "") -> str:
        node = jsonfile.parse(self.text, self.shown)
        left = {*(node.value.get("runtimes") or {})} - {*names}
        changes: dict[tuple[str, ...], Any] = dict.fromkeys((("runtimes", n) for n in names), jsonfile.REMOVE)
        if not left:
            changes["runtimes",] = jsonfile.REMOVE
        if self.default in names:
            changes["default-runtime",] = default or jsonfile.REMOVE
        return jsonfile.edited(self.text, changes, self.shown)


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

    def installed(self, programs: Mapping[str, str], default: str = "") -> str:
        raise ConfigError(f"{self.shown}: runtimes are not added to a unit")

    def removed(self, names: Collection[str], default: str = "") -> str:
        raise ConfigError(f"{self.shown} names {', '.join(names)}", "remove the options by hand")
