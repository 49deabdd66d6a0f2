"""runtime.md: the operations, the states they are allowed in, and what they answer."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from kata.conformance.case import Seen
from kata.conformance.cases.look import oci
from kata.conformance.engines import host
from kata.conformance.engines.oci import SLEEPER, Container, OciRuntime

CATCH = "trap 'echo caught; exit 3' TERM; : > /tmp/ready; while :; do sleep 3600 & wait $!; done"


def until(c: Container, condition: str) -> None:
    """Wait inside, at most 20 s, until a command succeeds.

    :raise HostError: it never did.
    """
    c.sh(f"i=0; until {condition}; do i=$((i+1)); test $i -lt 400 || exit 1; usleep 50000; done").ok()


READY = "test -e /tmp/ready"


# --- state -----------------------------------------------------------------------


def _life(o: OciRuntime) -> dict[str, Any]:
    """A whole life: the state at each of its stations."""
    def make() -> dict[str, Any]:
        with o.created("read line; echo got $line; exit 7", {"annotations": {"org.example.test": "kept"}},
                       input=b"line\n") as c:
            found: dict[str, Any] = {"created": c.state(), "pid": c.pid, "id": c.id, "bundle": str(c.bundle)}
            found["alive"] = os.path.exists(f"/proc/{c.pid}")
            found["listed"] = o("list").ok().stdout.splitlines()
            found["json"] = [e for e in json.loads(o("list", "--format", "json").ok().stdout) if e["id"] == c.id]
            found["quiet"] = c.id in o("list", "-q").ok().out.split()
            c.start().ok()
            found["code"] = c.wait()
            found["stopped"] = c.state()
            c.delete().ok()
            gone = o("state", c.id)
            found["gone"] = gone.code, gone.stderr
            found["left"] = c.id in o("list", "-q").ok().out.split()
        return found

    found: dict[str, Any] = o.shared("life", make)
    return found


@oci("state-created", "state of a created container: status, id, pid, bundle, version", status="created", id=True,
     pid=True, alive=True, bundle=True, version=True)
def state_created(o: OciRuntime) -> Seen:
    life = _life(o)
    state = life["created"]
    return {"status": state["status"], "id": state["id"] == life["id"], "pid": state["pid"] == life["pid"],
            "alive": life["alive"], "bundle": state.get("bundle") == life["bundle"],
            "version": bool(re.fullmatch(r"1\.\d+\.\d+(-\S+)?", state["ociVersion"]))}


@oci("state-keys", "which keys state prints beyond those of the specification")
def state_keys(o: OciRuntime) -> Seen:
    return {"keys": sorted(_life(o)["created"])}


@oci("state-annotations", "state has the bundle's annotations", annotations={"org.example.test": "kept"})
def state_annotations(o: OciRuntime) -> Seen:
    kept = _life(o)["created"].get("annotations") or {}
    return {"annotations": {k: v for k, v in kept.items() if k.startswith("org.example")}}


@oci("state-stopped", "state of a stopped container: status stopped, and its exit code was told", status="stopped",
     code=7)
def state_stopped(o: OciRuntime) -> Seen:
    return {"status": _life(o)["stopped"]["status"], "code": _life(o)["code"]}


@oci("state-unknown", "state of a container that does not exist is an error", code=1, said=True, left=False)
def state_unknown(o: OciRuntime) -> Seen:
    code, err = _life(o)["gone"]
    return {"code": code, "said": "does not exist" in err or "not found" in err, "left": _life(o)["left"]}


@oci("list-table", "list: a table with a heading and a row for each container", heading=True, row=True)
def list_table(o: OciRuntime) -> Seen:
    life = _life(o)
    rows = [line.split() for line in life["listed"]]
    return {"heading": rows[0][:5] == ["ID", "PID", "STATUS", "BUNDLE", "CREATED"],
            "row": [life["id"], str(life["pid"]), "created", life["bundle"]] in [row[:4] for row in rows[1:]]}


@oci("list-json", "list --format json and --quiet", status="created", pid=True, bundle=True, quiet=True)
def list_json(o: OciRuntime) -> Seen:
    life = _life(o)
    (entry,) = life["json"]
    return {"status": entry["status"], "pid": entry["pid"] == life["pid"], "bundle": entry["bundle"] == life["bundle"],
            "quiet": life["quiet"], "keys": sorted(entry)}


# --- operations out of turn ----------------------------------------------------------


@oci("life-out-of-turn", "operations in a state that does not allow them are refused and change nothing",
     taken=[], statuses=["created", "running", "stopped"], output="fine")
def out_of_turn(o: OciRuntime) -> Seen:
    refused = {}
    with o.created() as c:
        refused["created: resume"] = o("resume", c.id).code != 0
        refused["created: create again"] = o("create", "--bundle", str(c.bundle), c.id).code != 0
        statuses = [c.status]
        c.start().ok()
        refused["running: start"] = c.start().code != 0
        refused["running: resume"] = o("resume", c.id).code != 0
        refused["running: delete"] = c.delete().code != 0
        refused["running: run again"] = o("run", "--bundle", str(c.bundle), c.id).code != 0
        output = c.sh("echo fine").out
        statuses.append(c.status)
        c.end()
        statuses.append(c.status)
        refused["stopped: start"] = c.start().code != 0
        refused["stopped: create again"] = o("create", "--bundle", str(c.bundle), c.id).code != 0
        refused["stopped: kill"] = c.kill("TERM").code != 0
        refused["stopped: exec"] = c.sh("true").code != 0
        refused["stopped: pause"] = o("pause", c.id).code != 0
        c.delete().ok()
        refused["deleted: delete"] = c.delete().code != 0
    return {"refused": [what for what, was in refused.items() if was],
            "taken": [what for what, was in refused.items() if not was], "statuses": statuses, "output": output}


@oci("life-unknown-id", "every operation on an unknown id fails and says so", silent=[], succeeded=[])
def unknown_id(o: OciRuntime) -> Seen:
    verbs = (("state",), ("start",), ("kill",), ("delete",), ("pause",), ("resume",), ("ps",))
    done = {v[0]: o(*v, "nosuch") for v in verbs}
    done["exec"] = o("exec", "nosuch", "true")
    return {"silent": [v for v, d in done.items() if not d.stderr.strip()],
            "succeeded": [v for v, d in done.items() if d.code == 0]}


@oci("life-unknown-code", "the exit code of a verb that fails")
def unknown_code(o: OciRuntime) -> Seen:
    return {"state": o("state", "nosuch").code, "start": o("start", "nosuch").code, "kill": o("kill", "nosuch").code}


@oci("delete-force-unknown", "delete --force of an unknown id")
def delete_force_unknown(o: OciRuntime) -> Seen:
    return {"code": o("delete", "--force", "nosuch").code}


@oci("life-delete-created", "a created container that never ran can be killed and deleted", code=137, status="stopped",
     gone=True)
def delete_created(o: OciRuntime) -> Seen:
    with o.created() as c:
        code = c.end()
        status = c.status
        c.delete().ok()
        return {"code": code, "status": status, "gone": o("state", c.id).code != 0}


@oci("life-delete-force", "delete --force ends a running container", code=137, gone=True)
def delete_force(o: OciRuntime) -> Seen:
    with o.running() as c:
        c.delete("--force").ok()
        return {"code": c.wait(), "gone": o("state", c.id).code != 0}


def _first(o: OciRuntime) -> dict[str, Any]:
    """What a container was seen to do whose config.json changed between create and start."""
    def make() -> dict[str, Any]:
        with o.created("touch /tmp/ran; echo first") as c:
            found: dict[str, Any] = {"before": os.listdir(c.bundle / "rootfs/tmp")}
            path = c.bundle / "config.json"
            path.write_text(path.read_text().replace("echo first", "echo other"))
            c.start().ok()
            c.wait()
            return {**found, "after": os.listdir(c.bundle / "rootfs/tmp"), "output": c.said.strip()}

    found: dict[str, Any] = o.shared("first", make)
    return found


@oci("life-nothing-runs-before-start", "create runs nothing of the program", before=[], after=["ran"])
def nothing_before_start(o: OciRuntime) -> Seen:
    return {key: _first(o)[key] for key in ("before", "after")}


@oci("life-config-is-fixed", "config.json that changes after create has no effect (runtime.md, create)", output="first")
def config_is_fixed(o: OciRuntime) -> Seen:
    return {"output": _first(o)["output"]}


@oci("life-roots-apart", "a container is known only below the --root that made it", listed=False, state=True)
def roots_apart(o: OciRuntime) -> Seen:
    other = ["--root", str(o.folder / "other")]
    listed = o.box.id in o(*other, "list", "-q").out.split()
    return {"listed": listed, "state": o(*other, "state", o.box.id).code != 0}


@oci("life-bundle-default", "the bundle is the working directory without --bundle", output="here")
def bundle_default(o: OciRuntime) -> Seen:
    return {"output": host.run(o.argv("run", o.new_id()), cwd=o.bundle("echo here")).ok().out}


@oci("life-pid-file", "--pid-file names the container's process, as state does", same=True)
def pid_file(o: OciRuntime) -> Seen:
    return {"same": o.box.state()["pid"] == o.box.pid}


@oci("life-run-detached", "run --detach returns while the process runs", status="running", code=137)
def run_detached(o: OciRuntime) -> Seen:
    with o.container(o.bundle(SLEEPER)) as c:
        c.create("--detach", verb="run")
        return {"status": c.status, "code": c.end()}


@oci("life-run-deletes", "run deletes its container when it ended", left=False)
def run_deletes(o: OciRuntime) -> Seen:
    before = set(o("list", "-q").out.split())
    o.run("true").ok()
    return {"left": bool(set(o("list", "-q").out.split()) - before)}


# --- kill -------------------------------------------------------------------------------


@oci("kill-caught", "kill without a signal sends TERM; a signal that is caught runs the handler", code=3, caught=True)
def kill_caught(o: OciRuntime) -> Seen:
    with o.running(CATCH) as c:
        until(c, READY)
        o("kill", c.id).ok()
        return {"code": c.wait(), "caught": "caught" in c.said}


@oci("kill-forms", "names with and without SIG, and numbers", accepted=[True] * 4)
def kill_forms(o: OciRuntime) -> Seen:
    return {"accepted": [o.box.kill(form).code == 0 for form in ("SIGURG", "URG", "23", "SIGCONT")]}


@oci("kill-unknown", "signals that there are not are refused", refused=[True] * 4, status="running")
def kill_unknown(o: OciRuntime) -> Seen:
    return {"refused": [o("kill", o.box.id, form).code != 0 for form in ("NOSUCH", "SIGNOSUCH", "999", "-5x")],
            "status": o.box.status}


@oci("kill-all", "kill --all reaches every process", code=0, first=True, child=True)
def kill_all(o: OciRuntime) -> Seen:
    shell = ("sh -c 'trap \"echo child; exit\" USR1; : > /tmp/ready; while :; do sleep 3600 & wait $!; done' & "
             "trap 'echo first' USR1; wait; wait; echo end")
    with o.running(shell) as c:
        until(c, READY)
        c.kill("USR1", "--all").ok()
        code = c.wait()
        return {"code": code, "first": "first" in c.said, "child": "child" in c.said}


@oci("kill-pid-1-ignores", "pid 1 without a handler does not end by TERM (pid_namespaces(7))", status="running")
def kill_ignored(o: OciRuntime) -> Seen:
    with o.running(": > /tmp/ready; while :; do sleep 1; done") as c:
        until(c, READY)
        c.kill("TERM").ok()
        c.sh("true").ok()
        return {"status": c.status}


# --- pause ------------------------------------------------------------------------------


@oci("pause-freezes", "pause: the status is paused and nothing moves; after resume all goes on, and nothing is lost",
     status="paused", moved=False, resumed="running", whole=True)
def pause_freezes(o: OciRuntime) -> Seen:
    with o.running("i=0; while :; do i=$((i+1)); echo $i >> /tmp/log; usleep 20000; done") as c:
        log = c.bundle / "rootfs/tmp/log"
        until(c, "test $(wc -l < /tmp/log) -gt 5")
        o("pause", c.id).ok()
        status, before = c.status, log.read_text()
        host.run(["sleep", "0.6"]).ok()  # the time in which nothing may happen
        moved = log.read_text() != before
        o("resume", c.id).ok()
        resumed = c.status
        until(c, f"test $(wc -l < /tmp/log) -gt {len(before.splitlines()) + 5}")
        numbers = [int(n) for n in log.read_text().splitlines()[:-1]]
        return {"status": status, "moved": moved, "resumed": resumed, "whole": numbers == [*range(1, len(numbers) + 1)]}


def _paused(o: OciRuntime) -> dict[str, Any]:
    """What a paused container answers, and its end by force."""
    def make() -> dict[str, Any]:
        with o.running() as c:
            for _ in range(2):
                o("pause", c.id).ok()
                o("resume", c.id).ok()
            found: dict[str, Any] = {"after": c.sh("echo yes").ok().out}
            o("pause", c.id).ok()
            found["exec"] = c.sh("echo no").code != 0
            found["delete"] = c.delete().code != 0
            found["status"] = c.status
            rows = [line.split() for line in o("list").ok().stdout.splitlines()]
            found["listed"] = [c.id, "paused"] in [[row[0], row[2]] for row in rows[1:]]
            c.delete("--force").ok()
            found["code"] = c.wait()
        return found

    found: dict[str, Any] = o.shared("paused", make)
    return found


@oci("pause-exec", "exec in a paused container is refused; after resume it works", exec=True, after="yes")
def pause_exec(o: OciRuntime) -> Seen:
    return {key: _paused(o)[key] for key in ("exec", "after")}


@oci("pause-list", "a paused container is listed so", listed=True)
def pause_list(o: OciRuntime) -> Seen:
    return {"listed": _paused(o)["listed"]}


@oci("pause-again", "pause and resume, again and again; delete --force ends a paused container", code=137)
def pause_again(o: OciRuntime) -> Seen:
    return {"code": _paused(o)["code"]}


@oci("pause-delete", "delete of a paused container without --force is refused", delete=True, status="paused")
def pause_delete(o: OciRuntime) -> Seen:
    return {key: _paused(o)[key] for key in ("delete", "status")}


# --- small verbs ------------------------------------------------------------------------


@oci("verb-version", "--version names the specification's version", spec=True)
def version(o: OciRuntime) -> Seen:
    return {"spec": bool(re.search(r"(spec|OCI specs): *1\.\d", o("--version").ok().stdout))}


@oci("verb-unknown", "unknown options are refused, by name", refused=True, named=True)
def unknown_option(o: OciRuntime) -> Seen:
    done = o("list", "--bogus")
    return {"refused": done.code != 0, "named": "bogus" in done.all}


@oci("verb-ps-json", "ps --format json: live pids of the host", numbers=True)
def ps_json(o: OciRuntime) -> Seen:
    pids = json.loads(o("ps", "--format", "json", o.box.id).ok().stdout)
    return {"numbers": bool(pids) and all(isinstance(p, int) for p in pids)}


@oci("verb-ps", "ps: a table that has the container's processes", heading=True, sleep=True)
def ps(o: OciRuntime) -> Seen:
    lines = o("ps", o.box.id).ok().stdout.splitlines()
    return {"heading": "PID" in lines[0].split(), "sleep": any("sleep" in line for line in lines[1:])}


@oci("log-json", "--log with --log-format json: the error as containerd reads it", level="error", named=True)
def log_json(o: OciRuntime) -> Seen:
    log = o.folder / "log.json"
    o("--log", str(log), "--log-format", "json", "state", "nosuch")
    last = [json.loads(line) for line in log.read_text().splitlines() if line][-1]
    dated = re.match(r"\d{4}-\d\d-\d\dT", last["time"]) is not None
    return {"level": last["level"], "named": bool(last["msg"]) and dated}


@oci("verb-spec", "spec writes a config.json that runs, and does not overwrite one", output="from spec", refused=True)
def spec(o: OciRuntime) -> Seen:
    bundle = o.bundle()
    path: Path = bundle / "config.json"
    path.unlink()
    host.run(o.argv("spec", "--bundle", str(bundle))).ok()
    config = json.loads(path.read_text())
    refused = host.run(o.argv("spec", "--bundle", str(bundle))).code != 0
    config["process"].update(args=["echo", "from spec"], terminal=False)
    path.write_text(json.dumps(config))
    return {"output": o("run", "--bundle", str(bundle), o.new_id()).ok().out, "refused": refused}
