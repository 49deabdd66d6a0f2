"""What several suites of machines need."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.netns import NetworkNamespace


@pytest.fixture
def wired(tag: str) -> Iterator[NetworkNamespace]:
    """A network namespace, as an engine's, with an interface eth0 and the host's end of it, peer0."""
    namespace = NetworkNamespace(f"{tag}-wired").create()
    try:
        namespace.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "peer0").ok()
        for name, address in (("eth0", "10.214.17.2/24"), ("peer0", "10.214.17.1/24")):
            namespace.run("ip", "address", "add", address, "dev", name).ok()
            namespace.run("ip", "link", "set", name, "up").ok()
        yield namespace
    finally:
        namespace.delete()
