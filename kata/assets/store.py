"""What is built and what is selected.  Import-light: hot verbs read it.

::

    ROOT/ID/manifest.json        ID: the first 16 hex digits of the SHA-256 of the inputs
    ROOT/ID/...                  the files of one asset
    ROOT/selected/KIND           relative link to the file in use, switched atomically

An asset directory appears complete, by a rename, and never changes.
"""

from __future__ import annotations

import os

from kata.digest import hexdigest
from kata.errors import ConfigError, HostError, NotFound
from kata.jsontext import loads
from kata.record import Record

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

KINDS = ("kernel", "initrd", "image", "boot-initrd")
KERNELS = ("stock", "minimal")  #: Debian's as it is; compiled for guests, everything built in
ID_LENGTH = 16
MANIFEST_VERSION = 1


class Asset(Record):
    """One built kernel or image.  ``files`` maps a kind to a file name in ``path``."""

    id: str
    path: str
    kind: str  #: kernel | initrd | image
    name: str  #: for people: what it was made of
    files: Mapping[str, str]
    inputs: Mapping[str, Any]
    sizes: Mapping[str, int]  #: bytes of each file
    sha256: Mapping[str, str]
    built: str  #: RFC 3339
    seconds: float  #: how long the build took

    @property
    def kernel_release(self) -> str:
        """The kernel its modules are for, as ``uname -r`` prints it."""
        return str(self.inputs.get("kernel_release", ""))

    @property
    def variant(self) -> str:
        """Of a kernel: one of :data:`KERNELS`."""
        return str(self.inputs.get("variant", "stock"))


def root() -> str:
    """Directory of the store; ``KATA_ASSETS_DIR`` overrides it."""
    return os.environ.get("KATA_ASSETS_DIR") or "/var/lib/kata/assets"


def asset_id(inputs: Mapping[str, Any]) -> str:
    """The id of what is made of ``inputs``."""
    import json

    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"))
    return hexdigest(text)[:ID_LENGTH]


def selected_path(kind: str) -> str:
    """Real path of the selected file of a kind; "" when nothing is selected."""
    path = os.path.join(root(), "selected", _known(kind))
    return os.path.realpath(path) if os.path.exists(path) else ""


def selected(kind: str) -> Asset | None:
    """The asset that the selected file of a kind belongs to."""
    path = selected_path(kind)
    return load(os.path.basename(os.path.dirname(path))) if path else None


def list_assets(kind: str = "") -> list[Asset]:
    """Every asset, or every one of a kind, oldest first."""
    try:
        names = os.listdir(root())
    except FileNotFoundError:
        return []
    assets = [load(name) for name in sorted(names) if os.path.exists(os.path.join(root(), name, "manifest.json"))]
    return sorted((a for a in assets if kind in ("", a.kind)), key=lambda a: a.built)


def find(kinds: Sequence[str], prefix: str) -> Asset:
    """The one asset of these kinds whose id starts with ``prefix``; the latest kernel of a variant by its name.

    :raise NotFound: there is none, or more than one.
    """
    found = [a for kind in kinds for a in list_assets(kind) if a.id.startswith(prefix)]
    if "kernel" in kinds and prefix in KERNELS:
        found = [a for a in list_assets("kernel") if a.variant == prefix][-1:]
    if len(found) == 1:
        return found[0]
    what = " or ".join(kinds)
    if found:
        raise NotFound(f"more than one {what} starts with {prefix}: {', '.join(a.id for a in found)}")
    verb = f"build {prefix}" if prefix in KERNELS else "list"
    raise NotFound(f"there is no {what} {prefix}", f"kata {'kernel' if 'kernel' in kinds else 'image'} {verb}")


def load(asset: str) -> Asset:
    """An asset by its full id.

    :raise NotFound: it does not exist.
    :raise HostError: its manifest is damaged or of an unknown version.
    """
    path = os.path.join(root(), asset)
    try:
        with open(os.path.join(path, "manifest.json"), encoding="utf-8") as f:
            raw = loads(f.read())
    except FileNotFoundError as e:
        raise NotFound(f"there is no asset {asset} in {root()}") from e
    except (OSError, ValueError) as e:
        raise HostError(
            f"{path}/manifest.json is damaged: {e}", "remove the directory and run: kata image build"
        ) from e
    version = raw.get("version") if isinstance(raw, dict) else None
    if version != MANIFEST_VERSION:
        raise HostError(f"{path}/manifest.json has version {version}; known is {MANIFEST_VERSION}")
    try:
        return Asset(asset, path, *(raw[key] for key in list(Asset.FIELDS)[2:]))
    except KeyError as e:
        raise HostError(f"{path}/manifest.json lacks {e}", "remove the directory and run: kata image build") from e


def verify(asset: Asset) -> None:
    """Compare the files of an asset with its manifest.

    :raise HostError: a file is missing or differs.
    """
    hint = f"remove {asset.path} and build it again"
    for name, expected in asset.sha256.items():
        import hashlib

        digest = hashlib.sha256()
        try:
            with open(os.path.join(asset.path, name), "rb") as f:
                while block := f.read(1 << 20):
                    digest.update(block)
        except OSError as e:
            raise HostError(f"cannot read {asset.path}/{name}: {e.strerror}", hint) from e
        if digest.hexdigest() != expected:
            raise HostError(f"{asset.path}/{name} is not what was built: its SHA-256 differs", hint)


def select(asset: Asset) -> None:
    """Use the files of an asset from now on.

    A kernel takes along the initrd and the image that hold its modules; an
    initrd or image must be for the selected kernel.

    :raise ConfigError: kernel and images would not match.
    """
    links = {kind: os.path.join("..", asset.id, name) for kind, name in asset.files.items()}
    if asset.kind == "kernel":
        for kind in ("initrd", "image"):
            companion = next((a for a in reversed(list_assets(kind)) if a.inputs.get("kernel") == asset.id), None)
            if companion is not None:
                links.update({k: os.path.join("..", companion.id, n) for k, n in companion.files.items()})
            elif selected(kind) is not None:
                raise ConfigError(
                    f"no {kind} is made for kernel {asset.id}", f"kata kernel build {asset.variant}"
                )
    else:
        kernel = selected("kernel")
        if kernel is None or kernel.id != asset.inputs.get("kernel"):
            now = kernel.id if kernel else "none"
            raise ConfigError(
                f"{asset.kind} {asset.id} is for kernel {asset.inputs.get('kernel')}, selected is {now}",
                f"kata kernel select {asset.inputs.get('kernel')}",
            )
    for kind, target in links.items():
        switch(kind, target)


def switch(kind: str, target: str) -> None:
    """Point ``selected/KIND`` to ``target`` (relative to ``selected``), in one step."""
    folder = os.path.join(root(), "selected")
    os.makedirs(folder, mode=0o755, exist_ok=True)
    link = os.path.join(folder, _known(kind))
    aside = f"{link}.{os.getpid()}"
    if os.path.lexists(aside):
        os.unlink(aside)
    os.symlink(target, aside)
    os.rename(aside, link)


def _known(kind: str) -> str:
    if kind not in KINDS:
        raise ConfigError(f"unknown kind of asset {kind}", f"known: {', '.join(KINDS)}")
    return kind
