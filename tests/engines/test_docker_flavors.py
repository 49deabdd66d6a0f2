"""The same image under all three flavors at once, by the names and arguments that hosts have in their daemon.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness import leaks
from harness.bundle import SLEEPER
from harness.dockerd import IMAGE, Docker

from .conftest import Start

pytestmark = pytest.mark.vm_only

#: docker's runtime -> flavor
RUNTIMES = {"cc-runtime": "clear", "runv": "runv", "clear-by-option": "clear", "tested": "unified"}


def flavor_of(docker: Docker, name: str) -> str:
    """What made the container with this name."""
    pid = docker.state(name)["Pid"]
    for folder in leaks.SANDBOXES.iterdir():
        record = json.loads((folder / "sandbox.json").read_text())
        for id, entry in record["containers"].items():
            state = json.loads(Path(entry["root"], id, "state.json").read_text())
            if state["pid"] == pid:
                return str(state["flavor"])
    return ""


def test_side_by_side(docker: Docker, start: Start) -> None:
    names = {runtime: start("--runtime", runtime, "--hostname", f"h-{runtime}", script=f"echo up; {SLEEPER}")
             for runtime in RUNTIMES}
    gateway = "ping -c 1 -W 10 172.17.0.1 > /dev/null && echo reached"
    for runtime, name in names.items():
        docker.wait_logs(name, "up")
        assert flavor_of(docker, name) == RUNTIMES[runtime]
        said = docker.sh(name, f"hostname; cat /sys/class/dmi/id/product_name; {gateway}").ok().stdout.splitlines()
        assert said[0] == f"h-{runtime}" and said[2] == "reached"
        assert ("i440FX" in said[1]) == (RUNTIMES[runtime] != "unified")
    docker("pause", names["cc-runtime"]).ok()
    assert docker.state(names["cc-runtime"])["Status"] == "paused"
    docker("unpause", names["cc-runtime"]).ok()
    for name in names.values():
        docker("stop", "-t", "5", name).ok()
        assert docker.state(name)["ExitCode"] in (0, 137, 143)


@pytest.mark.parametrize("name", RUNTIMES)
def test_exit_codes_and_errors(docker: Docker, name: str) -> None:
    """A process's own code; a missing program is docker's error, with the reason."""
    assert docker("run", "--rm", "--runtime", name, IMAGE, "sh", "-c", "echo out; exit 7").fails(7).out == "out"
    missing = docker("run", "--rm", "--runtime", name, IMAGE, "/no/such/program").fails()
    assert "/no/such/program" in missing.stdout + missing.stderr, missing
