"""Containers of clear and runv become unified's while they run: nothing is restarted, unified's policy holds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import pytest

from harness.oci import Container, Oci
from harness.sandbox import Parts
from harness.wait import eventually

pytestmark = pytest.mark.vm_only

COUNTER = "i=0; while :; do i=$((i+1)); echo $i; usleep 20000; done"
CRI = "io.kubernetes.cri."
#: Fields of /proc/PID/stat after the name: state is the first, start time the 20th.
STARTED = "sed 's/.*) //' /proc/1/stat | cut -d' ' -f20"


def create(c: Container, flavor: str) -> None:
    c.launch_verb("create", globals=("--flavor", flavor)).ok()


def adopt(oci: Oci, *words: str) -> list[dict[str, object]]:
    """What became of containers, by ``--json``; the exit code says whether one was refused."""
    result = oci.verb("migrate", "adopt", "--json", *words)
    outcomes: list[dict[str, object]] = json.loads(result.stdout)
    assert result.rc == (1 if any(o["refused"] for o in outcomes) else 0), result
    return outcomes


def numbers(c: Container) -> list[int]:
    return [int(n) for n in c.stdout.splitlines()[:-1]]


def is_unified(oci: Oci, c: Container) -> None:
    """Record, sandbox and list say so."""
    parts = Parts(oci.root, c.id)
    assert parts.state()["flavor"] == "unified" and "kata_unified" in parts.state()["backend"]
    assert parts.record()["flavor"] == parts.record()["plan"]["flavor"] == "unified"
    entry = next(e for e in json.loads(oci.verb("list", "--kata-all", "--format", "json").ok().stdout)
                 if e["id"] == c.id)
    assert entry["flavor"] == "unified"


@pytest.mark.parametrize("flavor", ["clear", "runv"])
def test_a_running_container(oci: Oci, flavor: str) -> None:
    with oci.container(oci.bundle(COUNTER)) as c:
        create(c, flavor)
        [created] = adopt(oci, c.id)
        assert "start it first" in str(created["refused"]) and created["flavor"] == flavor
        c.start().ok()
        eventually("output", lambda: len(c.stdout) > 6)
        oci.verb("pause", c.id).ok()
        [paused] = adopt(oci, "--all")
        assert f"paused in the way of {flavor}: resume it first" in str(paused["refused"])
        oci.verb("resume", c.id).ok()
        parts = Parts(oci.root, c.id)
        before, record = (c.sh(STARTED).ok().out, c.pid, parts.qemu, parts.proxy), parts.state()

        [done] = adopt(oci, c.id)
        assert done == {"id": c.id, "flavor": "unified", "before": flavor, "refused": "", "notes": done["notes"]}
        is_unified(oci, c)
        assert (c.sh(STARTED).ok().out, c.pid, parts.qemu, parts.proxy) == before
        as_unified(oci, c)

        # As if it had been killed half way, after sandbox.json: the next proxy finishes the record.
        (oci.root / c.id / "state.json").write_text(json.dumps(record))
        parts.kill_proxy()
        assert c.sh(STARTED).ok().out == before[0]
        assert parts.proxy != before[3]
        is_unified(oci, c)
        as_unified(oci, c)
        [again] = adopt(oci, c.id)
        assert again["refused"] == "it is unified's already"
        assert adopt(oci, "--all") == []

        assert numbers(c) == list(range(1, len(numbers(c)) + 1)), "output was lost"
        c.kill("KILL").ok()
        assert c.wait() == 137
        eventually("its end in the record", lambda: c.status == "stopped", 10)
        c.delete().ok()
        c.assert_gone()


def as_unified(oci: Oci, c: Container) -> None:
    """Pause freezes the container and nothing else: the guest answers meanwhile.  Update works."""
    oci.verb("pause", c.id).ok()
    assert c.status == "paused"
    assert oci.verb("ps", c.id).ok().stdout, "the machine stands still"
    length = len(c.stdout)
    oci.verb("resume", c.id).ok()
    eventually("output after resume", lambda: len(c.stdout) > length + 20)
    oci.verb("update", "--pids-limit", "50", c.id).ok()
    assert c.sh("cat /sys/fs/cgroup/pids.max").ok().out == "50"
    assert json.loads(oci.verb("events", "--stats", c.id).ok().stdout)["id"] == c.id


@pytest.fixture
def pod(oci: Oci) -> Iterator[Sequence[Container]]:
    """A pod of clear: its sandbox and a container, both running."""
    first, second = oci.bundle(), oci.bundle()
    with oci.container(first) as sandbox:
        first.config["annotations"] = {CRI + "container-type": "sandbox"}
        second.config["annotations"] = {CRI + "container-type": "container", CRI + "sandbox-id": sandbox.id}
        first.write()
        with oci.container(second) as inner:
            for c in (sandbox, inner):
                create(c, "clear")
                c.start().ok()
            yield sandbox, inner


def test_a_pod_goes_together(oci: Oci, pod: Sequence[Container]) -> None:
    sandbox, inner = pod
    [refused] = adopt(oci, inner.id)
    assert refused["refused"] == (f"it shares its machine with {sandbox.id}: "
                                  "adopt them together: name them all, or --all")
    assert Parts(oci.root, inner.id).state()["flavor"] == "clear"
    assert [o["refused"] for o in adopt(oci, "--all")] == ["", ""]
    for c in pod:
        assert Parts(oci.root, c.id).state()["flavor"] == "unified"
    # What joins now is sized and made as unified has it.
    third = oci.bundle()
    third.config["annotations"] = {CRI + "container-type": "container", CRI + "sandbox-id": sandbox.id}
    with oci.running(third) as joined:
        oci.verb("pause", joined.id).ok()
        inner.sh("true").ok()
        oci.verb("resume", joined.id).ok()
    inner.kill("KILL").ok()
    assert inner.wait() == 137


def test_words_that_make_no_sense(oci: Oci) -> None:
    assert "name containers, or give --all" in oci.verb("migrate", "adopt").fails().stderr
    assert "does not exist" in oci.verb("migrate", "adopt", "no-such").fails().stderr
    assert "no running container" in oci.verb("migrate", "adopt", "--all").ok().stdout
