"""The engines of Debian 13 in a userland of their own: docker 26 with containerd 1.7, podman 5, QEMU 10."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness import leaks
from harness.bundle import SLEEPER
from harness.dockerd import Docker
from harness.podman import IMAGE, Podman
from harness.proc import run
from harness.runtime import Runtime
from harness.trixie import python_places, trixie_folder
from harness.userland import InsideNetwork, Userland

from ..conftest import new_name

CHECKOUT = Path(__file__).parents[3]
#: Where the runtime keeps what it makes and finds its configuration, kernel and images.
RUNTIME_PLACES = (Path("/run/kata"), Path("/var/lib/kata"), Path("/etc/kata-containers"))


class NewDocker(Docker):
    """A private dockerd of the userland, with its own client."""

    def __init__(self, userland: Userland, runtime: Runtime, tag: str, run_dir: Path, work_dir: Path) -> None:
        super().__init__(runtime, f"{tag}td", run_dir, work_dir)
        self.userland = userland
        before = len(self.netns.argv())
        self.netns = InsideNetwork(self.netns.name, userland)
        for daemon in (self.containerd.daemon, self.daemon):
            program, *options = daemon.argv[before:]
            daemon.argv = self.netns.argv(Path(program).name, *options)
        at = self.daemon.argv.index("--oom-score-adjust")  # docker 25 took it away
        del self.daemon.argv[at : at + 2]

    def argv(self, *argv: str) -> list[str]:
        return self.userland.argv("docker", "--host", f"unix://{self.socket}", *argv)

    def stop(self) -> None:
        try:
            super().stop()
        finally:
            left = [m for m in leaks.mounts([f"{self.data_dir}/"], self.userland.pid) if "/overlay2/" in m]
        assert not left, f"left mounted by docker: {left}"


class NewPodman(Podman):
    """A private podman of the userland."""

    def __init__(self, userland: Userland, runtime: Runtime, tag: str, run_dir: Path, work_dir: Path) -> None:
        super().__init__(runtime, f"{tag}tp", run_dir, work_dir)
        self.userland = userland
        self.netns = InsideNetwork(self.netns.name, userland)

    def environment(self) -> dict[str, str]:
        # It works with control groups of version 1, but says on every call that it will not for ever.
        return {**super().environment(), "PODMAN_IGNORE_CGROUPSV1_WARNING": "1"}

    def stop(self) -> None:
        try:
            super().stop()
        finally:
            left = leaks.mounts([f"{self.data_dir}/overlay/"], self.userland.pid)
        assert not left, f"left mounted by podman: {left}"


@pytest.fixture(scope="session")
def userland(runtime: Runtime, run_dir: Path, work_dir: Path) -> Iterator[Userland]:
    """The namespace with Debian 13's programs; the runtime under test has a template of its QEMU's."""
    if shutil.which("debootstrap") is None:
        pytest.skip("debootstrap is not installed")
    places = [CHECKOUT, Path(sys.prefix), *python_places(), run_dir, work_dir]
    if runtime.is_vm:
        RUNTIME_PLACES[0].mkdir(mode=0o755, exist_ok=True)
        places += RUNTIME_PLACES
    userland = Userland(trixie_folder(), work_dir / "userland", places)
    userland.start()
    try:
        if runtime.is_vm:
            run(*userland.argv(runtime.path, "factory", "init"), timeout=240).ok()
        yield userland
    finally:
        userland.stop()


@pytest.fixture(scope="session")
def dockerd(
    userland: Userland, runtime: Runtime, tag: str, run_dir: Path, work_dir: Path, rootfs: Path
) -> Iterator[Docker]:
    """Docker 26, in place of the host's."""
    for folder in (run_dir / "t", work_dir / "t"):
        folder.mkdir(exist_ok=True)
    docker = NewDocker(userland, runtime, tag, run_dir / "t", work_dir / "t")
    try:
        docker.start(rootfs)
        yield docker
    finally:
        docker.stop()


@pytest.fixture(scope="session")
def podman(
    userland: Userland, runtime: Runtime, tag: str, run_dir: Path, work_dir: Path, rootfs: Path
) -> Iterator[Podman]:
    """podman 5."""
    for folder in (run_dir / "t", work_dir / "t"):
        folder.mkdir(exist_ok=True)
    podman = NewPodman(userland, runtime, tag, run_dir / "t", work_dir / "t")
    podman.start(rootfs)
    yield podman
    podman.stop()


@pytest.fixture
def start_podman(podman: Podman) -> Iterator[Callable[..., str]]:
    """Start a detached container of this test: ``start_podman(*options, script=...) -> name``."""
    names: list[str] = []

    def start(*options: str, script: str = SLEEPER) -> str:
        name = new_name("p")
        names.append(name)
        podman("run", "-d", "--name", name, *options, IMAGE, "sh", "-c", script).ok()
        return name

    yield start
    for name in names:
        podman("rm", "-f", "-t", "0", "-i", name).ok()
