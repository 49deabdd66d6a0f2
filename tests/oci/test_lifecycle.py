"""create, start, state, kill, delete: the life of a container and its illegal turns."""

from __future__ import annotations

import json
import os

import pytest

from harness.bundle import SLEEPER
from harness.oci import Container, Oci
from harness.schema import check_state
from harness.wait import alive, eventually


def test_whole_life(oci: Oci) -> None:
    """Every verb in order; the state after each; the exit code at the end; nothing left."""
    bundle = oci.bundle("echo out; echo err >&2; read line; echo got $line; exit 7")
    read_end, write_end = os.pipe()
    with oci.container(bundle) as c:
        assert c.launch_verb("create", stdin=read_end).ok()
        os.close(read_end)
        state = c.state()
        check_state(state)
        assert state["status"] == "created"
        assert state["id"] == c.id
        assert state["bundle"] == str(bundle.path)
        assert state["pid"] == c.pid
        assert alive(c.pid), "the pid file names no live process"
        assert c.stdout == "", "the process ran before start"

        c.start().ok()
        state = c.state()
        check_state(state)
        assert state["status"] == "running"
        assert state["pid"] == c.pid
        os.write(write_end, b"line\n")
        os.close(write_end)
        assert c.wait() == 7
        state = c.state()
        check_state(state)
        assert state["status"] == "stopped"
        assert c.stdout == "out\ngot line\n"
        assert c.stderr == "err\n"

        c.delete().ok()
        gone = oci.verb("state", c.id).fails(1)
        assert "does not exist" in gone.stderr
        c.assert_gone()


def test_illegal_transitions(oci: Oci) -> None:
    """The runtime specification: each operation names the statuses it is allowed in."""
    with oci.created(oci.bundle(SLEEPER.replace("while", "echo up; while", 1))) as c:
        oci.verb("resume", c.id).fails(1)
        used = oci.verb("create", "--bundle", str(c.bundle.path), c.id).fails(1)
        assert "in use" in used.stderr or "already exists" in used.stderr, used
        assert c.status == "created", "a refused create disturbed the container of that id"

        c.start().ok()
        c.start().fails(1)
        oci.verb("resume", c.id).fails(1)
        running = c.delete().fails(1)
        assert running.stderr.strip(), running
        assert c.status == "running"

        eventually("its trap", lambda: "up" in c.stdout)
        c.kill("TERM").ok()
        assert c.wait() == 0
        assert c.status == "stopped"
        c.start().fails(1)
        c.kill("TERM").fails(1)
        c.sh("true").fails()
        oci.verb("pause", c.id).fails(1)
        c.delete().ok()
        c.delete().fails(1)


def test_delete_of_created(oci: Oci) -> None:
    """A created container that never ran may be killed and deleted."""
    with oci.created(oci.bundle()) as c:
        c.kill("KILL").ok()
        assert c.wait() == 137
        eventually("status stopped", lambda: c.status == "stopped", 10)
        c.delete().ok()
        c.assert_gone()


def test_delete_force_running(oci: Oci) -> None:
    """delete --force ends a running container at once, and leaves nothing."""
    with oci.running(oci.bundle()) as c:
        c.delete("--force").ok()
        assert c.wait(20) == 137
        c.assert_gone()
        oci.verb("delete", "--force", c.id).ok()


def test_unknown_id(oci: Oci) -> None:
    """Every verb says which id it does not know, with exit code 1, but exec, whose process may end with that."""
    for argv in (
        ("state", "nosuch"), ("start", "nosuch"), ("kill", "nosuch"), ("kill", "nosuch", "KILL"), ("delete", "nosuch"),
        ("pause", "nosuch"), ("resume", "nosuch"), ("exec", "nosuch", "true"), ("ps", "nosuch"),
        ("update", "--memory", "100000000", "nosuch"), ("events", "--stats", "nosuch"),
    ):  # fmt: skip
        result = oci.verb(*argv, timeout=15).fails()
        assert result.stderr.strip(), result
        if oci.runtime.is_vm:
            assert result.rc == (255 if argv[0] == "exec" else 1) and "nosuch" in result.stderr, result
            assert len(result.stderr.strip().splitlines()) <= 3, result
            assert "Traceback" not in result.stderr, result
    oci.verb("delete", "--force", "nosuch").ok()


