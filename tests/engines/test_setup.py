"""``kata engine``: runtimes into real engines that are ours alone, a container that proves it, and out again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.containerd import Containerd
from harness.dockerd import Docker
from harness.netns import NetworkNamespace
from harness.proc import Result, run
from harness.runtime import Runtime

pytestmark = pytest.mark.vm_only
PROVEN = "a container ran on a kernel of its own"


def engine(runtime: Runtime, verb: str, name: str, file: Path, *words: str,
           env: dict[str, str] | None = None) -> Result:  # fmt: skip
    """The verb."""
    return run(runtime.path, "engine", verb, name, "--file", str(file), *words, timeout=170, env=env)


def runtimes(docker: Docker) -> set[str]:
    """Those that have a program; docker 20 forgets the names of containerd's shims at its first reload."""
    found = json.loads(docker("info", "--format", "{{json .Runtimes}}").ok().stdout)
    return {name for name in found if not name.startswith("io.containerd.")}


def test_docker(runtime: Runtime, docker: Docker) -> None:
    file, pidfile = docker.run_dir / "daemon.json", ("--pidfile", str(docker.run_dir / "docker.pid"))
    before, had = file.read_bytes(), runtimes(docker)
    images = docker("images", "-q").ok().stdout
    try:
        done = engine(runtime, "install", "docker", file, *pidfile, "--flavor", "unified").ok()
        assert f"kata-unified: {PROVEN}" in done.stdout and "has reloaded" in done.stdout
        assert runtimes(docker) == had | {"kata-unified"}
        assert docker("images", "-q").ok().stdout == images
        assert "kata-engine-proof" not in docker("ps", "-a").ok().stdout

        # dockerd has --default-runtime on its command line: it would not start with both.
        after = file.read_bytes()
        done = engine(runtime, "install", "docker", file, *pidfile, "--flavor", "clear", "--default")
        assert done.rc == 1 and "was started with --default-runtime" in done.stderr
        assert file.read_bytes() == after and runtimes(docker) == had | {"kata-unified"}
    finally:
        engine(runtime, "remove", "docker", file, *pidfile).ok()
    assert file.read_bytes() == before and runtimes(docker) == had


def test_a_proof_that_fails_takes_all_back(runtime: Runtime, docker: Docker, tmp_path: Path) -> None:
    """Programs that make no machine, and none at all: docker takes both, and both are found out."""
    if (runc := shutil.which("runc")) is None:
        pytest.skip("runc is not installed")
    file, had = docker.run_dir / "daemon.json", runtimes(docker)
    before = file.read_bytes()
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}  # the program that is installed is the first in it
    for script, error in ((f'exec {runc} "$@"', "a container of kata-unified ran on the host's kernel"),
                          ("echo out of order >&2; exit 1", "docker")):
        (tmp_path / "kata-unified").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "kata-unified").chmod(0o755)
        done = engine(runtime, "install", "docker", file, "--pidfile", str(docker.run_dir / "docker.pid"), "--flavor",
                      "unified", env=env)
        assert done.rc == 1 and error in done.stderr and f"{file} is what it was" in done.stderr, done
        assert "has reloaded" in done.stdout and file.read_bytes() == before and runtimes(docker) == had
        assert "kata-engine-proof" not in docker("ps", "-a").ok().stdout + docker("images").ok().stdout


def test_docker_that_does_not_run(runtime: Runtime, tmp_path: Path) -> None:
    file = tmp_path / "daemon.json"
    words = ("--pidfile", str(tmp_path / "docker.pid"), "--flavor", "runv")
    done = engine(runtime, "install", "docker", file, *words)
    assert done.rc == 1 and "docker does not run, so it can prove nothing" in done.stderr and not file.exists()
    done = engine(runtime, "install", "docker", file, *words, "--no-verify").ok()
    assert "docker does not run: it reads its file when it starts" in done.stdout
    assert set(json.loads(file.read_text())["runtimes"]) == {"kata-runv"}
    engine(runtime, "remove", "docker", file, *words).ok()
    assert not file.exists()


