"""``kata engine`` on files: what engines get, and that removing it brings back every byte."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata.cli import main, roadmap
from kata.config import document
from kata.engines import ENGINES, files, reload
from kata.engines.setup import TARGETS, Wish, install, remove
from unit.test_changes import snapshot

NAMES = ("kata", "kata-clear", "kata-runv", "kata-unified")
DOCKER, CONTAINERD, CRIO, PODMAN = TARGETS.values()

#: Files of hosts that have no runtime of Kata's.
BEFORE = {
    "docker": ("", "{}", "{ }\n", '{"a": 1}', '{\n  "runtimes": {},\n  "debug": true\n}\n',
               '{\n\t"default-runtime": "own",\n\t"runtimes": {\n\t\t"own": {"path": "/n", "runtimeArgs": []}\n\t}\n}'),
    "containerd": ("", "# nothing\n", "version = 2", "version = 3\n# end", """\
version = 2  # of 2020
[plugins]
  [plugins."io.containerd.grpc.v1.cri"]   # ours
    sandbox_image = 'x'

    [plugins."io.containerd.grpc.v1.cri".containerd]
      default_runtime_name = "runc" # yes
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
        runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.internal.v1.opt"]
    path = "/opt"
"""),
    "crio": ("", "[crio]\n", """\
# mine
[crio.runtime]
default_runtime = "crun"
[crio.runtime.runtimes.crun]
runtime_path = ""
"""),
    "podman": ("", '[engine]\nruntime = "crun"\n', '# a\n[engine]\n# b\n\n[engine.runtimes]\ncrun = ["/c"] # d\n'),
}


@pytest.fixture
def host() -> Iterator[Path]:
    """A host without engines that run, whose programs are at their usual places."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield make(Path(folder))


def make(root: Path) -> Path:
    (root / "usr/bin").mkdir(parents=True)
    for name in NAMES:
        (root / "usr/bin" / name).touch(0o755)
    return root


