"""`kata migrate plan|apply|rollback|status` below a folder: reports, identity, bad input, kills, full disks."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata import changes, engines
from kata.cli import main
from kata.cli import migrate as verb
from unit.test_changes import snapshot
from unit.test_clear import SHIPPED

GOLDEN = Path(__file__).parent / "golden"
CLEAR, KATA = "etc/clear-containers/configuration.toml", "etc/kata-containers/configuration.toml"
DOCKER = """{
    "default-runtime": "runv",
    "runtimes": {
        "runv": {"path": "/usr/bin/runv", "runtimeArgs": ["--default_memory", "512", "--log_dir=/var/log/hyper"]},
        "big": {"path": "/usr/bin/runv", "runtimeArgs": ["--default_memory", "4096", "--template", "/t"]}
    }
}
"""
UNIT = """[Service]
ExecStart=
# as docs say: --add-runtime cc-runtime=/x
ExecStart=/usr/bin/dockerd -D --add-runtime cc-runtime=/usr/bin/cc-runtime --default-runtime=cc-runtime
"""
CONTAINERD = """version = 3
[plugins.'io.containerd.cri.v1.runtime'.containerd]
default_runtime_name = 'clear' # vm
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.clear]
runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.clear.options]
BinaryName = '/usr/bin/cc-runtime'
"""
PODMAN = """[engine]
runtime = "runv"
[engine.runtimes]
# places
runv = ["/usr/bin/runv", "/usr/local/bin/runv"]
"""
CRIO = """[crio.runtime]
default_runtime = "cc"
[crio.runtime.runtimes.cc]
runtime_path = "/usr/bin/cc-runtime" # Clear
"""
KATA3 = """# Kata 3
[hypervisor.qemu]
path = "/opt/kata/bin/qemu-system-x86_64"
default_vcpus = 1.5 # half a one more
shared_fs = "virtio-fs"
confidential_guest = false

[hypervisor.clh]
path = "/opt/kata/bin/cloud-hypervisor"

[agent.kata]
dial_timeout = 45
debug_console_enabled = true

[runtime]
sandbox_cgroup_only = true
"""
KATA3_SHIM = """version = 2
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata]
runtime_type = "io.containerd.kata.v2"
"""
#: name -> files of a host.
HOSTS: dict[str, dict[str, str]] = {
    "clear": {CLEAR: SHIPPED, "etc/systemd/system/docker.service.d/clear-containers.conf": UNIT,
              "etc/containerd/config.toml": CONTAINERD, "etc/crio/crio.conf": CRIO},
    "runv": {"etc/docker/daemon.json": DOCKER, "etc/containers/containers.conf": PODMAN},
    "kata": {KATA: KATA3, "etc/containerd/config.toml": KATA3_SHIM},
}


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A host without engines that run, whose programs are at their usual places."""
    monkeypatch.setenv("KATA_ASSETS_DIR", "/nonexistent")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        host = Path(folder)
        programs(host)
        yield host


def programs(host: Path) -> None:
    (host / "usr/bin").mkdir(parents=True)
    for name in ("kata-runtime", "cc-runtime", "runv"):
        (host / "usr/bin" / name).touch()


