"""Verbs are light: what each may import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[2]
HEAVY = {"asyncio", "grpc", "google.protobuf", "qemu", "kata_agent.protocol", "stevedore", "tomli"}
#: Ended by an error, but only after everything it needs was imported.
VERBS = {"state": ["state", "nosuch"], "list": ["list"], "kill": ["kill", "nosuch"], "delete": ["delete", "nosuch"],
         "start": ["start", "nosuch"], "exec": ["exec", "nosuch", "true"], "pause": ["pause", "nosuch"]}

PROGRAM = """
import json, sys
sys.path[:0] = {path!r}
sys.argv = ["kata", "--root", "/nonexistent", *{words!r}]
from kata.cli import main
main()
sys.stdout.flush()
print(json.dumps(sorted(sys.modules)))
"""


@pytest.mark.parametrize("verb", VERBS)
def test_hot_verbs_import_nothing_heavy(verb: str) -> None:
    path = [str(HERE), str(HERE / "agent")]
    program = PROGRAM.format(path=path, words=VERBS[verb])
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, timeout=60, check=True)
    modules = set(json.loads(done.stdout.splitlines()[-1]))
    assert not {m for m in modules if m in HEAVY or m.split(".")[0] in HEAVY}
    assert "click" not in modules
    assert "kata.cli." + verb in modules


def test_the_shim_needs_only_the_standard_library() -> None:
    program = f"import sys; sys.path.insert(0, {str(HERE)!r}); import kata.shim; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, timeout=60,
                          check=True)
    top = {m.split(".")[0] for m in done.stdout.split()}
    assert top - set(sys.stdlib_module_names) - {"kata", "__main__"} == set()
