"""podman: containers.conf and its drop-ins."""

from __future__ import annotations

from kata.engines.files import Toml

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

PLACES = {"podman": ("/usr/share/containers/containers.conf", "/etc/containers/containers.conf",
                     "/etc/containers/containers.conf.d/*.conf")}


class Podman(Toml):
    """containers.conf: a runtime has a list of places; the first that exists is used."""

    default_key = (("engine",), "runtime")

    def _find(self, data: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...], str, str]]:
        for name, places in self._table(data, "engine", "runtimes").items():
            if isinstance(places, list) and places and isinstance(places[0], str):
                yield name, ("engine", "runtimes"), name, places[0]

    def _value(self, name: str, program: str) -> Any:
        return [program]

    def _place(self, name: str, program: str) -> tuple[tuple[tuple[str, ...], str], Any]:
        return (("engine", "runtimes"), name), [program]