def put(host: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (host / name).parent.mkdir(parents=True, exist_ok=True)
        (host / name).write_text(text)


def migrate(host: Path, *words: str, code: int = 0) -> str:
    """The verb's output; on failure its errors."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        found = main(["migrate", *words, "--sysroot", str(host)])
    assert found == code, out.getvalue() + err.getvalue()
    return err.getvalue() if code else out.getvalue()


def files(host: Path) -> dict[str, Any]:
    """What is below the host but the sets of changes."""
    return {name: what for name, what in snapshot(host).items() if not name.startswith("var")}


# --- reports ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTS)
def test_report(host: Path, name: str) -> None:
    """A report of each source, held as a file; ``KATA_GOLDEN=write`` accepts a change."""
    put(host, HOSTS[name])
    before = files(host)
    report = migrate(host, "plan", "--report", "-").replace(str(host), "")
    report = re.sub("Plan `[0-9a-f]{12}`", "Plan `ID`", report)
    assert files(host) == before and not (host / "var").exists(), "plan changes nothing"
    golden = GOLDEN / f"migrate-{name}.md"
    if os.environ.get("KATA_GOLDEN") == "write":
        golden.write_text(report)
    assert report == golden.read_text()


@pytest.mark.parametrize("target", ["clear", "runv"])
def test_report_of_the_way_back(host: Path, target: str) -> None:
    put(host, {KATA: "[hypervisor.qemu]\ndefault_memory = 1024\ninitrd = \"/i\"\n[factory]\nvm_cache_number = 2\n"
               "[runtime]\ninternetworking_model = \"tcfilter\"\n",
               "etc/docker/daemon.json": '{"default-runtime": "kata",\n "runtimes": {"kata": {"path": '
                                         '"/usr/bin/kata-runtime", "runtimeArgs": ["--log", "/l"]}}}\n'})
    report = migrate(host, "plan", "--to", target, "--report", "-").replace(str(host), "")
    report = re.sub("Plan `[0-9a-f]{12}`", "Plan `ID`", report)
    golden = GOLDEN / f"migrate-to-{target}.md"
    if os.environ.get("KATA_GOLDEN") == "write":
        golden.write_text(report)
    assert report == golden.read_text()


def test_json_and_table_say_the_same(host: Path) -> None:
    put(host, HOSTS["clear"])
    plan = json.loads(migrate(host, "plan", "--json"))
    table = migrate(host, "plan")
    assert plan["unknown"] == [] and f"plan {plan['plan']}" in table
    assert all(row["key"][:40] in table for row in plan["rows"])
    [row] = [r for r in plan["rows"] if r["key"] == "[hypervisor.qemu] enable_swap"]
    assert (row["file"], row["line"], row["old"], row["new"], row["kind"]) == (
        f"{host}/{CLEAR}", 17, True, True, "same")
    assert {f["path"] for f in plan["files"]} == {f"{host}/{n}" for n in (*HOSTS["clear"], KATA)} - {f"{host}/{CLEAR}"}
    assert {(r["engine"], r["how"]) for r in plan["reload"]} == {
        ("docker", "restart"), ("containerd", "restart"), ("crio", "restart")}


# --- there and back -----------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTS)
def test_apply_and_rollback(host: Path, name: str) -> None:
    put(host, HOSTS[name])
    before = files(host)
    assert migrate(host, "status") == "old: nothing is migrated\n"
    plan = json.loads(migrate(host, "plan", "--json"))["plan"]
    migrate(host, "apply", "--plan", plan)
    assert files(host) != before
    assert json.loads(migrate(host, "status", "--json"))["migrations"][0]["plan"] == plan
    assert "no file changes" in migrate(host, "apply"), "there is nothing left to do"
    assert "as before" in migrate(host, "rollback")
    assert files(host) == before
    assert "nothing was migrated" in migrate(host, "rollback", code=1)


def test_what_is_written(host: Path) -> None:
    """Comments, order and other runtimes stay; each set of options has a file of its own."""
    put(host, {**HOSTS["runv"], **HOSTS["kata"]})
    migrate(host, "apply")
    docker = json.loads((host / "etc/docker/daemon.json").read_text())
    assert docker["default-runtime"] == "kata"
    kata = "/usr/bin/kata-runtime"
    assert docker["runtimes"] == {
        # It had options, and keeps some: docker drives what runs by a script that goes with the options.
        "runv": {"path": kata, "runtimeArgs": ["--flavor", "unified"]},
        "kata": {"path": kata, "runtimeArgs": ["--flavor", "unified"]},
        "big": {"path": kata, "runtimeArgs": ["--kata-config", "/etc/kata-containers/configuration-big.toml"]}}
    podman = (host / "etc/containers/containers.conf").read_text()
    assert podman == PODMAN.replace('"runv"\n', '"kata"\n').replace(
        '["/usr/bin/runv", "/usr/local/bin/runv"]', f'["{kata}"]') + f'kata = ["{kata}"]\n'
    main_file = (host / KATA).read_text()
    assert main_file.startswith("# Kata 3\n[hypervisor.qemu]\ndefault_vcpus = 2 # half a one more\n")
    assert "default_memory = 512" in main_file and "confidential" not in main_file and "clh" not in main_file
    assert 'boot_timeout = 45' in main_file
    assert 'template_path = "/t"' in (host / "etc/kata-containers/configuration-big.toml").read_text()
    for path in host.glob("etc/kata-containers/*.toml"):
        assert main(["--kata-config", str(path), "--kata-show-default-config-paths"]) == 0


def test_unit_of_docker(host: Path) -> None:
    put(host, HOSTS["clear"])
    migrate(host, "apply", "--engine", "docker")
    unit = (host / "etc/systemd/system/docker.service.d/clear-containers.conf").read_text()
    assert unit == UNIT.replace("=/usr/bin/cc-runtime --default-runtime=cc-runtime", "=/usr/bin/kata-runtime "
                                "--add-runtime kata=/usr/bin/kata-runtime --default-runtime=kata")
    assert (host / "etc/crio/crio.conf").read_text() == CRIO


def test_command_line_and_host_default(host: Path) -> None:
    put(host, {"etc/kata/host.toml": "# host\n[runtime]\ndefault_flavor = \"runv\"\n"})
    migrate(host, "apply", "--command-line", "/usr/bin/runv --default_memory 700 --debug run x")
    assert "default_memory = 700" in (host / KATA).read_text()
    assert (host / "etc/kata/host.toml").read_text() == "# host\n[runtime]\ndefault_flavor = \"unified\"\n"
    assert "calls neither runv nor cc-runtime" in migrate(host, "plan", "--command-line", "runc run", code=1)


def test_what_is_unified_already_keeps_its_configuration(host: Path) -> None:
    """A host with all three side by side: each of the others gets a file of its own."""
    put(host, {CLEAR: SHIPPED, KATA: "[hypervisor.qemu]\ndefault_memory = 4096\n", "etc/docker/daemon.json": json.dumps(
        {"runtimes": {"kata": {"path": "/usr/bin/kata-runtime"}, "cc": {"path": "/usr/bin/cc-runtime"}}})})
    before, others = (host / KATA).read_text(), "etc/kata-containers/configuration-cc.toml"
    put(host, {others: "# somebody's"})
    migrate(host, "apply")
    assert ((host / KATA).read_text(), (host / others).read_text()) == (before, "# somebody's")
    assert json.loads((host / "etc/docker/daemon.json").read_text())["runtimes"]["cc"]["runtimeArgs"] == [
        "--kata-config", "/etc/kata-containers/configuration-cc-2.toml"]
    assert "default_memory = 2048" in (host / "etc/kata-containers/configuration-cc-2.toml").read_text()
    assert "no file changes" in migrate(host, "apply")
    assert f"/{KATA}: changed" in migrate(host, "plan", "--from", "clear"), "Clear's file, when somebody asks for it"


def test_drop_ins_that_override_are_told(host: Path) -> None:
    put(host, {CLEAR: SHIPPED, "etc/kata-containers/config.d/9.toml": "[hypervisor.qemu]\ndefault_memory = 99\n"})
    rows = json.loads(migrate(host, "plan", "--json"))["rows"]
    [row] = [r for r in rows if r["why"].startswith("this drop-in")]
    assert (row["file"], row["line"], row["old"], row["new"]) == (
        f"{host}/etc/kata-containers/config.d/9.toml", 2, 2048, 99)


def test_back_to_runv(host: Path) -> None:
    put(host, {KATA: "[hypervisor.qemu]\ndefault_memory = 512\nenable_debug = true\n",
               "etc/docker/daemon.json": '{"runtimes": {"kata": {"path": "/usr/bin/kata-runtime"}}}\n'})
    migrate(host, "apply", "--to", "runv")
    assert json.loads((host / "etc/docker/daemon.json").read_text())["runtimes"] == {
        name: {"path": "/usr/bin/runv", "runtimeArgs": ["--default_memory", "512", "--debug"]}
        for name in ("kata", "runv")}


WORDS = st.sampled_from(["default_memory = 300", "default_vcpus = 2", "enable_swap = true", "# a comment", "",
                         "kernel_params = \"a=b\""])
CONFIGS = st.lists(WORDS, unique=True, max_size=5).map(lambda lines: "\r\n".join(["[hypervisor.qemu]", *lines, ""]))


@given(st.fixed_dictionaries({}, optional={
    CLEAR: CONFIGS, KATA: CONFIGS,
    "etc/docker/daemon.json": st.sampled_from([DOCKER, "{}", "", DOCKER.replace("\n", "")]),
    "etc/containers/containers.conf": st.just(PODMAN), "etc/crio/crio.conf": st.just(CRIO),
    "etc/containerd/config.toml": st.just(CONTAINERD)}), st.sampled_from(["unified", "clear", "runv"]))
def test_apply_and_rollback_is_the_identity(found: dict[str, str], target: str) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        host = Path(folder)
        programs(host)
        for name, text in found.items():
            (host / name).parent.mkdir(parents=True, exist_ok=True)
            (host / name).write_bytes(text.encode())
        before = files(host)
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = main(["migrate", "apply", "--to", target, "--sysroot", folder])
        if code:
            assert "nothing to migrate" in out.getvalue() and files(host) == before
            return
        if (host / "var").exists():
            migrate(host, "rollback")
        assert files(host) == before


# --- bad input ----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "text", "error"), [
    (CLEAR, "[hypervisor.qemu\n", r"configuration.toml:1: Expected"),
    (CLEAR, "[hypervisor.qemu]\npath = 5\n", r"configuration.toml:2: path: an absolute path"),
    (CLEAR, "[hypervisor.qemu]\na = 1\na = 2\n", r"configuration.toml:3: Cannot overwrite"),
    (KATA, "\xff", r"configuration.toml:1: is not UTF-8"),
    ("etc/docker/daemon.json", '{"runtimes": {"runv": {"path": "/runv"}}\n', r"daemon.json:2: ',' or '}' is expected"),
    ("etc/docker/daemon.json", '{"debug": true,\n"debug": false}', r"daemon.json:2: 'debug' is set twice"),
    ("etc/docker/daemon.json", '{"runtimes": {"runv": {"path": "/runv", "runtimeArgs": ["--nope"]}}}',
     r"daemon.json:1: --nope: runV has no such option"),
    ("etc/docker/daemon.json", '{"runtimes": {"cc": {"path": "/cc-runtime", "runtimeArgs": ["--x", "y"]}}}',
     r"daemon.json:1: the runtime cc has the option '--x', which clear has not"),
    ("etc/docker/daemon.json", "[]", r"daemon.json:1: an object is expected"),
    ("etc/containerd/config.toml", "version = ", r"config.toml:1: "),
    ("etc/systemd/system/docker.service.d/a.conf",
     "ExecStart=dockerd --add-runtime runv=/runv \\\n --add-runtime runv=/usr/bin/runv\n",
     r"a.conf:2: the runtime 'runv' is added twice, first on line 1"),
])
def test_wrong_files(host: Path, name: str, text: str, error: str) -> None:
    put(host, {**HOSTS["kata"], CLEAR: SHIPPED, "etc/containerd/config.toml": CONTAINERD, name: ""})
    (host / name).write_bytes(text.encode("latin-1"))
    before = files(host)
    for action in ("plan", "apply"):
        assert re.search(error, migrate(host, action, code=1))
    assert files(host) == before


def test_an_unknown_key_blocks_apply_unless_it_is_named(host: Path) -> None:
    put(host, {CLEAR: "[hypervisor.qemu]\ndefault_memry = 5\n"})
    assert "unknown  " in migrate(host, "plan")
    error = migrate(host, "apply", code=1)
    assert "nothing is known of [hypervisor.qemu] default_memry: correct it, or leave it out with --accept" in error
    assert not (host / KATA).exists()
    migrate(host, "apply", "--accept", "hypervisor.qemu.default_memry")
    assert (host / KATA).exists()


def test_docker_told_twice(host: Path) -> None:
    put(host, {**HOSTS["clear"], **HOSTS["runv"]})
    assert "dockerd takes no option from both a file and its command line" in migrate(host, "plan", code=1)
    migrate(host, "plan", "--engine", "podman")
    assert "there is no such engine" in migrate(host, "plan", "--engine", "rkt", code=1)


def test_nothing_there(host: Path) -> None:
    assert "there is nothing to migrate" in migrate(host, "plan", code=1)
    assert "there is no such folder" in migrate(host / "nowhere", "plan", code=1)
    for words, error in ((("--file", "/x"), "--file without --from"),
                         (("--from", "runv", "--file", "/x"), "runV has no configuration file"),
                         (("--from", "clear", "--file", "/nonexistent"), "cannot read /nonexistent"),
                         (("--to", "runv", "--from", "kata"), "leave --from")):
        assert error in migrate(host, "plan", *words, code=1)


def test_a_file_nobody_may_read(host: Path) -> None:
    put(host, HOSTS["kata"])
    (host / "etc/crio").mkdir()
    (host / "etc/crio/crio.conf").symlink_to("/nonexistent")
    assert "crio.conf: no such file or directory: leave the engine out" in migrate(host, "plan", code=1)
    migrate(host, "plan", "--engine", "none")


def test_the_plan_has_changed(host: Path) -> None:
    put(host, HOSTS["clear"])
    plan = json.loads(migrate(host, "plan", "--json"))["plan"]
    put(host, {CLEAR: SHIPPED.replace("2048", "4096")})
    assert f"not {plan}: a file has changed since: look at it again" in migrate(host, "apply", "--plan", plan, code=1)
    assert not (host / KATA).exists()


def test_an_edit_since_is_kept_unless_forced(host: Path) -> None:
    put(host, HOSTS["clear"])
    before = files(host)
    migrate(host, "apply")
    with open(host / KATA, "a") as f:
        f.write("# mine\n")
    assert "configuration.toml: changed since" in migrate(host, "status")
    assert "configuration.toml changed since: look at it" in migrate(host, "rollback", code=1)
    migrate(host, "rollback", "--force")
    assert files(host) == before


def test_a_docker_that_refuses_the_reload_gets_its_file_back(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kata.engines import reload
    from kata.errors import HostError

    def refuses(_sysroot: str) -> str:
        raise HostError("dockerd did not say within 20 s that it reloaded", "its log says what it does not like")

    monkeypatch.setattr(reload, "docker", refuses)
    put(host, HOSTS["runv"])
    before = files(host)
    assert "reloaded; the old files are back: its log says" in migrate(host, "apply", code=1)
    assert files(host) == before and migrate(host, "status") == "old: nothing is migrated\n"
    migrate(host, "apply", "--no-reload")


def test_links_stay(host: Path) -> None:
    """A host whose /etc holds links to files that somebody manages."""
    put(host, {"srv/docker.json": DOCKER, "etc/docker/x": ""})
    (host / "etc/docker/daemon.json").symlink_to("/srv/docker.json")
    migrate(host, "apply", "--from", "runv")
    assert (host / "etc/docker/daemon.json").is_symlink()
    assert "kata-runtime" in (host / "srv/docker.json").read_text()
    migrate(host, "rollback")
    assert (host / "srv/docker.json").read_text() == DOCKER


def test_names() -> None:
    assert engines.flavor_of("/x/runv", [], "") == "runv"
    assert engines.flavor_of("kata", ["--flavor=clear"], "runv") == "clear"
    assert engines.flavor_of("kata-runtime", [], "runv") == "runv"
    assert engines.flavor_of("runc", ["--flavor", "clear"], "") == ""
    assert engines.without_flavor(["--flavor", "clear", "-x", "--flavor=runv"]) == ["-x"]
    assert verb.PREFIX and changes.FOLDER
