"""Made by one flavor, driven by another: every verb of each on a container of each, told in the driver's words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.oci import Oci
from harness.proc import Result, run
from harness.wait import eventually

pytestmark = pytest.mark.vm_only

FLAVORS = ("clear", "runv", "unified")
PROGRAMS = {"clear": "cc-runtime", "runv": "runv", "unified": "kata-runtime"}
#: Keys of what each prints as a container's state.
SHAPES = {
    "clear": ["ociVersion", "id", "status", "pid", "bundle", "annotations"],
    "runv": ["ociVersion", "id", "pid", "bundlePath", "rootfsPath", "status", "created", "owner", "bundle", "rootfs",
             "annotations"],
    "unified": ["ociVersion", "id", "status", "pid", "bundle", "rootfs", "created", "annotations", "owner"],
}
#: Exit code, and what a delete of something that runs says.
ALIVE = {"clear": (1, "Container still running, should be stopped"), "runv": (22, "is still alive, use -f to force"),
         "unified": (1, "Container still running, should be stopped")}
GONE = {"clear": (1, "Container ID ({id}) does not exist"), "runv": (1, "State file of {id} not found"),
        "unified": (1, "Container ID ({id}) does not exist")}


@pytest.mark.parametrize("driver", FLAVORS)
@pytest.mark.parametrize("maker", FLAVORS)
def test_every_verb(oci: Oci, maker: str, driver: str) -> None:
    path = str(Path(oci.runtime.path).with_name(PROGRAMS[driver]))

    def verb(*words: str) -> Result:
        return run(path, "--root", str(oci.root), *words, timeout=90)

    def status() -> str:
        shown = json.loads(verb("state", c.id).ok().stdout)
        assert list(shown) == SHAPES[driver]
        return str(shown["status"])

    with oci.container(oci.bundle()) as c:
        c.launch_verb("create", globals=("--flavor", maker)).ok()
        assert status() == "created"
        verb("start", c.id).ok()
        assert status() == "running"
        assert verb("exec", c.id, "sh", "-c", "echo in; exit 3").fails(3).out == "in"
        assert verb("ps", c.id).ok().stdout.startswith(("PID", "UID"))
        assert c.pid in json.loads(verb("ps", "--format", "json", c.id).ok().stdout)
        assert c.id in verb("list", "-q").ok().out.split()
        entry = next(e for e in json.loads(verb("list", "--format", "json").ok().stdout) if e["id"] == c.id)
        assert entry["status"] == "running" and entry["owner"] == ("root" if driver == "runv" else "#0")
        verb("pause", c.id).ok()
        assert status() == "paused"
        verb("resume", c.id).ok()
        if driver == "unified":
            verb("update", "--pids-limit", "50", c.id).ok()
            assert json.loads(verb("events", "--stats", c.id).ok().stdout)["id"] == c.id
        code, text = ALIVE[driver]
        assert text in verb("delete", c.id).fails(code).stderr
        verb("kill", c.id, "KILL").ok()
        assert c.wait() == 137
        eventually("the end in the record", lambda: status() == "stopped", 10)
        verb("delete", c.id).ok()
        code, text = GONE[driver]
        assert text.format(id=c.id) in verb("state", c.id).fails(code).stderr
        c.assert_gone()