def put(root: Path, path: str, text: str) -> Path:
    file = root / path[1:]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def engine(root: Path, *words: str, code: int = 0) -> str:
    """The verb; what it says, on either stream."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        assert main(["engine", *words, "--sysroot", str(root)]) == code, said.getvalue()
    return said.getvalue()


def has(root: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(engine(root, "status", name, "--json"))[0]
    return found


CASES = [(name, text) for name, texts in BEFORE.items() for text in texts]


@pytest.mark.parametrize(("name", "text"), CASES)
def test_there_and_back(host: Path, name: str, text: str) -> None:
    file = put(host, TARGETS[name], text)
    before, default = snapshot(host), has(host, name)["default"]
    said = engine(host, "install", name, "--default")
    assert "runtime kata is /usr/bin/kata, the default\n" in said
    found = has(host, name)
    assert [(r["name"], r["flavor"], r["default"], r["problem"]) for r in found["runtimes"]] == [
        ("kata", "unified", True, ""), ("kata-clear", "clear", False, ""), ("kata-runv", "runv", False, ""),
        ("kata-unified", "unified", False, "")]
    lines = [line.split("#")[1] for line in text.splitlines() if "#" in line]
    assert all(line in file.read_text() for line in lines)  # comments
    after = snapshot(host)
    assert "has the runtimes already" in engine(host, "install", name, "--default")
    assert snapshot(host) == after
    engine(host, "remove", name)
    left = snapshot(host)
    assert {p: v for p, v in left.items() if not p.startswith("var")} == before
    assert has(host, name)["default"] == default


@pytest.mark.parametrize("name", ENGINES)
def test_a_file_that_was_not_there_goes(host: Path, name: str) -> None:
    engine(host, "install", name)
    engine(host, "install", name, "--flavor", "clear", "--default")
    engine(host, "remove", name, "--flavor", "runv")
    found = has(host, name)
    assert [r["name"] for r in found["runtimes"]] == ["kata", "kata-clear", "kata-unified"]
    assert found["default"] == "kata-clear"
    engine(host, "remove", name)
    assert not (host / TARGETS[name][1:]).exists() and not list((host / "var/lib/kata/changes").glob("engine*"))
    assert "has no runtime" in engine(host, "remove", name)


@pytest.mark.parametrize("name", ENGINES)
def test_what_others_wrote_since_stays(host: Path, name: str) -> None:
    text = {"docker": '{"default-runtime": "own", "runtimes": {"own": {"path": "/o"}}}',
            "containerd": "version = 2\n"
                          '[plugins."io.containerd.grpc.v1.cri".containerd]\ndefault_runtime_name = "own"\n',
            "crio": '[crio.runtime]\ndefault_runtime = "own"\n', "podman": '[engine]\nruntime = "own"\n'}[name]
    file = put(host, TARGETS[name], text)
    engine(host, "install", name, "--default")
    since = file.read_text()
    more = "[more] # of mine\nx = 1\n"
    file.write_text(since.rstrip()[:-1] + ', "debug": true}' if name == "docker" else since + more)
    engine(host, "remove", name)
    assert ("debug" if name == "docker" else more) in file.read_text()
    assert not has(host, name)["runtimes"] and has(host, name)["default"] == "own"


def test_what_containerd_gets(host: Path) -> None:
    for version, plugin in ((2, "io.containerd.grpc.v1.cri"), (3, "io.containerd.cri.v1.runtime")):
        file = put(host, CONTAINERD, f"version = {version}\n")
        engine(host, "install", "containerd", "--flavor", "clear")
        assert document.read(str(file)).data["plugins"] == {plugin: {"containerd": {"runtimes": {"kata-clear": {
            "runtime_type": "io.containerd.runc.v2", "privileged_without_host_devices": True,
            "pod_annotations": ["io.katacontainers.*"], "options": {"BinaryName": "/usr/bin/kata-clear"}}}}}}
        engine(host, "remove", "containerd")


def test_what_crio_gets(host: Path) -> None:
    engine(host, "install", "crio", "--flavor", "runv")
    assert document.read(f"{host}{CRIO}").data == {"crio": {"runtime": {"runtimes": {"kata-runv": {
        "runtime_path": "/usr/bin/kata-runv", "runtime_type": "oci", "runtime_root": "/run/kata/crio",
        "privileged_without_host_devices": True}}}}}


@pytest.mark.parametrize(("path", "text", "error", "words"), [
    (DOCKER, "{", "daemon.json:1: a key in quotes is expected", ()),
    (DOCKER, '{"debug": true,\n"debug": false}', "daemon.json:2: 'debug' is set twice, first on line 1", ()),
    (DOCKER, "[]", "daemon.json:1: an object is expected", ()),
    ("/etc/default/docker", 'DOCKER_OPTS="--add-runtime x=/x"\n', "docker:1 adds the runtime x: dockerd takes", ()),
    ("/etc/default/docker", 'DOCKER_OPTS="--default-runtime x"\n', "docker:1 sets the default runtime", ("--default",)),
    (CONTAINERD, "version = 2\nversion = 3\n", "config.toml:2: ", ()),
    (CONTAINERD, "version = 4\n", "has version 4; known are 2 and 3", ()),
    (CONTAINERD, "root = '/x'\n", "has no version, which means version 1; known are 2 and 3: `containerd config", ()),
    (CONTAINERD, "version = ['2']\ndisabled_plugins = 1\n", "has version ['2']; known are 2 and 3", ()),
    (CONTAINERD, "version = 2\nplugins = 1\n", "config.toml: plugins is no table", ()),
    ("/etc/containers/containers.conf.d/99-x.conf", '[engine.runtimes]\nkata = ["/x"]\n',
     "99-x.conf:2 has a runtime kata already, and is read later than", ()),
    ("/etc/crio/crio.conf.d/99-x.conf", '[crio.runtime]\ndefault_runtime = "x"\n', "99-x.conf:2 sets the default",
     ("--default",)),
    (CRIO, "crio = [", "60-kata.conf:", ()),
])
def test_wrong_files(host: Path, path: str, text: str, error: str, words: tuple[str, ...]) -> None:
    name = next(n for n in ENGINES if n in path or (n == "podman" and "containers" in path))
    put(host, path, text)
    before = snapshot(host)
    assert error in engine(host, "install", name, *words, code=1)
    assert snapshot(host) == before


@pytest.mark.parametrize("name", ENGINES)
def test_a_file_that_has_no_end(host: Path, name: str) -> None:
    """Nor is one read that nobody could have written by hand, or a FIFO waited for."""
    place = put(host, f"/x/{TARGETS[name].rpartition('/')[2]}", "x" * (2 << 20))
    assert f"{place} is larger than 1 MiB: leave the engine out" in engine(
        host, "status", name, "--file", f"/x/{place.name}")
    place.unlink()
    os.mkfifo(place)
    assert f"cannot read {place}: it is not a regular file: leave" in engine(
        host, "status", name, "--file", f"/x/{place.name}")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main(["engine", "status", name, "--file", "/dev/zero"]) == 0
    assert "cannot read /dev/zero: it is not a regular file" in said.getvalue()


def test_a_file_with_a_process_id_that_has_no_end(host: Path) -> None:
    assert reload.running_docker(str(host), pidfile="/dev/zero") == (0, "")


def test_the_roadmap_knows_who_asks_for_a_flavor(host: Path) -> None:
    put(host, DOCKER, '{"runtimes":\n{"old": {"path": "/usr/bin/cc-runtime"}}}')
    put(host, CRIO, "crio = 1\n")
    engine(host, "install", "containerd", "--flavor", "runv")
    found, problems = roadmap.engine_entries("", str(host))
    assert found == {"clear": [f"{host}{DOCKER}:2"], "runv": [f"{host}{CONTAINERD}:9"]}
    assert problems == [f"{host}{CRIO}: crio is no table"]
    assert "not installed" not in (said := engine(host, "status")) and problems[0] in said and "kata-runv" in said


def test_wrong_wishes(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "there is no program kata-x" in engine(host, "install", "docker", "--flavor", "x", code=1)
    host_file = put(host, "/host.toml", "[roadmap]\nphase = 3\n")
    monkeypatch.setenv("KATA_HOST_FILE", str(host_file))
    assert "flavor clear is retired" in engine(host, "install", "docker", "--flavor", "clear", code=1)
    engine(host, "install", "docker")
    assert [r["name"] for r in has(host, "docker")["runtimes"]] == ["kata", "kata-unified"]
    (host / "usr/bin/kata").unlink()
    assert has(host, "docker")["runtimes"][0]["problem"] == "its program is missing"


def test_an_engine_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    file = tmp_path / "x.conf"
    monkeypatch.setattr("kata.engines.program", lambda name, _sysroot: f"/usr/bin/{name}")
    for name in ENGINES:
        assert main(["engine", "install", name, "--file", str(file)]) == 1
        assert f"{name} is not installed: " in capsys.readouterr().err
    assert not file.exists()
    file.write_text('{"runtimes": {"kata": {"path": "/usr/bin/kata"}, "own": {"path": "/o"}}}')
    monkeypatch.setattr("kata.engines.setup.FOLDER", str(tmp_path / "changes"))
    assert main(["engine", "remove", "docker", "--file", str(file)]) == 0
    assert "not told, since it is not installed" in capsys.readouterr().out
    assert file.read_text() == '{"runtimes": {"own": {"path": "/o"}}}'


def test_a_refused_reload_takes_all_back(host: Path, monkeypatch: pytest.MonkeyPatch,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    from kata.engines import reload, setup
    from kata.errors import HostError

    told: list[str] = []

    def refuses(_sysroot: str, path: str, _pidfile: str) -> str:
        told.append(Path(path).read_text())
        raise HostError("dockerd did not say within 20 s that it reloaded", "its log says what it does not like")

    monkeypatch.setattr(reload, "docker", refuses)
    monkeypatch.setattr(reload, "check_docker", lambda *_: None)
    monkeypatch.setattr(setup, "_ready", lambda _: None)
    monkeypatch.setattr(setup, "FOLDER", str(host / "changes"))
    monkeypatch.setattr("kata.engines.program", lambda name, _sysroot: f"/usr/bin/{name}")
    file = put(host, "/daemon.json", '{"debug": true}')
    assert main(["engine", "install", "docker", "--file", str(file)]) == 1
    shown = capsys.readouterr()
    assert f"reloaded; {file} is what it was: its log" in shown.err and "docker has its old file" in shown.out
    assert file.read_text() == '{"debug": true}' == told[1] and "kata-runv" in told[0]
    assert not list((host / "changes").glob("engine*"))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_a_full_disk_leaves_the_original(host: Path) -> None:
    """A file system with one page left, then with room."""
    (host / "etc").mkdir()
    script = f"mount -t tmpfs -o size=32k,mode=755 tmpfs {host}/etc && exec {sys.executable} -S - <<'END'\n" + f"""
