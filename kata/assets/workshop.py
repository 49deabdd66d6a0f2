"""Where assets are made: one build at a time, all or nothing.

An asset is written to a directory beside its place and renamed into it.  What
a killed build left is removed by the next one.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kata.assets import store
from kata.assets.progress import Progress
from kata.errors import HostError, NotFound

#: The code that makes a kind of asset: a change in it makes the asset anew.
BUILDERS = {
    "kernel": ("kernel.py", "bzimage.py", "modules.py", "elf.py", "cpio.py"),
    "minimal": ("minimal.py",),  # what it only packs with is left out: to compile takes long
    "base": ("initrd.py", "guest.py", "elf.py", "cpio.py"),
    "initrd": ("initrd.py", "guest.py", "modules.py", "cpio.py"),
    "image": ("image.py", "guest.py", "modules.py", "cpio.py"),
}
LOCK_TIMEOUT = 1800.0  #: seconds to wait for another build
KEPT = 3  #: assets of a kind that stay although nothing selects them
MAX_CONFIGURATION = 1 << 20  #: bytes; a larger file configures nothing here
_PATH = re.compile(rb"/[^\s\"',;=\0]+")
_WORK = ".building-"


@contextmanager
def locked(progress: Progress) -> Iterator[None]:
    """Hold the store's lock, so that two builds at once make one.

    :raise HostError: another build did not end in time, or the store cannot be written.
    """
    root = Path(store.root())
    try:
        root.mkdir(parents=True, exist_ok=True)
        fd = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as e:
        raise HostError(f"cannot write to {root}: {e.strerror}", "run as root, or set KATA_ASSETS_DIR") from e
    try:
        _take(fd, progress)
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
        for left in root.glob(_WORK + "*"):
            shutil.rmtree(left)
        yield
    finally:
        os.close(fd)


def _take(fd: int, progress: Progress) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    except BlockingIOError:
        holder = os.pread(fd, 20, 0).decode(errors="replace") or "unknown"
    progress.step(f"waiting for another build (pid {holder})")
    # flock has no timeout; a thread that is left waiting ends with the process.
    waiter = threading.Thread(target=fcntl.flock, args=(fd, fcntl.LOCK_EX), daemon=True)
    waiter.start()
    waiter.join(LOCK_TIMEOUT)
    if waiter.is_alive():
        raise HostError(f"waited {LOCK_TIMEOUT:g} s for the build of pid {holder} to end", "stop it and try again")


def make(
    kind: str,
    name: str,
    inputs: Mapping[str, Any],
    fill: Callable[[Path, Path], Mapping[str, str]],
    progress: Progress,
    *,
    builder: str = "",
    force: bool = False,
) -> store.Asset:
    """The asset made of ``inputs``: the one that exists, or a new one.

    :param fill: puts the files into its first argument, may use its second
        for whatever it needs meanwhile, and returns the selectable files
        (kind to name).
    :param builder: which of :data:`BUILDERS` makes it, if not that of its kind.
    :param force: make it again although it exists.
    :raise HostError: it cannot be made; nothing is left.
    """
    inputs = {"kind": kind, "builder": _builder(builder or kind), **inputs}
    asset = store.asset_id(inputs)
    place = Path(store.root()) / asset
    if not force:
        try:
            return store.load(asset)
        except NotFound:
            pass
    progress.step(f"building {kind} {asset}: {name}")
    work = place.parent / f"{_WORK}{asset}"
    try:
        target, scratch = work / "asset", work / "scratch"
        target.mkdir(parents=True)
        scratch.mkdir()
        with (target / "build.log").open("w", encoding="utf-8") as log:
            progress.log_to(log)
            before = progress.seconds
            try:
                files = fill(target, scratch)
            finally:
                progress.log_to(None)
        _write_manifest(target, kind, name, files, inputs, progress.seconds - before)
        _sync(target)
        if place.exists():
            os.rename(place, work / "replaced")
        os.rename(target, place)
    except OSError as e:
        raise HostError(f"cannot build {kind} {asset}: {e.strerror or e}: {e.filename or work}") from e
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return store.load(asset)


def _builder(name: str) -> str:
    """Short hash of the code of a builder."""
    digest = hashlib.sha256()
    for file in BUILDERS[name]:
        digest.update(Path(__file__).with_name(file).read_bytes())
    return digest.hexdigest()[: store.ID_LENGTH]


def prune(configuration: Iterable[str] = ()) -> None:
    """Remove the oldest assets that nothing selects or names, beyond :data:`KEPT` of a kind, and of a kernel's variant.

    :param configuration: files that may name some.
    """
    used = {a.id for a in map(store.selected, store.KINDS) if a} | _named(configuration)
    used |= {str(a.inputs.get(k)) for a in store.list_assets() if a.id in used for k in ("kernel", "base")}
    for kind, variant in (*(("kernel", v) for v in store.KERNELS), ("base", ""), ("initrd", ""), ("image", "")):
        idle = [a for a in store.list_assets(kind) if a.id not in used and variant in ("", a.variant)]
        for asset in idle[: max(0, len(idle) - KEPT)]:
            shutil.rmtree(asset.path)


def _named(files: Iterable[str]) -> set[str]:
    """Ids of the assets to which the paths lead that stand in these files, or in a TOML file that one of them names.

    Whatever the language of a file: a path too many keeps an asset for longer, one too few would end a configuration.
    """
    top = os.path.realpath(store.root())
    ids, left, seen = set(), [os.path.realpath(file) for file in files], set()
    while left:
        file = left.pop()
        if file in seen:
            continue
        seen.add(file)
        try:
            if not os.path.isfile(file) or os.path.getsize(file) > MAX_CONFIGURATION:
                continue
            text = Path(file).read_bytes()
        except OSError:  # who may not read it has a store of his own, which it does not name
            continue
        for match in _PATH.finditer(text):
            path = os.path.realpath(os.fsdecode(match[0]))
            if path.startswith(f"{top}/"):
                ids.add(path[len(top) + 1 :].partition("/")[0])
            elif path.endswith(".toml"):
                left.append(path)
    return ids


def _write_manifest(
    folder: Path, kind: str, name: str, files: Mapping[str, str], inputs: Mapping[str, Any], seconds: float
) -> None:
    every = sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink() and p.name != "build.log")
    manifest = {
        "version": store.MANIFEST_VERSION,
        "kind": kind,
        "name": name,
        "files": dict(files),
        "inputs": dict(inputs),
        "sizes": {str(p.relative_to(folder)): p.stat().st_size for p in every},
        "sha256": {str(p.relative_to(folder)): _digest(p) for p in every},
        "built": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "seconds": round(seconds, 1),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _digest(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _sync(folder: Path) -> None:
    """Bring every file to the disk before the rename says it is complete."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_symlink():
            continue
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
