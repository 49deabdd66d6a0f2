"""What verbs do where a container, a file or a word is not what it should be, without any machine."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kata import state
from kata.cli import main, update
from kata.cli import run as run_verb
from kata.daemons import SHIM, write_pid_file
from kata.errors import BundleError, HostError, NotFound, WrongState


@pytest.fixture(autouse=True)
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "RUN_DIR", str(tmp_path / "run"))


def running(folder: Path, **changes: Any) -> state.Container:
    """The record of a container ``c`` in ``folder/root``; its shim is this process."""
    texts = ("ociVersion", "id", "bundle", "rootfs", "created", "owner", "flavor", "backend", "role", "sandbox_id",
             "sandbox_key", "cgroup")
    me = os.getpid()
    return state.new_container(f"{folder}/root", "c", {
        **dict.fromkeys(texts, ""), "annotations": {}, "hooks": {}, "creator": 0, "creator_start": 0,
        "status": "running", "pid": me, "pid_start": state.start_time(me), **changes})


@pytest.mark.parametrize("words", [
    ["exec", "--preserve-fds=--5", "c", "x"], ["exec", "--preserve-fds", "²", "c", "x"], ["kill", "c", "²"],
    ["kill", "c", "RTMIN+²"], ["exec", "-u", "²", "c", "x"], ["exec", "-u", "1:²", "c", "x"],
    ["exec", "-g", "²", "c", "x"], ["roadmap", "set", "²"]])
def test_what_is_no_number_is_no_defect(words: list[str], tmp_path: Path) -> None:
    container = running(tmp_path)
    state.write_json(f"{container.dir}/process.json", {"version": state.VERSION, "process": {}, "extras": {}})
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main(["--root", f"{tmp_path}/root", *words])
    assert code == (255 if words[0] == "exec" and words[1] in ("-u", "-g") else 1)
    assert "internal error" not in said.getvalue()


def test_signal_zero_only_looks(tmp_path: Path) -> None:
    """Nobody is asked: there is no proxy."""
    running(tmp_path)
    assert main(["--root", f"{tmp_path}/root", "kill", "c", "0"]) == 0


@pytest.mark.parametrize("text", [None, '{"version": 1}', "{", '{"version": 1, "process": 7, "resources": 7}'])
@pytest.mark.parametrize("words", [["exec", "c", "true"], ["update", "--pids-limit", "9", "c"]])
def test_a_record_without_its_process_is_damaged(words: list[str], text: str | None, tmp_path: Path) -> None:
    container = running(tmp_path)
    if text is not None:
        Path(container.dir, "process.json").write_text(text)
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        assert main(["--root", f"{tmp_path}/root", *words]) != 0
    assert f"the state file {container.dir}/process.json is damaged" in said.getvalue()


@pytest.mark.parametrize("end", [{"ooms": 1, "ended": True}, NotFound("c"), WrongState("c")])
def test_events_are_what_happens_from_now_on(end: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    """A container that ran out of memory before; a proxy that is restarted counts anew; the end is no error."""
    running(tmp_path)
    counts = iter([2, 3, 3, 0, 1, end])

    def ask(_context: object, _container: object, op: str, **_words: Any) -> Any:
        answer = {} if op == "stats" else next(counts)
        if isinstance(answer, Exception):
            raise answer
        return {"ooms": answer, "ended": False} if isinstance(answer, int) else answer

    monkeypatch.setattr("kata.cli.context.Context.ask", ask)
    assert main(["--root", f"{tmp_path}/root", "events", "c"]) == 0
    assert [json.loads(line)["type"] for line in capsys.readouterr().out.splitlines()] == [
        "oom", "stats", "stats", "oom"]


def test_a_pid_file_is_whole_or_absent_and_no_link_is_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (tmp_path / f".pid.{os.getpid()}").symlink_to(secret)
    write_pid_file(f"{tmp_path}/pid", 7)
    assert (tmp_path / "pid").read_text() == "7" and not (tmp_path / "pid").is_symlink()
    assert secret.read_text() == "secret"
    (tmp_path / "folder").mkdir()
    with pytest.raises(HostError, match=r"cannot write the pid file .*folder: Is a directory"):
        write_pid_file(f"{tmp_path}/folder", 7)
    assert sorted(os.listdir(tmp_path)) == ["folder", "pid", "secret"]


def test_a_container_that_somebody_else_deletes_still_ends_with_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    class Deleted:
        log = SimpleNamespace(phase=lambda _name: None)

        def container(self, name: str) -> Any:
            raise NotFound(name)

        def collect_phases(self, _container: Any) -> None:
            pass

    pid = os.fork()
    if pid == 0:
        os._exit(42)
    made = SimpleNamespace(id="c", record={"pid": pid, "terminal": False})
    monkeypatch.setattr(run_verb, "create", lambda *_args, **_named: made)
    monkeypatch.setattr(run_verb, "start", lambda *_args: None)
    args = {"detach": False, "console_socket": "", "console": "", "keep": False}
    assert run_verb.run(Deleted(), args) == 42  # type: ignore[arg-type]


@pytest.mark.parametrize("refuses", ["", "host", "guest"])
def test_an_update_holds_on_the_host_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: str) -> None:
    """What names the host's processors and disks, or weighs a container against others; if the guest refuses, it is
    as before."""
    asked, applied = [], []
    container = running(tmp_path, cgroup="/g")
    old = {"cpu": {"shares": 100, "quota": 7}}
    state.write_json(f"{container.dir}/process.json",
                     {"version": state.VERSION, "process": {}, "extras": {}, "resources": old})

    def apply(path: str, resources: dict[str, Any]) -> list[str]:
        applied.append((path, resources))
        if refuses == "host":
            raise HostError("cannot set cpuset.cpus")
        return ["blkio.weight: the host's kernel does not have it"]

    def ask(_context: object, _container: object, op: str, **words: Any) -> None:
        asked.append((op, words["resources"]))
        if refuses == "guest":
            raise HostError("the guest refuses")

    monkeypatch.setattr("kata.cgroups.apply", apply)
    monkeypatch.setattr("kata.cli.context.Context.ask", ask)
    monkeypatch.setattr(update, "_size", lambda *_: None)
    log, change = tmp_path / "log", {"cpu": {"shares": 256, "cpus": "0"}}
    words = ["--root", f"{tmp_path}/root", "--log", str(log), "update", "--cpu-share", "256", "--cpuset-cpus", "0", "c"]
    assert main(words) == bool(refuses)
    assert applied == [("/g", change)] + ([("/g", old)] if refuses == "guest" else [])
    assert asked == ([] if refuses == "host" else [("update", change)])
    assert ("blkio.weight: the host" in log.read_text()) == (refuses != "host")
    now = state.read_json(f"{container.dir}/process.json")["resources"]
    assert now == (old if refuses else {"cpu": {"shares": 256, "quota": 7, "cpus": "0"}})


@pytest.mark.parametrize(("option", "value"), [("--memory", str(1 << 70)), ("--cpu-quota", str(1 << 70)),
                                               ("--pids-limit", str(1 << 70)), ("--blkio-weight", "1001"),
                                               ("--memory", "-2"), ("--cpu-share", "-1")])
def test_an_update_by_options_is_checked_as_one_by_a_file(option: str, value: str) -> None:
    args = {name.lstrip("-").replace("-", "_"): "" for name in ("--resources", *map("--{}".format, (
        *update.FIELDS, *update.TEXTS)))}
    with pytest.raises(BundleError, match=r"update: \w+\.\w+: a number from .* is expected"):
        update._change({**args, option.lstrip("-").replace("-", "_"): value})


@pytest.mark.parametrize(("socket", "console", "says"), [
    ("", "/nowhere", b"kata: cannot use the terminal /nowhere: "), ("", "/dev/null", b"kata: cannot use the terminal "),
    ("99", "", b"")])
def test_a_shim_without_its_terminal_says_so(socket: str, console: str, says: bytes) -> None:
    argv = [sys.executable, "-IS", SHIM, "/nowhere", "c", "c", "1", socket, console, "-", "true"]
    done = subprocess.run(argv, capture_output=True, stdin=subprocess.DEVNULL, timeout=60, check=False)
    assert done.returncode == 255 and done.stderr.startswith(says) and b"Traceback" not in done.stderr
