"""An OCI image of one layer as a tar file, which `ctr images import` takes.

image-spec: image-layout.md, manifest.md, config.md.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
OCI = "application/vnd.oci.image"


def write_image(path: Path, name: str, layer: Path, command: Sequence[str]) -> None:
    """Write an image.

    :param layer: a tar file that is its root file system.
    :param command: what it runs without one given.
    """
    with tarfile.open(path, "w") as archive:

        def add(place: str, data: bytes) -> None:
            member = tarfile.TarInfo(place)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))

        def blob(kind: str, data: bytes) -> dict[str, Any]:
            digest = hashlib.sha256(data).hexdigest()
            add(f"blobs/sha256/{digest}", data)
            return {"mediaType": f"{OCI}.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

        machine = platform.machine()
        content = blob("layer.v1.tar", layer.read_bytes())
        config = blob("config.v1+json", json.dumps({
            "architecture": ARCHITECTURES.get(machine, machine), "os": "linux",
            "config": {"Cmd": list(command), "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "IMAGE_WORD=image"]},
            "rootfs": {"type": "layers", "diff_ids": [content["digest"]]},
        }).encode())
        manifest = blob("manifest.v1+json", json.dumps(
            {"schemaVersion": 2, "mediaType": f"{OCI}.manifest.v1+json", "config": config, "layers": [content]}
        ).encode())
        manifest["annotations"] = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}
        add("index.json", json.dumps({"schemaVersion": 2, "manifests": [manifest]}).encode())
        add("oci-layout", json.dumps({"imageLayoutVersion": "1.0.0"}).encode())
