"""The proof that an engine runs containers with a runtime: one is run, from the host's own static busybox.

No registry is asked.  The container prints the boot id of its kernel, which must not be the host's.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import tarfile
import tempfile
from contextlib import contextmanager, suppress

from kata import process
from kata.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

TIMEOUT = 180.0  #: seconds for a container to come, print, and go; a machine without KVM takes its time
CLEANUP = 60.0  #: seconds for what is left of a failed one
NAMESPACE = "kata-engine-proof"  #: of containerd; of the others' containers and images the name begins so
BOOT_ID = "/proc/sys/kernel/random/boot_id"
COMMAND = ("/bin/busybox", "cat", BOOT_ID)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
HINT = "--no-verify leaves the proof out"


@contextmanager
def rootfs() -> Iterator[str]:
    """A folder with busybox in it, for a container's root.

    :raise HostError: the host has no static busybox.
    """
    program = shutil.which("busybox")
    if program is None:
        raise HostError("the proof needs busybox, which was not found", f"install busybox-static, or: {HINT}")
    with open(program, "rb") as f:
        if b"/ld-linux" in (data := f.read()) or b"/ld-musl" in data:
            raise HostError(f"the proof needs a static busybox, and {program} is not",
                            f"install busybox-static, or: {HINT}")
    with tempfile.TemporaryDirectory(prefix=f"{NAMESPACE}-") as folder:
        for name in ("bin", "dev", "etc", "proc", "run", "sys", "tmp"):
            os.mkdir(f"{folder}/{name}")
        with open(f"{folder}/bin/busybox", "wb") as f:
            f.write(data)
        os.chmod(f"{folder}/bin/busybox", 0o755)
        os.chmod(folder, 0o755)
        yield folder


def docker(socket: str, names: Sequence[str]) -> Iterator[str]:
    """Run a container with each runtime of docker; yields what it proves.  The image is removed afterwards.

    :raise HostError: docker could not, or a container ran on the host's kernel.
    """
    client = ["docker", "--host", f"unix://{socket}"]
    image, name = f"{NAMESPACE}:{os.getpid()}", f"{NAMESPACE}-{os.getpid()}"
    with rootfs() as folder:
        layer = io.BytesIO()
        with tarfile.open(fileobj=layer, mode="w") as tar:
            tar.add(folder, ".")
    process.run([*client, "import", "-", image], timeout=TIMEOUT, input=layer.getvalue(), hint=HINT)
    with _afterwards([*client, "rm", "--force", name], [*client, "image", "rm", "--force", image]):
        for runtime in names:
            yield _run(runtime, [*client, "run", "--rm", "--name", name, "--network", "none", "--runtime", runtime,
                                 image, *COMMAND])


def containerd(address: str, programs: Mapping[str, str]) -> Iterator[str]:
    """The same by ``ctr``: the runc shim with each program.  It asks no CRI plugin.

    :raise HostError: as of :func:`docker`.
    """
    client = ["ctr", *(["--address", address] if address else []), "--namespace", NAMESPACE]
    name = f"{NAMESPACE}-{os.getpid()}"
    with rootfs() as folder, _afterwards([*client, "tasks", "rm", "--force", name], [*client, "containers", "rm", name],
                                         [*client[:-2], "namespaces", "rm", NAMESPACE]):
        for runtime, program in programs.items():
            yield _run(runtime, [*client, "run", "--rm", "--runtime", "io.containerd.runc.v2", "--runc-binary", program,
                                 "--rootfs", folder, name, *COMMAND])


def podman(names: Sequence[str], environ: Mapping[str, str]) -> Iterator[str]:
    """The same by podman, from a folder as root.

    :raise HostError: as of :func:`docker`.
    """
    name = f"{NAMESPACE}-{os.getpid()}"
    with rootfs() as folder, _afterwards(["podman", "rm", "--force", "--ignore", name], environ=environ):
        for runtime in names:
            yield _run(runtime, ["podman", "--runtime", runtime, "run", "--rm", "--name", name, "--network", "none",
                                 "--rootfs", folder, *COMMAND], environ)


def _run(runtime: str, argv: Sequence[str], environ: Mapping[str, str] | None = None) -> str:
    done = process.run(argv, timeout=TIMEOUT, env=environ, hint=HINT)
    found = _UUID.search(done.text)
    with open(BOOT_ID, encoding="ascii") as f:
        host = f.read().strip()
    if found is None:
        raise HostError(f"a container of {runtime} printed {done.text[:80]!r}, not its kernel's boot id", HINT)
    if found[0] == host:
        raise HostError(f"a container of {runtime} ran on the host's kernel, not in a machine of its own",
                        "the engine did not use this runtime: look at its log")
    return f"{runtime}: a container ran on a kernel of its own (boot id {found[0]})"


@contextmanager
def _afterwards(*commands: Sequence[str], environ: Mapping[str, str] | None = None) -> Iterator[None]:
    """Commands that take away what there is, whatever happened; most find nothing."""
    try:
        yield
    finally:
        for argv in commands:
            with suppress(HostError):
                process.run(argv, timeout=CLEANUP, check=False, env=environ)
