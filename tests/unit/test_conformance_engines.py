"""The pure parts of the conformance engines: CRI's messages, the image, what a script prints, what cases share."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from kata.conformance import leftovers
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


@pytest.fixture
def named() -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """Starts a process whose command line is one word."""
    with ExitStack() as close:
        def start(word: str) -> subprocess.Popen[bytes]:
            child = subprocess.Popen([word, "100"], executable="/bin/sleep")
            close.callback(child.wait)
            close.callback(child.kill)
            return child

        yield start


def test_processes_are_found_by_whole_names(named: Callable[[str], subprocess.Popen[bytes]]) -> None:
    theirs = [named(word) for word in ("/run/x71/a", "--root=/run/x71/a", "unix:///run/x71/s", "sandbox-x71-one")]
    for word in ("/srv/run/x71/a", "/run/x712/a", "ax71-one", "/run/x71-2/a", "x71-one1", "/home/.x71-one"):
        named(word)
    found = host.processes(["/run/x71/", "x71-one"], ())
    assert sorted(int(line.split()[0]) for line in found) == sorted(child.pid for child in theirs)


def test_mounts_are_found_by_where_they_are() -> None:
    below = host.mounts("/sys")
    assert "/sys" in below and all(point == "/sys" or point.startswith("/sys/") for point in below)
    assert host.mounts("/sys/") == below and host.mounts("ys") == host.mounts("/sy") == []


def test_leftovers_are_those_of_the_run_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                              named: Callable[[str], subprocess.Popen[bytes]]) -> None:
    """A run that is over; what only has a name like one of its own stays."""
    run, data, proc = (tmp_path / name for name in ("run", "data", "proc"))
    for folder in (run / "kc71", run / "kc72", run / "mykc71", data / "kc71", data / "kc73", proc / "72"):
        folder.mkdir(parents=True)
    mine, other = named(f"{run}/kc71/oci/shim"), named(f"/srv{run}/kc71/oci/shim")
    stays = [f"/sys/fs/cgroup/{name}" for name in ("mykc71-a", "kc711-a", "kc71abc-a", "x/kc71.slice")]
    goes = [f"/sys/fs/cgroup/{name}" for name in ("kc71-runc-1", "kc71d-docker", "kc71d-docker/hash")]
    removed: list[str] = []
    monkeypatch.setattr(host, "cgroups", lambda _name: [*stays, *goes])
    monkeypatch.setattr(leftovers.os, "rmdir", removed.append)
    monkeypatch.setattr(leftovers.shutil, "rmtree", lambda path, **_: removed.append(str(path)))
    assert leftovers.sweep(run, data, proc) == ["kc71"]
    assert mine.wait(10) == -9 and other.poll() is None
    assert removed == [f"{data}/kc71", f"{run}/kc71", *sorted(goes, reverse=True)]
