"""Debian 13's engines and QEMU in a folder, by debootstrap: what users of a newer distribution run.

``python -m harness.trixie`` makes the folder ahead of the tests, with progress.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

SUITE = "trixie"
INCLUDE = tuple(
    # The engines and what they call.
    "docker.io docker-cli containerd runc crun podman conmon catatonit netavark aardvark-dns iptables"
    " nftables tini iproute2 procps ca-certificates"
    # The runtime's: QEMU, and the libraries of a Python that comes from the host.
    " qemu-system-x86 libseccomp2 libexpat1 libffi8 libssl3t64 libbz2-1.0 liblzma5 zlib1g".split()
)
#: Not needed to run programs; QEMU's firmware for other machines is most of the rest.
LEFT_OUT = tuple("usr/share/doc usr/share/man usr/share/locale usr/share/info var/cache/apt var/lib/apt/lists".split())
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
TIMEOUT = 1800.0  #: seconds, for some 300 MB of packages on a busy host
PROGRESS = 5.0  #: seconds between lines


def python_places() -> list[Path]:
    """What a Python that is installed below /usr needs of the host: its program and its library.

    A distribution of another time has another Python; mount points for this one
    are made in the folder, which is read-only afterwards.  One with a prefix of
    its own needs just that prefix.
    """
    if sys.base_prefix != "/usr":
        return [Path(sys.base_prefix)]
    return [Path(sys.executable).resolve(), Path(sysconfig.get_path("stdlib"))]


def trixie_folder() -> Path:
    """The folder, made on first use; never written to later.

    :raise AssertionError: debootstrap failed.
    """
    parent = Path(os.environ.get("KATA_CACHE_DIR") or "/var/cache/kata") / "engines"
    parent.mkdir(parents=True, exist_ok=True)
    places = [str(p) for p in python_places() if p.is_relative_to("/usr")]
    key = hashlib.sha256(repr((SUITE, INCLUDE, LEFT_OUT, places)).encode()).hexdigest()[:12]
    folder = parent / f"{SUITE}-{key}"
    with (parent / "lock").open("w") as lock:
        # Two test workers ask at once; the second finds the first one's.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            _make(folder)
    return folder


def mirror() -> str:
    """The Debian archive that this host's apt uses; "" when apt does not tell: debootstrap's own choice then."""
    argv = ["apt-get", "indextargets", "--format", "$(LABEL)|$(REPO_URI)", "Created-By: Packages"]
    listed = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False).stdout
    found = [line.partition("|")[::2] for line in listed.splitlines()]
    # Labels come with the lists; without these, the first source it is.
    return next((uri for wanted in ("Debian", "") for label, uri in found if label == wanted), "")


def _make(folder: Path) -> None:
    for stale in folder.parent.glob(".making-*"):  # of a maker that was killed: the lock is ours
        shutil.rmtree(stale)
    work = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
    try:
        root = work / "root"
        argv = ["debootstrap", "--variant=minbase", f"--include={','.join(INCLUDE)}"]
        if KEYRING.exists():
            argv.append(f"--keyring={KEYRING}")
        argv += [SUITE, str(root), *filter(None, [mirror()])]
        _show_progress(argv)
        for name in LEFT_OUT:
            shutil.rmtree(root / name, ignore_errors=True)
            (root / name).mkdir(parents=True)
        (root / "etc/hosts").write_text("127.0.0.1\tlocalhost\n::1\tlocalhost\n")
        for place in python_places():
            inside = root / place.relative_to("/")
            if place.is_relative_to("/usr") and not inside.exists():
                if place.is_dir():
                    inside.mkdir(parents=True)
                else:
                    inside.touch()
        root.chmod(0o755)
        root.rename(folder)
        for other in folder.parent.glob(f"{SUITE}-*"):
            if other != folder:
                _remove_unused(other)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _remove_unused(folder: Path) -> None:
    """Remove the folder of another package list, unless a userland of it is in use (it holds the lock)."""
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
    except BlockingIOError:
        pass
    finally:
        os.close(fd)


def _show_progress(argv: list[str]) -> None:
    """Run debootstrap; what it is at goes to standard error now and then."""
    begun = shown = time.monotonic()
    print(f"making Debian {SUITE} with its engines, once (some 300 MB of packages)", file=sys.stderr, flush=True)
    lines: list[str] = []
    env = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env) as process:
        assert process.stdout
        for line in process.stdout:
            lines.append(line)
            now = time.monotonic()
            if now > begun + TIMEOUT:
                process.kill()
                raise AssertionError(f"debootstrap did not end within {TIMEOUT:g} s: {''.join(lines[-10:])}")
            if now > shown + PROGRESS:
                shown = now
                print(f"[{now - begun:6.1f} s] {line.rstrip()}", file=sys.stderr, flush=True)
    assert process.returncode == 0, f"debootstrap failed:\n{''.join(lines[-30:])}"


if __name__ == "__main__":
    print(trixie_folder())
