"""Engines, started once per worker when a test first asks for one."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.bundle import SLEEPER
from harness.dockerd import IMAGE, Docker
from harness.proc import Result
from harness.runtime import Runtime

_numbers = itertools.count(1)


def host_file(run_dir: Path) -> Path:
    """What the runtime "phased" takes for /etc/kata/host.toml."""
    return run_dir / "host.toml"


@pytest.fixture(scope="session")
def dockerd(runtime: Runtime, tag: str, run_dir: Path, work_dir: Path, rootfs: Path) -> Iterator[Docker]:
    """A private dockerd whose default runtime is the one under test."""
    if shutil.which("dockerd") is None:
        pytest.skip("dockerd is not installed")
    kata = Path(runtime.path)
    phased = run_dir / "phased"  # cc-runtime on a host whose file is a test's own
    phased.write_text(f'#!/bin/sh\nKATA_HOST_FILE={host_file(run_dir)} exec {kata.with_name("cc-runtime")} "$@"\n')
    phased.chmod(0o755)
    others = {
        "phased": [str(phased)],
        "cc-runtime": [str(kata.with_name("cc-runtime"))], "runv": [str(kata.with_name("runv"))],
        "clear-by-option": [str(kata), "--flavor", "clear"],
        "contradiction": [str(kata.with_name("cc-runtime")), "--flavor", "runv"],
    } if runtime.is_vm else {}
    docker = Docker(runtime, tag, run_dir, work_dir, others=others)
    try:
        docker.start(rootfs)
        yield docker
    finally:
        docker.stop()


@pytest.fixture
def docker(dockerd: Docker) -> Iterator[Docker]:
    """The daemon, with the containers of this test removed at its end (shared ones carry a label)."""
    yield dockerd
    mine = dockerd("ps", "-aq", "--filter", "label=test=this").ok().out.split()
    if mine:
        dockerd("rm", "-f", "-v", *mine, timeout=120).ok()


@pytest.fixture(scope="module")
def box(dockerd: Docker) -> Iterator[str]:
    """A running container that a module's tests share."""
    name = new_name("box")
    dockerd("run", "-d", "--name", name, "--memory", "256m", IMAGE, "sh", "-c", SLEEPER).ok()
    yield name
    dockerd("rm", "-f", "-v", name).ok()


def new_name(prefix: str = "c") -> str:
    return f"{prefix}{next(_numbers)}"


Start = Callable[..., str]


@pytest.fixture
def start(docker: Docker) -> Start:
    """Start a detached container of this test: ``start(*options, command=[...]) -> name``."""

    def start(*options: str, script: str = SLEEPER, name: str = "") -> str:
        name = name or new_name()
        docker("run", "-d", "--name", name, "--label", "test=this", *options, IMAGE, "sh", "-c", script).ok()
        return name

    return start


@pytest.fixture
def once(docker: Docker) -> Callable[..., Result]:
    """Run a container to its end: ``once(script, *options) -> Result``."""

    def once(script: str, *options: str, input: str | None = None) -> Result:
        return docker("run", "--rm", "--label", "test=this", *options, IMAGE, "sh", "-c", script, input=input)

    return once
