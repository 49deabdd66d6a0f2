"""Records on disk: atomic, versioned, honest about dead processes."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from kata import revive, state, teardown
from kata.cli import cleanup, main
from kata.errors import HostError, InUse, NotFound, StateError, UsageError


@pytest.fixture(autouse=True)
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(state, "RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setattr(state, "DEFAULT_ROOT", str(tmp_path / "run/containers"))
    monkeypatch.setattr(cleanup, "_folders", lambda _context: [])  # the host's own pool and templates
    return tmp_path


def record(**changes: object) -> dict[str, object]:
    me = os.getpid()
    return {**dict.fromkeys(("ociVersion", "id", "bundle", "rootfs", "created", "owner", "flavor", "backend", "role",
                             "sandbox_id", "cgroup"), ""),
            "sandbox_key": "key", "annotations": {}, "hooks": {"poststart": [], "poststop": []},
            "status": "running", "pid": me, "pid_start": state.start_time(me), "creator": me,
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


def test_a_process_is_ended_by_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number may have become another process's since it was looked at."""
    def kill(_pid: int, _number: int) -> None:
        raise AssertionError("by its number")

    child = subprocess.Popen(["sleep", "100"])
    started = state.start_time(child.pid)
    monkeypatch.setattr(os, "kill", kill)
    teardown.end_process(child.pid, started + 1)  # another one
    assert child.poll() is None
    teardown.end_process(child.pid, started)
    assert state.start_time(child.pid) == 0
    teardown.end_process(child.pid, started)


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
    code, said = verb(Path(root), "delete", "--force", "newer")
    assert code == 1 and "version 99" in said and Path(bad.dir, "state.json").exists()
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


CREATOR = """
import json, os, sys
from kata import revive, state
from kata.errors import InUse
state.RUN_DIR = sys.argv[1] + "/run"
for _ in sys.stdin:
    try:
        state.new_container(sys.argv[1] + "/root", "c", {**json.loads(sys.argv[2]), "winner": os.getpid()})
        print("won", flush=True)
    except InUse:
        print("lost", flush=True)
"""


