"""Sets of file changes whose maker is killed at every step, or whose disk fills up, and migrations made of them."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from kata.changes import Changes
from kata.cli import main
from unit.test_changes import NEW, contents, example, killed_after, snapshot
from unit.test_changes import host as folder
from unit.test_migrate import HOSTS, files, host, migrate, put

__all__ = ["folder", "host"]


def test_killed_at_any_step_of_apply_or_rollback(folder: Path) -> None:
    """Whatever step it was: what comes next finds the old files, or the new ones and a set that is applied."""
    wanted = example(folder)
    before = snapshot(folder)
    sets = Changes(f"{folder}/sets")
    counts = []
    for work in (lambda: sets.apply("x", wanted), lambda: sets.rollback("x")):
        count, states = 0, set()
        while True:
            if work.__code__.co_names[0] == "rollback" and not sets.names():
                sets.apply("x", wanted)
            if not killed_after(count, work):
                break
            sets.recover("x")
            applied = sets.names() == ["x"]
            states.add(applied)
            assert contents(folder) == NEW if applied else snapshot(folder) == before
            if applied and work.__code__.co_names[0] == "apply":
                sets.rollback("x")
                assert snapshot(folder) == before
            count += 1
        assert states == {True, False}
        counts.append(count)
    assert min(counts) > 15
    assert not list(folder.rglob("*.new")) + list(folder.rglob("*.old"))


def test_killed_anywhere(host: Path) -> None:
    """Status says old or new, and the files are that."""
    put(host, HOSTS["runv"])
    before = files(host)
    migrate(host, "apply")
    after = files(host)
    migrate(host, "rollback")
    step, said = 0, set()
    work: Callable[[], object] = lambda: quietly(host, "apply")  # noqa: E731
    while killed_after(step, work):
        status = json.loads(migrate(host, "status", "--json"))["state"]
        said.add(status)
        now = {name: what[2] for name, what in files(host).items()}
        assert now == {name: what[2] for name, what in (before if status == "old" else after).items()}
        if status == "new":
            migrate(host, "rollback")
        assert files(host) == before
        step += 5
    assert "old" in said and step > 20


def quietly(host: Path, *words: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        main(["migrate", *words, "--sysroot", str(host)])


def test_a_full_disk_leaves_the_originals(host: Path) -> None:
    """A file system of 64 KiB that is filled more and more: apply works, or nothing changes."""
    (host / "etc").mkdir()
    script = f"mount -t tmpfs -o size=64k,mode=755 tmpfs {host}/etc && exec {sys.executable} - <<'END'\n" + f"""
import sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from unit import test_migrate as t
import json, contextlib, io
host, seen = Path({str(host)!r}), set()
t.put(host, t.HOSTS["runv"])
before = t.files(host)
for free in range(8):
    try:
        with open(host / "etc/filler", "wb", buffering=0) as f:
            while f.write(bytes(4096)) == 4096:
                pass
    except OSError:
        pass
    f = open(host / "etc/filler", "r+b")
    f.truncate(max(0, f.seek(0, 2) - 4096 * free))
    f.close()
    err = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        code = t.main(["migrate", "apply", "--sysroot", str(host)])
    seen.add(code)
    if code:
        assert "No space left" in err.getvalue() and "make room" in err.getvalue(), err.getvalue()
    else:
        t.migrate(host, "rollback")
    (host / "etc/filler").unlink()
    assert t.files(host) == before
assert seen == {{0, 1}}, seen
END
"""
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
