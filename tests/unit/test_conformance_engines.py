"""The pure parts of the conformance engines: CRI's messages, the image, what a script prints, what cases share."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tarfile
from pathlib import Path

import pytest

from kata.conformance.case import CASES
from kata.conformance.engines import cri_messages, host
from kata.conformance.engines.oci_image import write_image
from kata.conformance.engines.sections import script, sections
from kata.conformance.shared import shared
from kata.conformance.suites import load_cases
from kata.errors import HostError


def test_messages_go_and_come() -> None:
    config = {"metadata": {"name": "a", "uid": "u"}, "labels": {"app": "x"}, "port_mappings": [{"host_port": 80}],
              "linux": {"security_context": {"namespace_options": {"pid": 1}}}}
    data = cri_messages.encode("RunPodSandboxRequest", {"config": config, "runtime_handler": "h"})
    # field 2, text of one byte: as api.proto numbers it
    assert data.endswith(b"\x12\x01h")
    back = cri_messages.decode("RunPodSandboxRequest", data)
    assert back["config"]["labels"] == {"app": "x"}
    assert back["config"]["port_mappings"][0]["host_port"] == 80
    assert back["config"]["linux"]["security_context"]["namespace_options"]["pid"] == 1
    assert back["config"]["hostname"] == ""


def test_every_message_of_the_table_can_be_made() -> None:
    for name in cri_messages.MESSAGES:
        assert cri_messages.encode(name, {}) == b""


def test_a_field_that_is_not_known_is_skipped_or_refused() -> None:
    assert cri_messages.decode("StopContainerRequest", b"\x7a\x01x")["container_id"] == ""
    with pytest.raises(Exception, match="no field"):
        cri_messages.encode("StopContainerRequest", {"nosuch": 1})


def test_the_image_is_whole(tmp_path: Path) -> None:
    layer = tmp_path / "layer.tar"
    layer.write_bytes(b"the root")
    write_image(tmp_path / "image.tar", "localhost/x:y", layer, ["/bin/sh"])
    with tarfile.open(tmp_path / "image.tar") as archive:
        files = {m.name: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]
    assert json.loads(files["oci-layout"])["imageLayoutVersion"] == "1.0.0"
    listed = json.loads(files["index.json"])["manifests"][0]
    assert listed["annotations"]["io.containerd.image.name"] == "localhost/x:y"
    manifest = json.loads(blob(files, listed))
    assert blob(files, manifest["layers"][0]) == b"the root"
    config = json.loads(blob(files, manifest["config"]))
    assert config["config"]["Cmd"] == ["/bin/sh"]
    assert config["rootfs"]["diff_ids"] == [manifest["layers"][0]["digest"]]


def blob(files: dict[str, bytes], named: dict[str, object]) -> bytes:
    """What a descriptor names; its digest and size hold."""
    algorithm, _, digest = str(named["digest"]).partition(":")
    data = files[f"blobs/{algorithm}/{digest}"]
    assert hashlib.sha256(data).hexdigest() == digest and len(data) == named["size"]
    return data


def test_sections_of_a_script() -> None:
    text = script(one="echo 1; echo 2", none="true", fails="false; echo after", two="printf x")
    said = subprocess.run(["sh", "-c", text], capture_output=True, text=True, check=True).stdout
    assert sections(said) == {"one": "1\n2", "none": "", "fails": "after", "two": "x"}


class Side:
    """A subject's side of an engine."""


def test_what_is_shared_is_made_once_and_fails_once() -> None:
    side, other, made = Side(), Side(), []

    def make() -> str:
        made.append(1)
        if len(made) == 2:
            raise HostError("broken")
        return f"made {len(made)}"

    assert shared(side, "a", make) == shared(side, "a", make) == "made 1"
    for _ in range(2):
        with pytest.raises(HostError, match="broken"):
            shared(side, "b", make)
    assert shared(other, "a", make) == "made 3"


def test_output_that_failed_names_the_command() -> None:
    with pytest.raises(HostError, match=r"failed with exit code 3: first \| the last"):
        host.Output(("docker", "run"), 3, "", "first\nthe last\n").ok()


def test_there_are_enough_cases_of_engines() -> None:
    load_cases()
    suites = [case.suite for case in CASES]
    assert suites.count("docker") >= 60
    assert all(suites.count(suite) >= 10 for suite in ("podman", "containerd", "cri"))
