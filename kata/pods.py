"""Which sandbox a container belongs to, by the annotations of who makes pods."""

from __future__ import annotations

from kata.errors import BundleError
from kata.record import Record

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Convention(Record):
    """Annotations of one implementation: names of type and sandbox id, and the two values of the type."""

    kind: str
    sandbox_id: str
    sandbox: str
    container: str


#: containerd; CRI-O, whose names podman uses for its pods too; dockershim.
CONTAINERD = Convention("io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id", "sandbox", "container")
CRIO = Convention("io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri-o.SandboxID", "sandbox", "container")
DOCKERSHIM = Convention("io.kubernetes.docker.type", "io.kubernetes.sandbox.id", "podsandbox", "container")


def sandbox_of(annotations: Mapping[str, str],
               conventions: Sequence[Convention] = (CONTAINERD, CRIO, DOCKERSHIM)) -> tuple[str, str]:
    """``(role, sandbox id)``; the id is "" for a container that gets a sandbox of its own.

    :raise BundleError: an unknown type, or a container without its sandbox's id.
    """
    for names in conventions:
        kind = annotations.get(names.kind)
        if kind is None:
            continue
        if kind == names.sandbox:
            return "sandbox", ""
        if kind != names.container:
            raise BundleError(f"Unknown container type {kind}",
                              f"annotation {names.kind} is {names.sandbox!r} or {names.container!r}")
        sandbox = annotations.get(names.sandbox_id, "")
        if not sandbox:
            raise BundleError("Could not find sandbox ID", f"annotation {names.sandbox_id} is missing")
        return "container", sandbox
    return "single", ""
