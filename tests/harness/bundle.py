"""OCI bundles: a config.json in plain Python, and a root file system."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

from kata.conformance.engines import oci as conformance
from kata.conformance.engines.oci import PATH, SLEEPER

__all__ = ["PATH", "SLEEPER", "Bundle", "default_config"]


def default_config(*args: str) -> dict[str, Any]:
    """A container like the one `docker run` asks for; without ``args`` it sleeps until it is told to end."""
    return conformance.default_config(*(args or ("/bin/sh", "-c", SLEEPER)))


class Bundle:
    """A bundle directory; ``config`` may be changed until :meth:`write`."""

    def __init__(self, path: Path, rootfs: Path, *args: str) -> None:
        self.path = path
        self.rootfs = path / "rootfs"
        path.mkdir(parents=True)
        shutil.copytree(rootfs, self.rootfs, symlinks=True)
        self.config = default_config(*args)

    @property
    def process(self) -> dict[str, Any]:
        process: dict[str, Any] = self.config["process"]
        return process

    @property
    def linux(self) -> dict[str, Any]:
        linux: dict[str, Any] = self.config["linux"]
        return linux

    @property
    def mounts(self) -> list[dict[str, Any]]:
        mounts: list[dict[str, Any]] = self.config["mounts"]
        return mounts

    def sh(self, script: str) -> Bundle:
        """Make the process a shell that runs ``script``."""
        self.process["args"] = ["/bin/sh", "-c", script]
        return self

    def in_network(self, path: Path) -> Bundle:
        """Give the container the network namespace at ``path``."""
        next(n for n in self.linux["namespaces"] if n["type"] == "network")["path"] = str(path)
        return self

    def bind(self, source: Path | str, destination: str, *options: str) -> Bundle:
        """Add a bind mount (``rbind`` unless an option says otherwise)."""
        kind = [] if {"bind", "rbind"} & set(options) else ["rbind"]
        self.mounts.append(
            {"destination": destination, "type": "bind", "source": str(source), "options": [*kind, *options]}
        )
        return self

    def tmpfs(self, destination: str, *options: str) -> Bundle:
        self.mounts.append({"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": list(options)})
        return self

    def mount_at(self, destination: str) -> dict[str, Any]:
        """The default mount of a place, to change it."""
        return next(m for m in self.mounts if m["destination"] == destination)

    def merge(self, changes: dict[str, Any]) -> Bundle:
        """Merge nested dicts into the configuration; lists and values replace."""

        def into(old: dict[str, Any], new: dict[str, Any]) -> None:
            for key, value in new.items():
                if isinstance(value, dict) and isinstance(old.get(key), dict):
                    into(old[key], value)
                else:
                    old[key] = copy.deepcopy(value)

        into(self.config, changes)
        return self

    def write(self) -> Bundle:
        """Write config.json."""
        (self.path / "config.json").write_text(json.dumps(self.config, indent=1))
        return self
