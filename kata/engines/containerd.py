"""containerd: config.toml of version 2 or 3, and what it imports from conf.d."""

from __future__ import annotations

from typing import ClassVar

from kata.engines.files import Toml
from kata.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

PLACES = {"containerd": ("/etc/containerd/config.toml", "/etc/containerd/conf.d/*.toml")}


class Containerd(Toml):
    """containerd's config.toml, version 2 or 3: the runc shim with another program."""

    PLUGINS = ("io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri")
    VERSIONS: ClassVar[dict[int | str | None, str]] = {
        2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime",
    }

    def _find(self, data: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...], str, str]]:
        plugins = self._table(data, "plugins")
        version, disabled = data.get("version"), data.get("disabled_plugins")
        self.version = version if isinstance(version, int | None) else repr(version)
        self.cri_disabled = isinstance(disabled, list) and any(p in ("cri", *self.PLUGINS) for p in disabled)
        plugin = next((p for p in self.PLUGINS if p in plugins), self.VERSIONS.get(self.version, ""))
        self.empty = not data
        base = ("plugins", plugin, "containerd")
        self.default_key = (base, "default_runtime_name")
        for name, entry in self._table(data, *base, "runtimes").items():
            options = entry.get("options") if isinstance(entry, dict) else None
            program = options.get("BinaryName", "") if isinstance(options, dict) else ""
            if program:
                self.tables[name] = entry
                yield name, (*base, "runtimes", name, "options"), "BinaryName", program

    def _added(self, name: str, like: str, program: str) -> tuple[tuple[tuple[str, ...], str], Any]:
        tables, _key = self.found[like]
        entry = self.tables[like]
        return (tables[:-2], name), {**entry, "options": {**entry["options"], "BinaryName": program}}

    def installed(self, programs: Mapping[str, str], default: str = "") -> str:
        if self.empty:  # comments at most
            return Containerd(self.engine, self.path, "", f"version = 2\n{self.text}").installed(programs, default)
        if self.version not in self.VERSIONS:
            said = f"version {self.version}" if self.version is not None else "no version, which means version 1"
            raise ConfigError(f"{self.shown} has {said}; known are {' and '.join(map(str, self.VERSIONS))}",
                              "`containerd config migrate` prints it in a newer version")
        return super().installed(programs, default)

    def _place(self, name: str, program: str) -> tuple[tuple[tuple[str, ...], str], Any]:
        tables, _key = self.default_key
        return ((*tables, "runtimes"), name), {
            "runtime_type": "io.containerd.runc.v2", "privileged_without_host_devices": True,
            "pod_annotations": ["io.katacontainers.*"], "options": {"BinaryName": program}}
