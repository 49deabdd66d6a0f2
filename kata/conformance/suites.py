"""The engines of a run: each suite's is made once, when its first case comes, and gives each subject its own side."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from kata.conformance.samples import Sampler


class Engine(Protocol):
    """What a suite's cases are given their subjects by."""

    def start(self) -> None: ...
    def subject(self, name: str, number: int) -> Any: ...
    def stop(self) -> None: ...


class _Engine:
    """An engine, and what makes one subject's side of it."""

    def __init__(self, engine: Any, side: Any) -> None:
        self._engine, self._side = engine, side

    def start(self) -> None:
        self._engine.start()

    def subject(self, name: str, number: int) -> Any:
        return self._side(name, number)

    def stop(self) -> None:
        self._engine.stop()


def load_cases() -> None:
    """Import every module of cases, so that :data:`kata.conformance.case.CASES` is whole."""
    from kata.conformance import cases

    for module in pkgutil.iter_modules(cases.__path__):
        importlib.import_module(f"{cases.__name__}.{module.name}")


def make(
    suite: str, folder: Path, data: Path, tag: str, runtimes: Mapping[str, Sequence[str]], sampler: Sampler,
) -> Engine:
    """The engine of a suite, not yet started.

    :param folder: a short path, for sockets; ``data``: on a real file system; ``runtimes``: name -> command.
    """
    if suite == "oci":
        from kata.conformance.engines.oci import OciEngine

        oci = OciEngine(folder, data, runtimes, sampler)
        return _Engine(oci, lambda name, number: oci.subject(name))
    if suite == "docker":
        from kata.conformance.cases.docker_fixtures import DockerSubject
        from kata.conformance.engines.docker import Docker

        docker = Docker(folder, data, tag, runtimes)
        return _Engine(docker, lambda name, number: DockerSubject(docker, name, number))
    if suite == "podman":
        from kata.conformance.engines.podman import Podman, PodmanRuntime

        podman = Podman(folder, data, tag, runtimes)
        return _Engine(podman, lambda name, number: PodmanRuntime(podman, name))
    if suite == "containerd":
        from kata.conformance.engines import host
        from kata.conformance.engines.containerd import Ctr, CtrEngine

        ctr = CtrEngine(folder, data, tag)
        return _Engine(ctr, lambda name, number: Ctr(
            ctr.containerd, name, host.wrapper(folder, f"runtime-{name}", runtimes[name]), ctr.root))
    from kata.conformance.cases.cri_cases import CriSubject
    from kata.conformance.engines.cri import Cri

    cri = Cri(folder, data, tag, runtimes)
    return _Engine(cri, lambda name, number: CriSubject(cri, name))
