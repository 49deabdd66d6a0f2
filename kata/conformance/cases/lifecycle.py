"""The life of a container at the command line: create, start, kill, delete, and what state says on the way."""

from __future__ import annotations

from functools import partial

from kata.conformance.case import Seen, case
from kata.conformance.engines.oci import OciRuntime

oci = partial(case, "oci")


@oci("life-states", "runtime.md#lifecycle: created, running, stopped, then unknown", seen="created running stopped",
     code=137, deleted=True)
def states(o: OciRuntime) -> Seen:
    with o.created() as c:
        seen = [c.status]
        c.start().ok()
        seen.append(c.status)
        code = c.end()
        seen.append(c.status)
        c.delete().ok()
        return {"seen": " ".join(seen), "code": code, "deleted": o("state", c.id).code != 0}


@oci("run-true", "runtime.md#start: the process runs and its exit code is told", code=0, output="hello")
def run_true(o: OciRuntime) -> Seen:
    got = o.run("echo hello")
    return {"code": got.code, "output": got.out}
