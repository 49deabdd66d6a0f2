"""Records on disk: atomic, versioned, honest about dead processes."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from kata import state
from kata.errors import InUse, NotFound, StateError, UsageError


@pytest.fixture(autouse=True)
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(state, "RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setattr(state, "DEFAULT_ROOT", str(tmp_path / "run/containers"))
    return tmp_path


def record(**changes: object) -> dict[str, object]:
    me = os.getpid()
    return {"status": "running", "pid": me, "pid_start": state.start_time(me), "creator": me,
            "creator_start": state.start_time(me), **changes}


def test_an_id_is_taken_once(run_dir: Path) -> None:
    root = str(run_dir / "root")
    state.new_container(root, "c1", record())
    with pytest.raises(InUse, match="already in use"):
        state.new_container(root, "c1", record())
    assert state.load_container(root, "c1").status() == "running"


@pytest.mark.parametrize("bad", ["", ".", "..", "a/b", "-x", "a b", "a\n", "x" * 256, ".hidden"])
def test_ids_that_cannot_be_file_names_are_refused(bad: str) -> None:
    with pytest.raises(UsageError):
        state.check_id(bad)


@pytest.mark.parametrize("status", ["created", "running", "paused"])
def test_a_dead_shim_means_stopped(run_dir: Path, status: str) -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    container = state.new_container(str(run_dir / "r"), "c", record(status=status, pid=child.pid, pid_start=12345))
    assert container.status() == "stopped"
    assert container.view()["pid"] == 0


def test_a_reused_pid_is_not_the_shim(run_dir: Path) -> None:
    container = state.new_container(str(run_dir / "r"), "c", record(pid_start=state.start_time(os.getpid()) + 1))
    assert container.status() == "stopped"


def test_creating_ends_with_its_creator(run_dir: Path) -> None:
    alive = state.new_container(str(run_dir / "r"), "a", record(status="creating", pid=0, pid_start=0))
    dead = state.new_container(str(run_dir / "r"), "d", record(status="creating", pid=0, pid_start=0, creator_start=1))
    assert (alive.status(), dead.status()) == ("creating", "stopped")


def test_an_unknown_version_is_refused_and_hides_no_other(run_dir: Path) -> None:
    root = str(run_dir / "r")
    state.new_container(root, "good", record())
    bad = state.new_container(root, "newer", record())
    Path(bad.dir, "state.json").write_text(json.dumps({**bad.record, "version": 99}))
    with pytest.raises(StateError, match="version 99"):
        state.load_container(root, "newer")
    found = dict(state.list_containers(root))
    assert isinstance(found["newer"], StateError)
    assert not isinstance(found["good"], StateError)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"version": 1', '{"id": "x"}'])
def test_a_damaged_record_is_named(run_dir: Path, text: str) -> None:
    root = str(run_dir / "r")
    container = state.new_container(root, "c", record())
    Path(container.dir, "state.json").write_text(text)
    with pytest.raises(StateError, match="damaged"):
        state.load_container(root, "c")


def test_a_reader_sees_a_whole_record_whenever_the_writer_dies(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    container = state.new_container(str(run_dir / "r"), "c", record())

    def killed(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        container.update(status="stopped")
    assert state.load_container(str(run_dir / "r"), "c").record["status"] == "running"


def test_a_root_that_is_not_named_is_searched(run_dir: Path) -> None:
    state.new_container(str(run_dir / "elsewhere"), "c", record())
    assert state.load_container("", "c").root == str(run_dir / "elsewhere")
    state.new_container(str(run_dir / "other"), "c", record())
    with pytest.raises(StateError, match="several roots"):
        state.load_container("", "c")
    with pytest.raises(NotFound, match=r"Container ID \(none\) does not exist"):
        state.load_container("", "none")


def test_socket_paths_stay_short() -> None:
    key = state.sandbox_key("/var/run/docker/runtime-kata/moby" * 5, "f" * 64)
    assert len(f"/run/kata/sandboxes/{key}/channel.sock") < 100