import os, sys
sys.path[:0] = {sys.path!r}
from kata.cli import main
os.chdir({str(host)!r})
os.mkdir("etc/docker")
with open("etc/docker/daemon.json", "w") as f:
    f.write("{{}}")
with open("etc/filler", "wb", buffering=0) as f:
    try:
        while f.write(bytes(4096)):
            pass
    except OSError:
        pass
words = ["engine", "install", "docker", "--sysroot", os.getcwd()]
assert main(words) == 1
assert open("etc/docker/daemon.json").read() == "{{}}" and os.listdir("etc/docker") == ["daemon.json"]
os.unlink("etc/filler")
assert main(words) == 0
"""
    done = subprocess.run(["unshare", "-m", "sh", "-c", script + "END\n"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "No space left on device" in done.stderr, done.stderr


KEYS = st.sampled_from(["debug", "runtimes", "hosts", "default-runtime", "größe", "a b"])
LEAVES = st.booleans() | st.integers() | st.text(max_size=4)


def _valid(found: dict[str, Any]) -> dict[str, Any]:
    """As docker takes it."""
    if "runtimes" in found:
        found["runtimes"] = {"own": {"path": str(found["runtimes"])}}
    if "default-runtime" in found:
        found["default-runtime"] = "own"
    return found


@given(st.dictionaries(KEYS, LEAVES | st.dictionaries(KEYS, LEAVES, max_size=2), max_size=4).map(_valid),
       st.sampled_from([None, 2, "\t"]), st.sampled_from(["", "\n", " \n"]), st.booleans())
def test_docker_there_and_back(data: dict[str, Any], indent: Any, end: str, default: bool) -> None:
    text = json.dumps(data, indent=indent, ensure_ascii=False) + end
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        file = put(make(Path(folder)), DOCKER, text)
        wish = Wish("docker", default=default, sysroot=folder)
        install(wish, lambda _: None)
        made = json.loads(file.read_text())
        own = data.get("runtimes", {})
        assert made == {**data, "runtimes": {**own, **{n: {"path": f"/usr/bin/{n}"} for n in NAMES}},
                        **({"default-runtime": "kata"} if default else {})}
        # By the text alone, as if somebody had changed the file since.
        [read] = files(folder, ["docker"])
        assert json.loads(read.removed(NAMES, data.get("default-runtime", ""))) == data
        remove(wish, lambda _: None)
        assert file.read_text() == text
