"""Sets of file changes: all old or all new, killed anywhere, on a full disk, beside other people's edits."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata import changes
from kata.changes import Changes, change
from kata.errors import HostError, StateError

#: What leads from one state on the disk to the next.
STEPS = ("write", "rename", "unlink", "mkdir", "rmdir")


@pytest.fixture
def host() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:  # nothing is slow to flush
        yield Path(folder)


def snapshot(root: Path) -> dict[str, tuple[int, int, bytes | str | None]]:
    """Everything below ``root`` but the sets: mode, time of files, bytes."""
    found: dict[str, tuple[int, int, bytes | str | None]] = {}
    for path in sorted(root.rglob("*")):
        if path.relative_to(root).parts[0] == "sets":
            continue
        meta = path.lstat()
        what = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(root))] = (meta.st_mode, meta.st_mtime_ns if path.is_file() else 0, what)
    return found


def contents(root: Path) -> dict[str, bytes | str | None]:
    return {name: what for name, (_mode, _time, what) in snapshot(root).items()}


def killed_after(count: int, work: Callable[[], object]) -> bool:
    """Run ``work`` in a process that is killed before its ``count``-th step; says whether it came so far."""
    pid = os.fork()
    if pid == 0:
        left = count

        def stepping(real: Callable[..., object]) -> Callable[..., object]:
            def step(*args: object, **kwargs: object) -> object:
                nonlocal left
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1
                return real(*args, **kwargs)

            return step

        for name in STEPS:
            setattr(os, name, stepping(getattr(os, name)))
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def example(root: Path) -> list[changes.Change]:
    """One file replaced, one behind a link, one made in a new folder, one removed."""
    (root / "etc").mkdir()
    (root / "etc/a").write_bytes(b"old a\n")
    (root / "etc/a").chmod(0o640)
    (root / "etc/real").write_bytes(b"old real\n")
    (root / "etc/link").symlink_to("/etc/real")
    (root / "etc/gone").write_bytes(b"old gone\n")
    sysroot = str(root)
    return [change("/etc/a", b"new a\n", sysroot=sysroot), change("/etc/link", b"new real\n", sysroot=sysroot),
            change("/etc/d/e/made", b"new made\n", sysroot=sysroot, mode=0o600),
            change("/etc/gone", None, sysroot=sysroot)]


NEW = {"etc": None, "etc/a": b"new a\n", "etc/real": b"new real\n", "etc/link": "/etc/real", "etc/d": None,
       "etc/d/e": None, "etc/d/e/made": b"new made\n"}


def test_apply_and_rollback(host: Path) -> None:
    wanted = example(host)
    before = snapshot(host)
    sets = Changes(f"{host}/sets")
    sets.apply("x", wanted, {"for": "test"})
    assert contents(host) == NEW
    assert (host / "etc/a").stat().st_mode & 0o777 == 0o640
    assert (host / "etc/d/e/made").stat().st_mode & 0o777 == 0o600
    status = sets.status("x")
    assert status and (status.state, status.now, status.note) == (changes.APPLIED, changes.NEW, {"for": "test"})
    assert sets.names() == ["x"]
    sets.rollback("x")
    assert snapshot(host) == before
    assert sets.names() == [] and sets.status("x") is None
    with pytest.raises(StateError, match="no changes x to roll back"):
        sets.rollback("x")


def test_status_tells_of_an_interrupted_set_without_touching_it(host: Path) -> None:
    wanted = example(host)
    sets = Changes(f"{host}/sets")
    count = 0
    while (status := sets.status("x")) is None or status.now != changes.FOREIGN:
        sets.recover("x")
        assert killed_after(count, lambda: sets.apply("x", wanted))
        count += 3  # every third step is enough to come by one in the middle
    assert status.state == changes.APPLYING and {state for _path, state in status.files} == {changes.OLD, changes.NEW}
    assert sets.status("x") == status
    # The next apply finds the old files.
    sets.apply("x", wanted)
    assert contents(host) == NEW


def test_a_file_that_changed_after_the_plan_is_left(host: Path) -> None:
    wanted = example(host)
    (host / "etc/a").write_bytes(b"somebody's\n")
    before = snapshot(host)
    with pytest.raises(HostError, match=r"etc/a changed while this went on"):
        Changes(f"{host}/sets").apply("x", wanted)
    assert snapshot(host) == before


def test_a_file_that_changed_since_is_kept_unless_forced(host: Path) -> None:
    wanted = example(host)
    before = snapshot(host)
    sets = Changes(f"{host}/sets")
    sets.apply("x", wanted)
    (host / "etc/a").write_bytes(b"somebody's\n")
    with pytest.raises(HostError, match=r"etc/a changed since"):
        sets.rollback("x")
    assert (host / "etc/a").read_bytes() == b"somebody's\n" and (host / "etc/real").read_bytes() == b"new real\n"
    sets.rollback("x", force=True)
    assert snapshot(host) == before
    assert (host / "sets/.x.rolled-back/found-0").read_bytes() == b"somebody's\n"


def test_the_later_of_two_sets_is_named(host: Path) -> None:
    wanted = example(host)[:1]
    sets = Changes(f"{host}/sets")
    sets.apply("first", wanted)
    sets.apply("second", [change("/etc/a", b"newer\n", sysroot=str(host))])
    with pytest.raises(HostError, match="roll back second first"):
        sets.rollback("first")


def test_one_set_at_a_time_of_a_name(host: Path) -> None:
    wanted = example(host)
    sets = Changes(f"{host}/sets")
    sets.apply("x", wanted[:1])
    with pytest.raises(StateError, match="applied already"):
        sets.apply("x", wanted[1:])


def test_a_damaged_journal_is_told(host: Path) -> None:
    sets = Changes(f"{host}/sets")
    sets.apply("x", example(host))
    (host / "sets/x/journal.json").write_text("{")
    for work in (sets.status, sets.rollback):
        with pytest.raises(StateError, match="is damaged: the files before the change are beside it"):
            work("x")


def test_what_cannot_be_changed_is_refused(host: Path) -> None:
    sysroot = str(host)
    (host / "folder").mkdir()
    (host / "one").write_bytes(b"")
    (host / "two").hardlink_to(host / "one")
    (host / "round").symlink_to("round")
    os.mkfifo(host / "fifo")
    (host / "to").symlink_to("alone")
    (host / "alone").write_bytes(b"1")
    for path, why in (("/folder", "not a regular file"), ("/one", "2 names"), ("/round", "circle"),
                      ("/fifo", "not a regular file")):
        with pytest.raises(HostError, match=why):
            change(path, b"x", sysroot=sysroot)
    with pytest.raises(HostError, match="changed twice: two of the files are links to one"):
        Changes(f"{host}/sets").apply("x", [change("/to", b"x", sysroot=sysroot),
                                            change("/alone", b"y", sysroot=sysroot)])


@pytest.mark.parametrize("name", ["there", "new"])
def test_links_that_a_folders_owner_makes_meanwhile_are_not_followed(host: Path, monkeypatch: pytest.MonkeyPatch,
                                                                     name: str) -> None:
    """Whoever may write to the folder can replace the copy beside a file as soon as it is there."""
    secret = host / "secret"
    secret.write_bytes(b"secret")
    secret.chmod(0o600)
    (host / "home").mkdir()
    (host / "home/there").write_bytes(b"old")
    (host / "home/there").chmod(0o666)
    real_fsync = os.fsync

    def swapping(fd: int) -> None:
        real_fsync(fd)
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if path.parent == host / "home" and path.name.startswith(".kata-"):
            path.unlink()
            path.symlink_to(secret)

    monkeypatch.setattr(os, "fsync", swapping)
    Changes(str(host / "sets")).apply("s", [change(f"/home/{name}", b"new", sysroot=str(host), mode=0o644)])
    assert secret.stat().st_mode & 0o777 == 0o600 and secret.read_bytes() == b"secret"


def test_links_lead_nowhere_outside_the_sysroot(host: Path) -> None:
    (host / "up").symlink_to("../../../../etc/passwd")
    (host / "abs").symlink_to("/etc/passwd")
    for path in ("/up", "/abs", "/../../etc/passwd"):
        assert changes.resolve(path, str(host)) == f"{host}/etc/passwd"


FILES = st.dictionaries(st.sampled_from(["a", "b", "d/c", "d/e/f"]), st.binary(max_size=40))


@given(FILES, st.dictionaries(st.sampled_from(["a", "b", "d/c", "d/e/f", "g/h"]), st.none() | st.binary(max_size=40)))
def test_rollback_is_the_identity(files: dict[str, bytes], after: dict[str, bytes | None]) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        host = Path(folder)
        for name, data in files.items():
            (host / name).parent.mkdir(parents=True, exist_ok=True)
            (host / name).write_bytes(data)
        before = snapshot(host)
        sets = Changes(f"{host}/sets")
        sets.apply("x", [change(f"/{name}", data, sysroot=folder) for name, data in after.items()])
        assert {n: d for n, d in contents(host).items() if d is not None} == {
            n: d for n, d in {**files, **after}.items() if d is not None}
        sets.rollback("x")
        assert snapshot(host) == before
