"""Fixtures of tests that need root and the real kernel."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata.network import netns
from kata_agent.linux import syscalls

HERE = Path(__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "root: needs root and changes the host's kernel state")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.root)
            if os.geteuid() != 0:
                item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture
def home_netns() -> Iterator[int]:
    """The host's network namespace; the thread is back in it afterwards."""
    fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    yield fd
    netns.enter(fd)
    os.close(fd)


@pytest.fixture
def sandbox_netns(home_netns: int) -> Iterator[int]:
    """A fresh network namespace that the test runs in."""
    fd = netns.create()
    netns.enter(fd)
    yield fd
    netns.enter(home_netns)
    os.close(fd)


@pytest.fixture
def outside_netns(home_netns: int) -> Iterator[int]:
    """A second namespace, for the other end of a wire."""
    fd = netns.create()
    yield fd
    os.close(fd)


@pytest.fixture
def home_mountns() -> Iterator[int]:
    """The host's mount namespace; the thread is back in it, and in its folder, afterwards."""
    cwd = os.getcwd()
    fd = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    yield fd
    syscalls.setns(fd, syscalls.CLONE_NEWNS)
    os.chdir(cwd)
    os.close(fd)