def test_of_many_creators_one_wins(run_dir: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with ExitStack() as stack:
        creators = [stack.enter_context(subprocess.Popen(
            [sys.executable, "-S", "-c", CREATOR, str(run_dir), json.dumps(record(status="creating"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ, text=True)) for _ in range(6)]
        for _ in range(3):
            for creator in creators:
                assert creator.stdin is not None
                creator.stdin.write("go\n")
                creator.stdin.flush()
            said = {creator.pid: creator.stdout.readline().strip() for creator in creators if creator.stdout}
            assert sorted(said.values()) == ["lost"] * 5 + ["won"]
            container = state.load_container(str(run_dir / "root"), "c")
            assert said[container.record["winner"]] == "won"
            assert os.listdir(run_dir / "root") == ["c"], "nothing half-made is left"
            state.remove_container(container)
            assert os.listdir(run_dir / "root") == []


def test_an_empty_folder_takes_no_id_and_a_full_one_does(run_dir: Path) -> None:
    root = run_dir / "root"
    (root / "c").mkdir(parents=True)
    state.remove_container(state.new_container(str(root), "c", record()))
    (root / "c").mkdir()
    (root / "c/process.json").write_text("{}")
    with pytest.raises(InUse):
        state.new_container(str(root), "c", record())
    with pytest.raises(StateError, match="not in its folder"):
        state.load_container(str(root), "c")


def verb(root: Path, *words: str) -> tuple[int, str]:
    """Exit code of ``kata --root ROOT WORDS`` and all that it prints."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        return main(["--root", str(root), *words]), said.getvalue()


@pytest.mark.parametrize("name", ["../other", "..", ".", "/etc", "x/../../other", ""])
def test_no_id_leads_out_of_the_root(run_dir: Path, name: str) -> None:
    (run_dir / "other").mkdir()
    (run_dir / "other/file").touch()
    (run_dir / "root").mkdir()
    code, said = verb(run_dir / "root", "delete", "--force", name)
    assert code == 1 and ("invalid container ID" in said or "Missing container ID" in said)
    assert os.listdir(run_dir / "other") == ["file"] and os.listdir(run_dir / "root") == []


def test_containers_of_other_runtimes_are_left_alone(run_dir: Path) -> None:
    """docker's and containerd's root of runtimes is one folder, whoever makes the containers."""
    root = run_dir / "root"
    for name, file, text in (("runc", "state.json", '{"id": "runc", "init_process_pid": 7, "config": {}}'),
                             ("crun", "status", '{"pid": 7, "bundle": "/b"}')):
        (root / name).mkdir(parents=True)
        (root / name / file).write_text(text)
        for words in (["state"], ["kill"], ["delete"], ["delete", "--force"]):
            code, said = verb(root, *words, name)
            assert code == 1
            assert said.endswith(f": {root}/{name}/{file} is of another runtime: use the one that made the container: "
                                 "runc or crun\n")
        assert (root / name / file).read_text() == text
    assert verb(root, "list", "-q") == (0, "")
    state.new_container(str(root), "ours", record(status="stopped"))
    (root / "broken").mkdir()
    (root / "broken/state.json").write_text("{")
    assert [name for name, _found in state.list_containers(str(root))] == ["broken", "ours"]
    code, said = verb(root, "delete", "--force", "broken")
    assert code == 0 and "removed the damaged record" in said and not (root / "broken").exists()


def test_a_name_in_two_roots_is_not_removed_from_either(run_dir: Path) -> None:
    for root in ("one", "two"):
        state.new_container(str(run_dir / root), "c", record(status="stopped"))
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        assert main(["delete", "--force", "c"]) == 1
    assert "exists in several roots" in said.getvalue()
    assert (run_dir / "one/c").is_dir() and (run_dir / "two/c").is_dir()


@pytest.mark.parametrize(("name", "value"), [("status", None), ("sandbox_key", None), ("hooks", 7), ("pid", [1]),
                                             ("annotations", "x"), ("created", None)])
def test_a_record_that_lacks_something_hides_no_other_and_can_be_removed(run_dir: Path, name: str,
                                                                         value: object) -> None:
    root = run_dir / "root"
    for number in ("bad", "good"):
        state.new_container(str(root), number, record(id=number, status="stopped", pid=0, pid_start=0))
    whole = json.loads((root / "bad/state.json").read_text())
    del whole[name]
    (root / "bad/state.json").write_text(json.dumps(whole if value is None else whole | {name: value}))
    for words in (["state", "bad"], ["list", "-f", "json"], ["kill", "bad"], ["delete", "bad"], ["cleanup", "-n"]):
        _code, said = verb(root, *words)
        assert "internal error" not in said
        assert words[0] == "cleanup" or f"bad/state.json is damaged: {name}" in said
    assert verb(root, "list", "-q")[1].endswith("good\n")
    assert verb(root, "delete", "--force", "bad")[0] == 0 and not (root / "bad").exists()


def test_a_root_that_cannot_be_read_hides_no_other(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for root in ("bad", "good"):
        state.new_container(str(run_dir / root), root, record(id=root, status="stopped", pid=0, pid_start=0))
    (run_dir / "bad/dir/state.json").mkdir(parents=True)
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        assert main(["list", "-q"]) == 0
    assert "dir/state.json is damaged" in said.getvalue() and {"bad", "good"} <= set(said.getvalue().splitlines())
    assert verb(run_dir / "bad", "delete", "--force", "dir")[0] == 0 and not (run_dir / "bad/dir").exists()
    real = os.listdir

    def listdir(path: str) -> list[str]:
        if path == str(run_dir / "bad"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "listdir", listdir)
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        assert (main(["list", "-q"]), main(["cleanup", "-n"])) == (0, 0)
    assert f"cannot read {run_dir}/bad: Permission denied" in said.getvalue() and "good\n" in said.getvalue()
    for root in (run_dir / "bad", Path(f"/{'a' * 300}")):
        code, text = verb(root, "list")
        assert code == 1 and f"cannot read {root}: " in text and "internal error" not in text
        assert "internal error" not in verb(Path(f"/{'a' * 300}"), "state", "c")[1]


def sandbox(root: Path, *containers: str) -> Path:
    """The folder of a sandbox without processes, which the containers are recorded in."""
    folder = Path(state.sandbox_dir("key"))
    folder.mkdir(parents=True)
    entries = {c: {"root": str(root), "plan": {"flavor": "unified"}, "cgroup": f"/pod/{c}"} for c in containers}
    state.write_json(f"{folder}/sandbox.json", {"version": state.VERSION, "id": "c", "root": str(root),
                                                "containers": entries})
    return folder


def test_a_link_in_a_root_is_removed_and_not_what_it_leads_to(run_dir: Path) -> None:
    for name, text in (("broken", "{"), ("whole", json.dumps(record(id="whole", status="stopped", pid=0, pid_start=0)
                                                             | {"version": state.VERSION}))):
        elsewhere = run_dir / "elsewhere" / name
        elsewhere.mkdir(parents=True)
        (elsewhere / "state.json").write_text(text)
        (run_dir / "root").mkdir(exist_ok=True)
        (run_dir / "root" / name).symlink_to(elsewhere)
        assert verb(run_dir / "root", "delete", "--force", name)[0] == 0
        assert os.listdir(run_dir / "root") == [] and (elsewhere / "state.json").read_text() == text


def test_a_record_that_stays_is_not_said_to_be_removed(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run_dir / "root/c").mkdir(parents=True)
    (run_dir / "root/c/state.json").write_text("{")

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    for name in ("rename", "rmdir", "unlink"):
        monkeypatch.setattr(os, name, refuse)
    code, said = verb(run_dir / "root", "delete", "--force", "c")
    assert code == 1 and said.endswith(f"cannot remove {run_dir}/root/c: Read-only file system\n")


@pytest.mark.parametrize(("last", "told"), [(False, False), (True, True), (True, False)])
def test_a_damaged_record_of_a_pods_container(run_dir: Path, monkeypatch: pytest.MonkeyPatch, last: bool,
                                              told: bool) -> None:
    """Its processes are not left running in the machine, nor is the machine in a cgroup that goes.

    :param told: by the proxy that it was the last; of two that leave at the same moment only one is.
    """
    asked: list[str] = []

    class Client:
        def __init__(self, path: str, _timeout: float = 0.0) -> None:
            assert path == f"{folder}/proxy.sock"

        def __enter__(self) -> Client:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def request(self, op: str, **words: object) -> dict[str, bool]:
            asked.append(f"{op} {words['id']} {words['force']}")
            return {"last": told}

    class Cgroup:
        def __init__(self, path: str) -> None:
            self.path = path

        def remove(self, *, kill: bool, move_to: Cgroup | None) -> None:
            asked.append(f"cgroup {self.path} {kill} {move_to and move_to.path}")

    folder = sandbox(run_dir / "root", *(["c"] if last else ["b", "c", "d"]))
    for name in ("b", "c"):
        (run_dir / "root" / name).mkdir(parents=True)
        (run_dir / "root" / name / "state.json").write_text("{")
    monkeypatch.setattr("kata.wire.Client", Client)
    monkeypatch.setattr("kata.cgroups.at", Cgroup)
    code, said = verb(run_dir / "root", "delete", "--force", "c")
    assert code == 0 and "removed the damaged record of container c" in said and not (run_dir / "root/c").exists()
    assert asked == ["delete c True", f"cgroup /pod/c {last} {None if last else '/pod/b'}"]
    assert folder.exists() != last


def test_cleanup_leaves_sandboxes_of_containers_that_it_cannot_read(run_dir: Path) -> None:
    folder = sandbox(run_dir / "root", "c", "gone")
    container = state.new_container(str(run_dir / "root"), "c", record())
    for text in ('{"version": 99}', "{", '{"version": 1}'):
        Path(container.dir, "state.json").write_text(text)
        assert verb(run_dir / "root", "cleanup")[0] == 0 and folder.is_dir()
    state.remove_container(container)
    code, said = verb(run_dir / "root", "cleanup")
    assert code == 0 and "removing sandbox key (no container is in it)\n" in said and not folder.exists()


def test_cleanup_of_a_sandbox_removes_its_containers_cgroups(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their records are gone; a cgroup that another container has by now stays."""
    removed: list[str] = []

    def at(path: str) -> SimpleNamespace:
        def remove(*, kill: bool) -> None:
            assert kill and not folder.exists()
            removed.append(path)

        return SimpleNamespace(remove=remove)

    folder = sandbox(run_dir / "removed", "c", "again")
    state.new_container(str(run_dir / "root"), "again", record(sandbox_key="other", cgroup="/pod/again"))
    monkeypatch.setattr("kata.cgroups.at", at)
    assert verb(run_dir / "root", "cleanup", "-n")[0] == 0 and not removed
    assert verb(run_dir / "root", "cleanup")[0] == 0 and removed == ["/pod/c"]


def test_a_sandbox_of_another_version_is_left_alone(run_dir: Path) -> None:
    folder = sandbox(run_dir / "root", "c")
    state.new_container(str(run_dir / "root"), "c", record(status="stopped", pid=0, pid_start=0))
    (folder / "sandbox.json").write_text('{"version": 99}')
    for words in (["delete", "c"], ["delete", "--force", "c"], ["cleanup"]):
        assert "version 99" in verb(run_dir / "root", *words)[1]
        assert folder.is_dir() and (run_dir / "root/c").is_dir()


def test_no_proxy_is_no_reason_to_end_the_others_machine(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a machine that is gone is the end of its sandbox; a proxy that is late is not."""
    def late(_directory: str) -> None:
        raise HostError("no proxy came up in time")

    root = run_dir / "root"
    folder = sandbox(root, "c", "other")
    state.new_container(str(root), "c", record(status="stopped", pid=0, pid_start=0))
    monkeypatch.setattr(revive, "revive", late)
    code, said = verb(root, "delete", "c")
    assert code == 1 and "no proxy came up in time" in said and folder.is_dir() and (root / "c").is_dir()

    def gone(_directory: str) -> None:
        raise revive.MachineGone("the machine is gone")

    monkeypatch.setattr(revive, "revive", gone)
    assert verb(root, "delete", "c")[0] == 0 and not folder.exists() and not (root / "c").exists()


def test_folders_of_killed_verbs_are_found(run_dir: Path) -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    state.new_container(str(run_dir / "root"), "c", record())
    for name in (f".new-{child.pid}", f".old-{child.pid}", f".new-{os.getpid()}", ".new-x"):
        (run_dir / "root" / name).mkdir()
    assert sorted(state.stale_folders()) == [f"{run_dir}/root/.new-{child.pid}", f"{run_dir}/root/.old-{child.pid}"]


def test_a_lock_is_waited_for_until_its_deadline(run_dir: Path) -> None:
    holder = subprocess.Popen(["flock", str(run_dir), "sh", "-c", "echo held; read x"], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(HostError, match=r"another process has held the lock of .* for 0\.1 s"):
            with state.locked(str(run_dir), 0.1):
                pass
    finally:
        holder.communicate(b"\n")
    with state.locked(str(run_dir), 5):
        pass
