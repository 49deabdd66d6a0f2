"""Each flavor speaks as its original did (the table of what they answered when they were run), or better."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import threading
from pathlib import Path
from unittest import mock

import pytest

from kata import OCI_VERSION, __version__, flavors, state
from kata.build import COMMIT
from kata.cli import main, merged
from kata.config import hostfile
from kata.errors import HostError

PROGRAMS = {"kata-runtime": "unified", "cc-runtime": "clear", "runv": "runv"}
KATA_VERSION = f"{{program}}  : {__version__}\n   commit   : {COMMIT}\n   OCI specs: {OCI_VERSION}\n"
LIST_HEAD = "ID          PID         STATUS      BUNDLE      CREATED     OWNER\n"

#: words -> program -> (exit code, the first words of its output and errors)
ANSWERS: dict[str, dict[str, tuple[int, str]]] = {
    "--version": {
        "kata-runtime": (0, KATA_VERSION.format(program="kata-runtime")),
        "cc-runtime": (0, KATA_VERSION.format(program="cc-runtime")),
        "runv": (0, f"runv version {__version__}\ncommit: {COMMIT}\nspec: {OCI_VERSION}\n"),
    },
    "version": {"cc-runtime": (0, "cc-runtime  : "), "runv": (3, "No help topic for 'version'")},
    "state nosuch": {
        "kata-runtime": (1, "kata-runtime: Container ID (nosuch) does not exist\n"),
        "cc-runtime": (1, "Container ID (nosuch) does not exist\n"),
        "runv": (1, "State file of nosuch not found\n"),
    },
    "kill nosuch KILL": {"cc-runtime": (1, "Container ID (nosuch) does not exist\n"),
                         "runv": (255, "kill signal failed, ")},
    "start nosuch": {"cc-runtime": (1, "Container ID (nosuch) does not exist\n"),
                     "runv": (255, "open /run/runv/nosuch/state.json: no such file or directory\n")},
    "delete nosuch": {"kata-runtime": (1, "kata-runtime: Container ID (nosuch) does not exist\n"),
                      "cc-runtime": (1, "Container ID (nosuch) does not exist\n"),
                      "runv": (255, "open /run/runv/nosuch/state.json: no such file or directory\n")},
    "delete --force nosuch": {"kata-runtime": (0, ""), "cc-runtime": (1, "Container ID (nosuch) does not exist\n"),
                              "runv": (0, "")},
    "pause nosuch": {"cc-runtime": (1, "Container ID (nosuch) does not exist\n"),
                     "runv": (255, "can't get process list, open /run/runv/nosuch/process.json: no such file")},
    "exec nosuch true": {"kata-runtime": (255, "kata-runtime: Container ID (nosuch) does not exist\n"),
                         "cc-runtime": (1, "Container ID (nosuch) does not exist\n"),
                         "runv": (255, "exec command failed: container nosuch does not exist\n")},
    "exec --bogus nosuch true": {"kata-runtime": (1, "kata-runtime: No such option"),
                                 "cc-runtime": (1, "No such option")},
    "exec": {"kata-runtime": (1, "kata-runtime: Missing container ID")},
    "events nosuch": {"cc-runtime": (1, 'Invalid command "events"'), "runv": (3, "No help topic for 'events'")},
    "update nosuch": {"cc-runtime": (1, 'Invalid command "update"'), "runv": (3, "No help topic for 'update'")},
    "bogus": {"kata-runtime": (1, 'kata-runtime: Invalid command "bogus"'),
              "cc-runtime": (1, 'Invalid command "bogus"'), "runv": (3, "No help topic for 'bogus'")},
    "checkpoint x": {"cc-runtime": (1, 'Invalid command "checkpoint"'),
                     "runv": (3, "No help topic for 'checkpoint'")},
    "list": dict.fromkeys(PROGRAMS, (0, LIST_HEAD)),
    "list -q": dict.fromkeys(PROGRAMS, (0, "")),
    "list --format json": dict.fromkeys(PROGRAMS, (0, "null\n")),
    "list --cc-all": {"cc-runtime": (0, "ID          PID")},
    "create --bundle /nonexistent x1": {
        "cc-runtime": (1, "Invalid bundle path "), "runv": (255, "Run Container error: Invalid bundle path ")},
    "create --bundle /": {"cc-runtime": (1, "Missing container ID\n"),
                          "runv": (255, "Run Container error: no container id provided\n")},
}


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever runs on this host meanwhile."""
    monkeypatch.setattr(state, "RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setattr(state, "DEFAULT_ROOT", str(tmp_path / "run/containers"))


def answer(program: str, words: list[str], home: Path, **environ: str) -> tuple[int, str]:
    """Exit code and all that is printed when the program of that name is called."""
    said = io.StringIO()
    variables = {"PATH": "/usr/bin:/bin", "KATA_HOST_FILE": str(home / "host.toml"), **environ}
    with (mock.patch.object(sys, "argv", [program, *words]), mock.patch.dict(os.environ, variables, clear=True),
          contextlib.redirect_stdout(said), contextlib.redirect_stderr(said)):
        return main(), said.getvalue()


@pytest.mark.parametrize("words", ANSWERS)
def test_answers(words: str, tmp_path: Path) -> None:
    for program, (code, text) in ANSWERS[words].items():
        options = ["--root", str(tmp_path), *(["--log_dir", str(tmp_path / "log")] if program == "runv" else [])]
        got = answer(program, [*options, *words.split()], tmp_path)
        assert got[0] == code and got[1].startswith(text), (program, got)
        assert "Traceback" not in got[1]


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A root with a stopped container ``c`` of the unified flavor."""
    (tmp_path / "c").mkdir()
    state.write_json(f"{tmp_path}/c/state.json", {
        "version": state.VERSION, "ociVersion": "1.2.0", "id": "c", "status": "stopped", "pid": 0, "pid_start": 0,
        "bundle": "/b", "annotations": {"a": "1"}, "rootfs": "/b/rootfs", "created": "2026-01-01T00:00:00Z",
        "owner": "#0", "creator": 0, "creator_start": 0, "flavor": "unified", "backend": "", "sandbox_id": "c",
        "sandbox_key": "s", "role": "single", "cgroup": "", "terminal": False, "hooks": {}, "exit_status": 0})
    return tmp_path


def test_shapes_of_state_and_list(stopped: Path) -> None:
    """The same container as each of them prints it."""
    shapes = {
        "cc-runtime": ["ociVersion", "id", "status", "pid", "bundle", "annotations"],
        "runv": ["ociVersion", "id", "pid", "bundlePath", "rootfsPath", "status", "created", "owner", "bundle",
                 "rootfs", "annotations"],
        "kata-runtime": ["ociVersion", "id", "status", "pid", "bundle", "rootfs", "created", "annotations", "owner"],
    }
    for program, keys in shapes.items():
        options = ["--root", str(stopped)] + (["--log_dir", str(stopped / "log")] if program == "runv" else [])
        code, text = answer(program, [*options, "state", "c"], stopped)
        assert code == 0 and list(json.loads(text)) == keys, (program, text)
        assert json.loads(text)["status"] == "stopped"
        code, text = answer(program, [*options, "list"], stopped)
        assert code == 0 and text.splitlines()[1].split()[-1] == ("root" if program == "runv" else "#0")
        code, text = answer(program, [*options, "list", "--format", "json"], stopped)
        assert [e["id"] for e in json.loads(text)] == ["c"]


def test_errors_of_a_stopped_container(stopped: Path) -> None:
    expected = {
        "kill c BOGUS": {"cc-runtime": (1, "Signal BOGUS is not supported"), "runv": (255, 'unknown signal "BOGUS"')},
        "kill c 0": {"kata-runtime": (1, "kata-runtime: container not running")},
        "kill c 65": {"kata-runtime": (1, "kata-runtime: Signal 65 is not supported")},
        "kill --all c 0": {"kata-runtime": (0, "")},
        "ps c": {"kata-runtime": (0, "UID PID PPID C STIME TTY TIME CMD\n"),
                 "cc-runtime": (1, "container not running")},
        "ps --format json c": {"kata-runtime": (0, "null\n"), "runv": (255, "container not running")},
        "ps c -o pid": {"kata-runtime": (0, "\n")},
        "exec c": {"kata-runtime": (255, "kata-runtime: Container c is not ready or running: it is stopped")},
        "exec c true": {"cc-runtime": (1, "Container c is not running"), "runv": (255, "exec command failed: ")},
        "create --bundle BUNDLE c": {"cc-runtime": (1, "ID already in use, unique ID should be provided"),
                                     "runv": (255, 'Run Container error: container "c" exists')},
    }
    bundle = write_bundle(stopped)
    for words, answers in expected.items():
        for program, (code, text) in answers.items():
            got = answer(program, ["--root", str(stopped), *words.replace("BUNDLE", bundle).split()], stopped)
            assert got[0] == code and got[1].startswith(text), (program, got)


def write_bundle(folder: Path) -> str:
    bundle = folder / "bundle"
    (bundle / "rootfs").mkdir(parents=True)
    (bundle / "config.json").write_text(json.dumps({
        "ociVersion": "1.0.2", "root": {"path": "rootfs"}, "process": {"args": ["true"], "cwd": "/",
                                                                       "user": {"uid": 0, "gid": 0}},
        "linux": {"namespaces": [{"type": "network"}, {"type": "mount"}]}}))
    return str(bundle)


def test_flavor_by_option_speaks_the_same(tmp_path: Path) -> None:
    for flavor, text in (("clear", "Container ID (x) does not exist\n"), ("runv", "State file of x not found\n")):
        assert answer("kata", ["--flavor", flavor, "--root", str(tmp_path), "state", "x"], tmp_path) == (1, text)
        assert answer("kata", [f"--flavor={flavor}", "--root", str(tmp_path), "state", "x"], tmp_path)[1] == text
        assert answer("kata", ["--root", str(tmp_path), "state", "x"], tmp_path, KATA_FLAVOR=flavor)[1] == text
    code, text = answer("runv", ["--flavor", "clear", "state", "x"], tmp_path)
    assert code == 1 and "ask for different flavors" in text


@pytest.mark.parametrize(("program", "flavor", "says"), [
    ("cc-runtime", "runv", "ask for different flavors"), ("kata", "clar", "did you mean 'clear'?"),
])
def test_an_engine_finds_what_kept_the_flavor(tmp_path: Path, program: str, flavor: str, says: str) -> None:
    """As docker calls a runtime, its own arguments first; it shows what the log says."""
    log = tmp_path / "log.json"
    words = ["--flavor", flavor, "--root", str(tmp_path), "--log", str(log), "--log-format", "json", "create", "x"]
    code, text = answer(program, words, tmp_path)
    line = json.loads(log.read_text())
    assert code == 1 and line["level"] == "error" and says in line["msg"] and says in text
    code, text = answer("kata", ["--flavor", "claer", "state", "x"], tmp_path)
    assert code == 1 and "unknown flavor 'claer'" in text and "'clear'" in text


def test_logs(tmp_path: Path) -> None:
    """logrus with the command for Clear, glog for runV, JSON where an engine asks for it."""
    log = tmp_path / "log"
    answer("cc-runtime", ["--root", str(tmp_path), "--log", str(log), "state", "x"], tmp_path)
    assert 'level=error msg="Container ID (x) does not exist" name=cc-runtime' in log.read_text()
    assert log.read_text().endswith(" source=runtime command=state\n")
    answer("runv", ["--root", str(tmp_path), "--log_dir", str(tmp_path / "hyper"), "state", "x"], tmp_path)
    line = (tmp_path / "hyper" / "runv.log").read_text()
    assert line[0] == "E" and line.endswith("state] Container ID (x) does not exist\n")
    answer("runv", ["--root", str(tmp_path), "--log", str(tmp_path / "j"), "--log-format", "json", "state", "x"],
           tmp_path)
    assert json.loads((tmp_path / "j").read_text())["level"] == "error"


# --- the host's default and the road ------------------------------------------------------


def test_default_flavor_of_the_host(tmp_path: Path) -> None:
    host = tmp_path / "host.toml"
    host.write_text("# ours\n[runtime]\n# why\ndefault_flavor = \"clear\"  # for now\n")
    assert answer("kata", ["state", "x"], tmp_path)[1] == "Container ID (x) does not exist\n"
    code, text = answer("kata", ["flavor", "set", "runv"], tmp_path)
    assert code == 0 and "runv is the default" in text
    assert host.read_text() == "# ours\n[runtime]\n# why\ndefault_flavor = \"runv\"  # for now\n"
    code, text = answer("kata", ["flavor", "set", "nosuch"], tmp_path)
    assert code != 0 and "unknown flavor 'nosuch'" in text and "runv" in host.read_text()
    code, text = answer("kata", ["--flavor", "unified", "flavor", "--json"], tmp_path)
    assert json.loads(text)["default"] == "runv"


def test_a_broken_default_can_be_mended(tmp_path: Path) -> None:
    host = tmp_path / "host.toml"
    host.write_text("[runtime]\ndefault_flavor = \"gone\"\n")
    assert answer("kata", ["state", "x"], tmp_path) == (1, "kata: Container ID (x) does not exist\n")
    assert answer("kata", ["flavor", "set", "unified"], tmp_path)[0] == 0


def test_who_reads_the_hosts_file_meanwhile_sees_a_whole_one(tmp_path: Path) -> None:
    path = str(tmp_path / "host.toml")
    done = threading.Event()

    def write() -> None:
        try:
            for name in ("clear", "runv", "unified") * 4:
                hostfile.write(path, {("runtime", "default_flavor"): name})
        finally:
            done.set()

    hostfile.write(path, {("runtime", "default_flavor"): "clear"})
    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        assert flavors.host(path).default_flavor in ("clear", "runv", "unified")
    writer.join()
    assert [p.name for p in tmp_path.glob("host*")] == ["host.toml"]


def test_a_file_that_cannot_be_replaced_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "host.toml"
    with mock.patch("os.fsync", side_effect=OSError(28, "No space left on device")), \
            pytest.raises(HostError, match=r"cannot write .*No space left"):
        hostfile.write(str(path), {("runtime", "default_flavor"): "clear"})
    assert os.listdir(tmp_path) == []


def test_states_that_are_newer_or_of_a_flavor_that_is_gone(stopped: Path) -> None:
    """One is refused with its version, the other is driven; the rest notices neither."""
    record = json.loads((stopped / "c/state.json").read_text())
    other: dict[str, dict[str, object]] = {
        "newer": {"version": 99}, "old": {"flavor": "gone", "backend": "kata_gone:Gone"}}
    for id, changes in other.items():
        (stopped / id).mkdir()
        state.write_json(f"{stopped}/{id}/state.json", {**record, "id": id, **changes})

    def ask(*words: str) -> tuple[int, str]:
        return answer("kata", ["--root", str(stopped), *words], stopped)

    for verb in ("state", "start", "kill", "delete"):
        code, text = ask(verb, "newer")
        assert code == 1 and "version 99" in text and "Traceback" not in text, text
    assert ask("state", "c")[0] == 0 and ask("state", "old")[0] == 0
    text = ask("list")[1]
    assert "version 99" in text and {line.split()[0] for line in text.splitlines()} >= {"c", "old"}
    text = ask("flavor")[1]
    assert "version 99" in text and re.search(r"^gone +not installed +old$", text, re.MULTILINE), text


def test_a_broken_host_file_keeps_nobody_from_driving(stopped: Path) -> None:
    """What runs is driven to its end; what needs the file names its line."""
    (stopped / "host.toml").write_text("[runtime]\ndefault_flavour = 1\n")
    assert answer("kata", ["--root", str(stopped), "state", "c"], stopped)[0] == 0
    bundle = write_bundle(stopped)
    for words in (["--root", str(stopped), "create", "--bundle", bundle, "x"], ["flavor"], ["roadmap"]):
        code, text = answer("kata", words, stopped)
        assert code == 1 and "host.toml:2" in text and "default_flavor" in text, text


def test_phases(tmp_path: Path) -> None:
    """On, and back: what is refused, what is the default, what is said."""
    host = tmp_path / "host.toml"
    assert answer("kata", ["flavor", "set", "clear"], tmp_path)[0] == 0
    assert answer("kata", ["--flavor", "unified", "roadmap", "set", "merged"], tmp_path)[0] == 0
    assert 'default_flavor = "unified"' in host.read_text() and "phase = 2" in host.read_text()
    assert answer("kata", ["roadmap", "set", "3"], tmp_path)[0] == 0
    bundle = write_bundle(tmp_path)
    for program, code in (("cc-runtime", 1), ("runv", 255)):
        options = ["--root", str(tmp_path / "r")]
        got = answer(program, [*options, "create", "--bundle", bundle, "x"], tmp_path)
        assert got[0] == code and "is retired on this host (roadmap phase 3)" in got[1], got
        assert "does not exist" in answer(program, [*options, "delete", "x"], tmp_path)[1] or program == "runv"
    code, text = answer("kata", ["flavor", "set", "runv"], tmp_path)
    assert code == 1 and "is retired" in text
    assert answer("kata", ["roadmap", "set", "1"], tmp_path)[0] == 0
    assert answer("kata", ["flavor", "set", "runv"], tmp_path)[0] == 0
    code, text = answer("kata", ["--flavor", "unified", "roadmap", "set", "4"], tmp_path)
    assert code == 1 and "there is no phase '4'" in text


def test_what_would_be_different_in_unified() -> None:
    now = {"sandbox": {"machine": {"machine_type": "pc", "vcpus": 1, "memory": 128, "image": ""}, "boot": "cold",
                       "network_model": "mirred"}, "container": {"guest_process_at": "start", "pause_scope": "vm"}}
    later = {"sandbox": {"machine": {"machine_type": "q35", "vcpus": 1, "memory": 2048, "image": ""},
                         "boot": "template", "network_model": "mirred"},
             "container": {"guest_process_at": "create", "pause_scope": "container"}}
    assert merged.differences(now, later) == [
        "machine q35 instead of pc", "memory in MiB 2048 instead of 128", "boot template instead of cold",
        "process made at create instead of start", "pause of container instead of vm"]
    assert merged.differences(now, now) == []
