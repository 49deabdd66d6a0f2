"""Verbs are light: exactly what each may import, up to its end against a proxy that says yes to everything.

A start of the interpreter takes 10 ms; ``re``, ``enum``, ``json``, ``typing``, ``contextlib`` or ``socket`` take 3 to
10 more each.  Who adds a module here makes every call of that verb slower, and says so by adding it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata import state, wire

HERE = Path(__file__).resolve().parents[2]
FLAVORS = ("unified", "clear", "runv")
PLACES = [str(HERE), str(HERE / "agent"), *(str(HERE / "backends" / flavor) for flavor in FLAVORS)]

#: What every verb needs.  ``_x`` is a part of the interpreter, not a module of the library.
CORE = set("""
    __future__ errno gc _json
    kata kata.cli kata.cli.context kata.errors kata.flavors kata.jsontext kata.log kata.personality kata.record
    kata.state kata.table
""".split())
#: What the interpreter itself needs to find a module, and loads for one or another version of it.
LOOKUP = set("os os.path posixpath genericpath stat _stat _collections_abc zipimport time _codecs".split())
TALK = {"kata.wire", "_socket", "_struct", "struct"}
#: contextlib and what it brings.
STACKS = set("contextlib collections collections.abc functools types itertools keyword operator reprlib _collections "
             "_functools _operator".split())
SYSCALLS = set("ctypes _ctypes ctypes._endian kata_agent kata_agent.linux kata_agent.linux.syscalls".split())
CGROUPS = {"kata.cgroups", "kata.cgroups.group", "kata.cgroups.paths", "kata.cgroups.oom", "kata.record", "kata.spawn",
           "select", *STACKS}
OCI = {"kata.oci", "kata.oci.check", "kata.oci.schema", "kata.oci.support"}

ALLOWED: dict[str, set[str]] = {
    "state": set(),
    "list": set(),
    "kill": TALK,
    "pause": TALK,
    "resume": TALK,
    "ps": TALK,
    "start": TALK,
    "delete": {"kata.teardown", *TALK, *CGROUPS},
    "exec": {"kata.cli.create", "kata.oci.extras", "kata.shim", "_collections", "binascii", "select", *OCI, *TALK},
}
WORDS = {"list": ["list"], "kill": ["kill", "c", "TERM"], "exec": ["exec", "c", "true"]}

PROGRAM = """
import sys
before = set(sys.modules)
sys.path += {places!r}
from kata import state
state.RUN_DIR = {run!r}
sys.argv = ["kata", "--root", {root!r}, *{words!r}]
from kata.cli import main
code = main()
sys.stdout.flush()
print()
print(code, *sorted(set(sys.modules) - before))
"""
#: What a successful create imports, which only root can run to its end.
CREATE = """
import sys
before = set(sys.modules)
sys.path += {places!r}
import kata.cli.create, kata.cli.context, kata.oci, kata.loader, kata.hostfacts, kata.assets.store
import kata_{flavor}.backend, kata.sandbox, kata.cgroups.limits
print(0, *sorted(set(sys.modules) - before))
"""


SHIM = """
import sys
before = set(sys.modules)
sys.path.append({place!r})
import kata.shim
print(0, *sorted(set(sys.modules) - before))
"""


def imported(program: str) -> tuple[str, set[str]]:
    """(exit code of the verb, modules)."""
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, timeout=60,
                          check=True, stdin=subprocess.DEVNULL)
    code, *modules = done.stdout.splitlines()[-1].split()
    return code + done.stderr, set(modules) - LOOKUP


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Path]:
    """A running container ``c``, whose proxy agrees to everything."""
    root, run = tmp_path / "root", tmp_path / "run"
    own = {"pid": os.getpid(), "start": state.start_time(os.getpid())}
    (root / "c").mkdir(parents=True)
    (run / "sandboxes" / "s").mkdir(parents=True)
    record = {
        "version": state.VERSION, "ociVersion": "1.2.0", "id": "c", "status": "running", "pid": own["pid"],
        "pid_start": own["start"], "bundle": "/b", "annotations": {}, "rootfs": "/r", "created": "now", "owner": "#0",
        "creator": 0, "creator_start": 0, "flavor": "unified", "backend": "", "sandbox_id": "c", "sandbox_key": "s",
        "role": "single", "cgroup": "", "terminal": False, "hooks": {"poststart": [], "poststop": []}}
    state.write_json(f"{root}/c/state.json", record)
    state.write_json(f"{root}/c/process.json", {
        "version": state.VERSION, "process": {"args": ["x"], "cwd": "/", "user": {"uid": 0, "gid": 0}}, "extras": {}})
    state.write_json(f"{run}/sandboxes/s/sandbox.json",
                     {"version": state.VERSION, "id": "c", "containers": {"c": {}, "other": {}}})
    listener = socket.socket(fileno=wire.listening_socket(f"{run}/sandboxes/s/proxy.sock").detach())
    threading.Thread(target=serve, args=(listener,), daemon=True).start()
    yield tmp_path
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def serve(listener: socket.socket) -> None:
    while True:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        decoder = wire.Decoder()
        with sock:
            while data := sock.recv(1 << 16):
                for kind, _flags, payload in decoder.feed(data):
                    if kind != wire.REQUEST:
                        continue  # a shim's acknowledgements
                    sock.sendall(wire.pack_json(wire.REPLY, {"text": "", "last": False, "phases": [], "boot_nsec": {}}))
                    if json.loads(payload)["op"] == "attach":
                        for stream in (wire.STDOUT, wire.STDERR):
                            sock.sendall(wire.pack_data(stream, 0, b"", eof=True))
                        sock.sendall(wire.pack_json(wire.EXIT, {"status": 0}))


@pytest.mark.parametrize("verb", ALLOWED)
def test_a_hot_verb_imports_what_it_needs(verb: str, proxy: Path) -> None:
    if verb == "delete":  # it waits for the shim's end
        record = state.read_json(f"{proxy}/root/c/state.json")
        state.write_json(f"{proxy}/root/c/state.json", {**record, "status": "stopped", "pid": 0, "pid_start": 0,
                                                        "cgroup": "cpu:/kata-test-none"})
    words = WORDS.get(verb, [verb, "c"])
    code, modules = imported(PROGRAM.format(places=PLACES, run=str(proxy / "run"), root=str(proxy / "root"),
                                            words=words))
    assert code == "0"
    extra = modules - CORE - {f"kata.cli.{verb}"} - ALLOWED[verb]
    assert not extra, f"{verb} imports {sorted(extra)}"
    assert modules >= {m for m in ALLOWED[verb] if m.startswith("kata.")}, "the list allows more than is needed"


@pytest.mark.parametrize("flavor", FLAVORS)
def test_create_imports_what_it_needs(flavor: str) -> None:
    code, modules = imported(CREATE.format(places=PLACES, flavor=flavor))
    assert code == "0"
    library = {m for m in modules if m.split(".")[0] not in ("kata", "kata_agent", f"kata_{flavor}")}
    allowed = {"__future__", "_json", "errno", "gc", "binascii", "fcntl", "select", "_socket", "_struct", "struct",
               "_sha256", *STACKS, *SYSCALLS}
    assert not library - allowed, f"create imports {sorted(library - allowed)}"
    assert not {m for m in modules if m.startswith(("kata.proxy", "kata.vm", "kata.seccomp", "kata_agent.protocol"))}


def test_the_shim_needs_only_the_standard_library() -> None:
    code, modules = imported(SHIM.format(place=str(HERE)))
    assert code == "0"
    assert modules == {"__future__", "_json", "_collections", "_socket", "_struct", "struct", "select", "kata",
                       "kata.errors", "kata.jsontext", "kata.shim", "kata.wire"}


def test_no_timing_is_asked_for_by_default(proxy: Path) -> None:
    words = ["exec", "c", "true"]
    program = PROGRAM.format(places=PLACES, run=str(proxy / "run"), root=str(proxy / "root"), words=words)
    code, modules = imported(program)
    assert code == "0" and "kata.cli.timings" not in modules
    code, modules = imported(program.replace('["kata", ', '["kata", "--timings", '))
    assert "kata.cli.timings" in modules
    assert code.startswith("0") and "runs in the guest" in code
