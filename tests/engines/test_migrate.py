"""A host with docker, Clear Containers and runV is migrated while its containers run, and back."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import dockerd
from harness.bundle import SLEEPER
from harness.dockerd import IMAGE, Docker
from harness.netns import NetworkNamespace
from harness.proc import Result, run
from harness.runtime import Runtime

from .test_docker_flavors import flavor_of

pytestmark = pytest.mark.vm_only


class Host:
    """Folder ``root`` with an /etc of its own, which dockerd and all below it see as theirs."""

    def __init__(self, root: Path, runtime: Runtime) -> None:
        self.root = root
        self.runtime = runtime
        shutil.copytree("/etc", root / "etc", symlinks=True)
        for folder in ("docker", "clear-containers", "kata-containers", "kata"):
            shutil.rmtree(root / "etc" / folder, ignore_errors=True)
        kata = Path(runtime.path)
        self.write("etc/docker/daemon.json", json.dumps({"runtimes": {
            "tested": {"path": runtime.path},
            "cc-runtime": {"path": str(kata.with_name("cc-runtime"))},
            "runv": {"path": str(kata.with_name("runv")), "runtimeArgs": ["--default_memory", "300"]}}}, indent=2))
        self.write("etc/clear-containers/configuration.toml", "[hypervisor.qemu]\ndefault_memory = 420 # MiB\n")
        self.holder = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", f"mount --bind {root}/etc /etc && echo && exec sleep inf"],
            stdout=subprocess.PIPE)
        assert self.holder.stdout and self.holder.stdout.readline()

    def write(self, name: str, text: str) -> None:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_text(text)

    def files(self) -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in (self.root / "etc").rglob("*") if p.is_file() and not p.is_symlink()}

    def migrate(self, *words: str) -> Result:
        return run(self.runtime.path, "migrate", *words, "--sysroot", str(self.root), timeout=60)


@pytest.fixture(scope="module")
def migrated(runtime: Runtime, tag: str, run_dir: Path, work_dir: Path, rootfs: Path) -> Iterator[tuple[Host, Docker]]:
    """The host, and its docker."""
    if shutil.which("dockerd") is None:
        pytest.skip("dockerd is not installed")
    host = Host(work_dir / "host", runtime)
    holder = f"--mount=/proc/{host.holder.pid}/ns/mnt"

    class Within(NetworkNamespace):
        def argv(self, *argv: str) -> list[str]:
            return ["nsenter", holder, f"--net={self.path}", "--", *argv]

    runs, works = run_dir / "m", work_dir / "m"
    runs.mkdir()
    works.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dockerd, "NetworkNamespace", Within)
        docker = Docker(runtime, f"{tag}m", runs, works, ["--config-file", "/etc/docker/daemon.json"])
    (host.root / "run").symlink_to(docker.run_dir)
    try:
        docker.start(rootfs)
        yield host, docker
    finally:
        docker.stop()
        host.holder.kill()
        host.holder.wait()
        shutil.rmtree(host.root)


def size(docker: Docker, name: str) -> tuple[int, str]:
    """MiB that the guest has, and the machine's type."""
    said = docker.sh(name, "awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo; "
                           "cat /sys/class/dmi/id/product_name")
    memory, machine = said.ok().stdout.splitlines()
    return int(memory), "pc" if "i440FX" in machine else machine


def test_there_and_back(migrated: tuple[Host, Docker]) -> None:
    host, docker = migrated
    before = host.files()

    def start(runtime: str) -> str:
        name = f"{runtime}-{len(docker('ps', '-aq').out.split())}"
        docker("run", "-d", "--name", name, "--runtime", runtime, IMAGE, "sh", "-c", SLEEPER).ok()
        return name

    def paths() -> dict[str, str]:
        found = json.loads(docker("info", "--format", "{{json .Runtimes}}").ok().stdout)
        return {name: Path(entry["path"]).name for name, entry in found.items()
                if name in ("cc-runtime", "runv")}

    old = {"clear": start("cc-runtime"), "runv": start("runv")}
    assert [flavor_of(docker, name) for name in old.values()] == list(old)
    plan = json.loads(host.migrate("plan", "--json").ok().stdout)
    assert {r["kind"] for r in plan["rows"]} == {"same", "renamed", "changed"} and host.files() == before

    applied = host.migrate("apply", "--plan", plan["plan"]).ok()
    assert "has reloaded" in applied.stderr
    assert paths() == dict.fromkeys(("cc-runtime", "runv"), "kata-runtime")
    new = {runtime: start(runtime) for runtime in ("cc-runtime", "runv")}
    assert {flavor_of(docker, name) for name in new.values()} == {"unified"}
    for runtime, limit in (("cc-runtime", 420), ("runv", 300)):
        memory, machine = size(docker, new[runtime])
        assert limit - 100 < memory < limit and machine == "pc", runtime

    # What ran goes on, and is unified's when it is adopted.
    for flavor, name in old.items():
        assert flavor_of(docker, name) == flavor
        docker.sh(name, "true").ok()
    run(host.runtime.path, "migrate", "adopt", *(docker.inspect(name)["Id"] for name in old.values())).ok()
    for name in old.values():
        assert flavor_of(docker, name) == "unified"
        docker("pause", name).ok()
        docker("unpause", name).ok()
        docker.sh(name, "true").ok()
    docker("stop", "-t", "5", old["runv"]).ok()
    assert docker.state(old["runv"])["ExitCode"] in (0, 137, 143)
    docker("start", old["runv"]).ok()
    assert flavor_of(docker, old["runv"]) == "unified", "a container that docker starts again has the new program"

    # What docker makes with options that go with the rollback is to be ended before, as the plan says.
    assert any("end the containers that docker makes with cc-runtime before a rollback" in n for n in plan["notes"])
    docker("rm", "-f", new["cc-runtime"]).ok()
    assert "has reloaded" in host.migrate("rollback").ok().stderr
    docker.sh(new["runv"], "true").ok()
    assert host.files() == before
    assert paths() == {"cc-runtime": "cc-runtime", "runv": "runv"}
    assert host.migrate("status").ok().out == "old: nothing is migrated"


def test_a_docker_that_refuses(migrated: tuple[Host, Docker]) -> None:
    """The file as it will be is one that dockerd does not take: it gets the old one back, and goes on with it."""
    host, docker = migrated
    text = (host.root / "etc/docker/daemon.json").read_text()
    host.write("etc/docker/daemon.json", text.replace("{", '{"no-such-directive": 1,', 1))
    before = host.files()
    try:
        refused = host.migrate("apply").fails()
        assert "did not say within 20 s that it reloaded" in refused.stderr
        assert "the old files are back" in refused.stderr
        assert host.files() == before
        docker("info").ok()
    finally:
        host.write("etc/docker/daemon.json", text)
