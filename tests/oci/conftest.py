"""Containers that tests share where isolation is not what they test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.oci import Container, Oci


@pytest.fixture(scope="module")
def shared(oci: Oci) -> Iterator[Container]:
    """One running container per module, for `exec` and questions; leave it as it was."""
    with oci.running(oci.bundle()) as container:
        yield container
