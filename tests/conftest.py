"""Fixtures of every suite; unit tests need none of them, nor root."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import evidence
from harness.oci import Oci
from harness.proc import TAG_VARIABLE
from harness.runtime import Runtime, under_test
from harness.sweep import sweep
from harness.wait import Late
from kata.conformance.engines.host import image_root

#: Folders whose tests start containers.
CONTAINER_SUITES = ("oci", "engines", "vm")

SECONDS_PER_TEST = 400


def pytest_configure(config: pytest.Config) -> None:
    for line in (
        "vm_only: makes sense only where a container has a machine of its own",
        "control_cannot(reason): the control runtime cannot pass this (on this host)",
    ):
        config.addinivalue_line("markers", line)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        suite = item.path.relative_to(here).parts[0]
        if suite not in CONTAINER_SUITES:
            continue
        item.add_marker(pytest.mark.engine if suite == "engines" else pytest.mark.vm)
        if os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root"))
            continue
        if under_test().is_vm:
            continue
        if item.get_closest_marker("vm_only"):
            item.add_marker(pytest.mark.skip(reason=f"control {under_test().name}: not a VM"))
        cannot = item.get_closest_marker("control_cannot")
        if cannot:
            item.add_marker(pytest.mark.skip(reason=f"control {under_test().name}: {cannot.args[0]}"))


def pytest_sessionstart(session: pytest.Session) -> None:
    if os.geteuid() == 0 and not hasattr(session.config, "workerinput"):
        sweep()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """The last resort: a test that reads without a deadline is ended after SECONDS_PER_TEST."""

    def late(*_: object) -> None:
        raise Late(f"the test did not end within {SECONDS_PER_TEST} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS_PER_TEST)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.failed and item.path.relative_to(Path(__file__).parent).parts[0] in CONTAINER_SUITES:
        for name, text in evidence.collect():
            report.sections.append((name, text))
    elif call.when == "setup":
        evidence.forget()


@pytest.fixture(scope="session")
def runtime() -> Runtime:
    """The runtime under test."""
    return under_test()


@pytest.fixture(scope="session")
def tag(worker_id: str) -> Iterator[str]:
    """Marks all that this worker makes: processes (by environment), ids, folders."""
    # The letter at the end keeps one tag from being the beginning of another.
    tag = f"kt{re.sub('[^0-9]', '', worker_id) or 'm'}x{os.getpid()}e"
    os.environ[TAG_VARIABLE] = tag
    yield tag
    del os.environ[TAG_VARIABLE]


@pytest.fixture(scope="session")
def run_dir(tag: str) -> Iterator[Path]:
    """For sockets: a short path."""
    path = Path("/run") / tag
    path.mkdir(mode=0o700)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def work_dir(tag: str) -> Iterator[Path]:
    """For bulky data, on a real file system (overlay needs one)."""
    path = Path("/var/tmp") / tag
    path.mkdir(mode=0o711)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def rootfs(work_dir: Path) -> Path:
    """A busybox root to copy from; never run in place."""
    return image_root(work_dir / "busybox")


@pytest.fixture(scope="session")
def oci(runtime: Runtime, run_dir: Path, work_dir: Path, rootfs: Path, tag: str) -> Iterator[Oci]:
    """The OCI command line with a state root of this worker's own."""
    oci = Oci(runtime, run_dir, work_dir, rootfs, tag)
    yield oci
