"""pause and resume: nothing runs in between, nothing is lost."""

from __future__ import annotations

import subprocess
import time

from harness.oci import Launch, Oci
from harness.schema import check_state
from harness.wait import eventually


def test_pause_freezes(oci: Oci) -> None:
    """No process moves while paused; all go on after resume; exec is refused in between."""
    with oci.running(oci.bundle("i=0; while :; do i=$((i+1)); echo $i; usleep 20000; done")) as c:
        other = c.exec_detached("sh", "-c", "while :; do date +%s%N > /tmp/beat; usleep 20000; done")
        eventually("output", lambda: len(c.stdout) > 6)
        eventually("the other's beat", (c.bundle.rootfs / "tmp/beat").exists)
        oci.verb("pause", c.id).ok()
        state = c.state()
        check_state(state)
        assert state["status"] == "paused"
        assert c.id in oci.verb("list").ok().stdout and "paused" in oci.verb("list").ok().stdout
        before, beat = c.stdout, (c.bundle.rootfs / "tmp/beat").read_text()
        time.sleep(0.7)  # the time in which nothing may happen
        assert c.stdout == before, "it ran while paused"
        assert (c.bundle.rootfs / "tmp/beat").read_text() == beat, "a process of exec ran while paused"

        refused = c.sh("echo no").fails()
        assert "paused" in refused.stderr, refused
        if not oci.runtime.is_vm:
            assert c.pid > 0
        c.delete().fails(1)
        oci.verb("resume", c.id).ok()
        assert c.status == "running"
        eventually("output after resume", lambda: len(c.stdout) > len(before))
        eventually("the other after resume", lambda: (c.bundle.rootfs / "tmp/beat").read_text() != beat)
        assert c.sh("echo yes").ok().out == "yes"
        numbers = [int(n) for n in c.stdout.splitlines()[:-1]]
        assert numbers == list(range(1, len(numbers) + 1)), "output was lost"
        c.kill("KILL").ok()
        assert other.exit_code() == 137


def test_pause_twice_and_kill(oci: Oci) -> None:
    """pause and resume again and again; delete --force ends a paused container."""
    with oci.running(oci.bundle()) as c:
        for _ in range(3):
            oci.verb("pause", c.id).ok()
            oci.verb("resume", c.id).ok()
        oci.verb("pause", c.id).ok()
        c.delete("--force").ok()
        assert c.wait(20) == 137
        c.assert_gone()


def test_ignore_paused(oci: Oci) -> None:
    """exec --ignore-paused does not refuse: its process runs when the container does."""
    with oci.running(oci.bundle()) as c:
        oci.verb("pause", c.id).ok()
        pid_file = oci.run_dir / "paused.pid"
        argv = oci.argv("exec", "--detach", "--ignore-paused", "--pid-file", str(pid_file), c.id)
        argv += ["sh", "-c", "echo thawed > /tmp/thawed"]
        launch = Launch(argv, pid_file, subprocess.DEVNULL, subprocess.DEVNULL, subprocess.DEVNULL)
        oci.verb("resume", c.id).ok()
        assert launch.verb_code() == 0
        assert launch.exit_code() == 0
        assert (c.bundle.rootfs / "tmp/thawed").read_text() == "thawed\n"