def test_list(oci: Oci) -> None:
    """list: nothing, a table, ids only, JSON."""
    with oci.created(oci.bundle()) as c:
        table = oci.verb("list").ok().out.splitlines()
        assert table[0].split() == ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
        row = next(line.split() for line in table[1:] if line.startswith(c.id))
        assert row[:4] == [c.id, str(c.pid), "created", str(c.bundle.path)]
        assert c.id in oci.verb("list", "--quiet").ok().out.split()
        assert c.id in oci.verb("list", "-q").ok().out.split()
        entries = json.loads(oci.verb("list", "--format", "json").ok().stdout)
        entry = next(e for e in entries if e["id"] == c.id)
        assert entry["pid"] == c.pid and entry["status"] == "created" and entry["bundle"] == str(c.bundle.path)
        assert entry["rootfs"] == str(c.bundle.rootfs)
        assert entry["created"].startswith("20") and "T" in entry["created"]
        oci.verb("list", "--format", "nosuch").fails(1)
        c.delete("--force").ok()
        assert c.id not in oci.verb("list", "-q").ok().out.split()


def test_roots_are_apart(oci: Oci) -> None:
    """A container is known only below the --root that made it."""
    other = oci.run_dir / "other"
    with oci.created(oci.bundle()) as c:
        assert c.id not in oci.verb("--root", str(other), "list", "-q").ok().out.split()
        oci.verb("--root", str(other), "state", c.id).fails(1)
        assert c.status == "created"


def test_relative_bundle_and_default(oci: Oci) -> None:
    """The bundle is the current directory unless --bundle says otherwise; state shows it absolute."""
    from harness.proc import run

    bundle = oci.bundle("echo here").write()
    id = oci.new_id()
    result = run(*oci.argv("run", id), cwd=str(bundle.path)).ok()
    assert result.stdout == "here\n"
    result = run(*oci.argv("run", "-b", ".", id), cwd=str(bundle.path)).ok()
    assert result.stdout == "here\n"


@pytest.mark.parametrize(("sig", "code"), [("TERM", 3), ("SIGKILL", 137)])
def test_kill_reaches_the_process(oci: Oci, sig: str, code: int) -> None:
    """A caught signal runs the handler; KILL ends the process with 128 + 9."""
    script = "trap 'echo caught; exit 3' TERM; echo ready; while :; do sleep 3600 & wait $!; done"
    with oci.running(oci.bundle(script)) as c:
        eventually("trap set", lambda: "ready" in c.stdout)
        c.kill(sig).ok()
        assert c.wait() == code
        assert ("caught" in c.stdout) == (sig == "TERM")


def test_kill_all(oci: Oci) -> None:
    """kill --all reaches every process of the container, not only its first."""
    script = (
        "sh -c 'trap \"echo child; exit\" USR1; echo ready; while :; do sleep 3600 & wait $!; done' & "
        "trap 'echo first' USR1; wait; wait; echo end"
    )
    with oci.running(oci.bundle(script)) as c:
        eventually("the child's trap set", lambda: "ready" in c.stdout)
        c.kill("USR1", "--all").ok()
        eventually("the child's handler", lambda: "child" in c.stdout)
        assert c.wait() == 0
        assert "first" in c.stdout


def test_signal_forms(oci: Oci, shared: Container) -> None:
    """Names in every form reach the process; unknown ones are refused by name."""
    for form in ("SIGURG", "URG", "23", "WINCH", "SIGCONT"):
        shared.kill(form).ok()
    for form in ("NOSUCH", "SIGNOSUCH", "999", "-5x"):
        refused = shared.oci.verb("kill", shared.id, form, timeout=15).fails()
        assert refused.stderr.strip(), refused
    assert shared.status == "running"


@pytest.mark.vm_only
def test_several_ids(oci: Oci) -> None:
    """start and delete take several ids, as Kata 1.x does; one that is not known fails, the others are done."""
    with oci.created(oci.bundle("exit 1")) as one, oci.created(oci.bundle("exit 2")) as two:
        oci.verb("start", one.id, two.id).ok()
        assert (one.wait(), two.wait()) == (1, 2)
        eventually("both stopped", lambda: (one.status, two.status) == ("stopped", "stopped"), 10)
        result = oci.verb("delete", one.id, "nosuch", two.id)
        assert result.rc == 1 and "nosuch" in result.stderr, result
        oci.verb("delete", "--force", one.id, two.id).ok()
        for c in (one, two):
            oci.verb("state", c.id).fails(1)