@pytest.fixture
def containerd(tag: str, run_dir: Path, work_dir: Path) -> Iterator[Containerd]:
    if shutil.which("ctr") is None:
        pytest.skip("containerd is not installed")
    netns = NetworkNamespace(f"{tag}s").create()
    found = Containerd(run_dir / "s", work_dir / "containerd-setup", netns)
    found.start()
    yield found
    found.stop()
    netns.delete()


def test_containerd(runtime: Runtime, containerd: Containerd) -> None:
    file = containerd.run_dir / "containerd.toml"
    file.write_text(file.read_text().replace('"io.containerd.grpc.v1.cri", ', ""))  # the dump shows what is enabled
    before = file.read_bytes()
    try:
        words = ("--address", str(containerd.address), "--flavor", "unified", "--default")
        done = engine(runtime, "install", "containerd", file, *words).ok()
        assert f"kata-unified: {PROVEN}" in done.stdout and "systemctl restart containerd" in done.stdout
        dump = run("containerd", "--config", str(file), "config", "dump", timeout=60).ok().stdout
        assert 'default_runtime_name = "kata-unified"' in dump
        assert f'BinaryName = "{Path(runtime.path).with_name("kata-unified")}"' in dump
        assert not containerd.ctr("--namespace", "kata-engine-proof", "containers", "ls", "-q").ok().stdout
    finally:
        engine(runtime, "remove", "containerd", file).ok()
    assert file.read_bytes() == before


def test_what_containerd_would_not_see(runtime: Runtime, tmp_path: Path) -> None:
    """A file that is imported and replaces the plugin's settings; a plugin that is disabled."""
    if shutil.which("containerd") is None:
        pytest.skip("containerd is not installed")
    file, plugin = tmp_path / "config.toml", "io.containerd.grpc.v1.cri"
    (tmp_path / "more.toml").write_text(f'version = 2\n[plugins."{plugin}".containerd]\nsnapshotter = "native"\n')
    file.write_text(f'version = 2\nimports = ["{tmp_path}/more.toml"]\n')
    before = file.read_bytes()
    done = engine(runtime, "install", "containerd", file, "--flavor", "runv", "--no-verify")
    assert done.rc == 1 and "has nothing for the runtime kata-runv" in done.stderr and file.read_bytes() == before
    file.write_text(f'version = 2\ndisabled_plugins = ["{plugin}"]\n')
    done = engine(runtime, "install", "containerd", file, "--flavor", "runv", "--no-verify").ok()
    assert "the CRI plugin is among disabled_plugins" in done.stdout
    engine(runtime, "remove", "containerd", file).ok()


def test_podman(runtime: Runtime, tmp_path: Path) -> None:
    if shutil.which("podman") is None:
        pytest.skip("podman is not installed")
    file, storage = tmp_path / "containers.conf", tmp_path / "storage.conf"
    file.write_text('# mine\n[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
                    f'tmp_dir = "{tmp_path}/libpod"\n')
    storage.write_text(f'[storage]\ndriver = "vfs"\nrunroot = "{tmp_path}/run"\ngraphroot = "{tmp_path}/graph"\n')
    before, env = file.read_bytes(), {"CONTAINERS_STORAGE_CONF": str(storage)}
    try:
        done = engine(runtime, "install", "podman", file, "--flavor", "unified", env=env).ok()
        assert f"kata-unified: {PROVEN}" in done.stdout
        podman = {**env, "CONTAINERS_CONF": str(file)}
        assert not run("podman", "ps", "-aq", timeout=60, env=podman).ok().stdout
        shown = run(runtime.path, "engine", "status", "podman", "--file", str(file), "--json", timeout=60).ok().stdout
        assert [(r["name"], r["flavor"], r["problem"]) for r in json.loads(shown)[0]["runtimes"]] == [
            ("kata-unified", "unified", "")]
    finally:
        engine(runtime, "remove", "podman", file, env=env).ok()
    assert file.read_bytes() == before
