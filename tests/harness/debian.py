"""A real userland for tests that busybox cannot serve: Debian, by debootstrap, kept as an archive."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

SUITE = "bookworm"
#: Beside the minimal system: bash and coreutils are in it.
INCLUDE = ("iproute2", "procps", "python3-minimal", "stress-ng", "iputils-ping")
TIMEOUT = 900.0  #: seconds
#: Not needed to run programs.
LEFT_OUT = tuple("usr/share/doc usr/share/man usr/share/locale usr/share/info var/cache/apt var/lib/apt/lists".split())


def debian_archive() -> Path:
    """A tar archive of the system, for :func:`debian_rootfs` or ``docker import``; made on first use."""
    folder = Path(os.environ.get("KATA_CACHE_DIR") or "/var/cache/kata") / "rootfs"
    folder.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(repr((SUITE, INCLUDE, LEFT_OUT)).encode()).hexdigest()[:12]
    archive = folder / f"debian-{key}.tar"
    with (folder / "lock").open("w") as lock:
        # Two test workers ask at once; the second finds the first one's.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not archive.exists():
            _make(archive)
    return archive


def debian_rootfs(path: Path) -> Path:
    """Unpack the system to ``path``."""
    path.mkdir(parents=True, exist_ok=True)
    subprocess.run(["tar", "-C", path, "-xpf", debian_archive()], check=True, timeout=TIMEOUT)
    return path


def rootfs_archive(root: Path, archive: Path) -> Path:
    """``root`` as a tar archive for ``docker import``."""
    with tarfile.open(archive, "w") as tar:
        tar.add(root, ".")
    return archive


def _make(archive: Path) -> None:
    work = Path(tempfile.mkdtemp(prefix=".making-", dir=archive.parent))
    try:
        root = work / "root"
        argv = ["debootstrap", "--variant=minbase", f"--include={','.join(INCLUDE)}", SUITE, root]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        assert done.returncode == 0, f"debootstrap failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        for name in LEFT_OUT:
            shutil.rmtree(root / name, ignore_errors=True)
            (root / name).mkdir(parents=True)
        rootfs_archive(root, work / archive.name).rename(archive)
    finally:
        shutil.rmtree(work, ignore_errors=True)
