"""CRI-O: crio.conf and its drop-ins."""

from __future__ import annotations

from kata.engines.files import Toml

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

PLACES = {"crio": ("/etc/crio/crio.conf", "/etc/crio/crio.conf.d/*")}


class Crio(Toml):
    """CRI-O's configuration."""

    default_key = (("crio", "runtime"), "default_runtime")

    def _find(self, data: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...], str, str]]:
        for name, entry in self._table(data, "crio", "runtime", "runtimes").items():
            if isinstance(entry, dict) and isinstance(entry.get("runtime_path"), str) and entry["runtime_path"]:
                self.tables[name] = entry
                yield name, ("crio", "runtime", "runtimes", name), "runtime_path", entry["runtime_path"]

    def _added(self, name: str, like: str, program: str) -> tuple[tuple[tuple[str, ...], str], Any]:
        tables, _key = self.found[like]
        return (tables[:-1], name), {**self.tables[like], "runtime_path": program}

    def _place(self, name: str, program: str) -> tuple[tuple[tuple[str, ...], str], Any]:
        return (("crio", "runtime", "runtimes"), name), {
            "runtime_path": program, "runtime_type": "oci", "runtime_root": "/run/kata/crio",
            "privileged_without_host_devices": True}
