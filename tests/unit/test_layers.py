"""Architecture as a test: who may import whom, and the one gate of each heavy library.

Imports go downward only.  A module may import units of lower layers, its own
unit, and what ``BESIDE`` allows with a reason.  Imports for type checkers alone
(``if TYPE_CHECKING``) do not count.
"""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parents[2]
ROOTS = {"kata": HERE / "kata", "kata_agent": HERE / "agent" / "kata_agent",
         **{p.name: p for p in (HERE / "backends").glob("*/kata_*") if p.is_dir() and p.suffix == ""}}

#: The table.  A unit is a module or a package with all that is in it.
LAYERS = [
    # 0: nothing of ours below
    ["kata.errors", "kata.digest", "kata.jsontext", "kata.log", "kata.record", "kata.build", "kata_agent.linux"],
    # 1: data, files, processes
    ["kata.contract", "kata.planjson", "kata.oci", "kata.config", "kata.state", "kata.wire", "kata.hostfacts",
     "kata.process", "kata.spawn", "kata.table", "kata.personality", "kata.nvdimm"],
    # 2: one host facility each
    ["kata.assets", "kata.storage", "kata.network", "kata.cgroups", "kata.seccomp", "kata.guestspec", "kata.vm",
     "kata.hooks", "kata.template", "kata.joining", "kata.machineplan", "kata.pods", "kata.changes"],
    # 3: policy; see BACKENDS
    ["kata_unified", "kata_clear", "kata_runv"],
    # 4: making and ending a sandbox
    ["kata.greeting", "kata.agent_client", "kata.transport", "kata.flavors", "kata.loader", "kata.daemons",
     "kata.teardown", "kata.revive", "kata.pool", "kata.sandbox", "kata.migrate", "kata.engines"],
    # 5: programs
    ["kata.cli", "kata.shim", "kata.proxy", "kata.components", "kata.conformance", "kata_clear.verbs",
     "kata_runv.verbs"],
]
#: Imports within a layer, and why.
BESIDE = {
    ("kata.agent_client", "kata.greeting"): "it goes on with a connection",
    ("kata.transport", "kata.greeting"): "one deadline of requests",
    ("kata.transport", "kata.agent_client"): "one interface to all agents",
    ("kata.log", "kata.jsontext"): "a line may be JSON",
    ("kata.config", "kata.contract"): "RuntimeConfig is what it makes",
    ("kata.config", "kata.state"): "what a file said is kept",
    ("kata.joining", "kata.network"): "a sandbox is found by its network namespace",
    ("kata.guestspec", "kata.seccomp"): "a plan holds the compiled filter",
    ("kata.loader", "kata.flavors"): "the default flavor needs no plugin to speak",
    ("kata.sandbox", "kata.loader"): "a record names the backend's class",
    ("kata.sandbox", "kata.daemons"): "it starts them",
    ("kata.sandbox", "kata.teardown"): "it undoes a failed creation",
    ("kata.sandbox", "kata.revive"): "a container may join a sandbox whose proxy is gone",
    ("kata.sandbox", "kata.pool"): "it claims a machine",
    ("kata.pool", "kata.daemons"): "the keeper starts proxies and makers of templates",
    ("kata.pool", "kata.teardown"): "the keeper ends machines",
    ("kata.revive", "kata.daemons"): "it starts a proxy",
    ("kata.migrate", "kata.revive"): "a container is adopted whose proxy is gone",
    ("kata.migrate", "kata.loader"): "a record names the backend's class",
    ("kata.migrate", "kata.flavors"): "what it migrates from and to",
    ("kata.migrate", "kata.engines"): "engines' files are read and changed in one way",
    ("kata.engines", "kata.flavors"): "a program's name is a flavor's",
    ("kata.engines", "kata.loader"): "which flavors there are",
    ("kata_clear.verbs", "kata.cli"): "a verb of its own does what a common one does",
    ("kata_runv.verbs", "kata.cli"): "the same",
    ("kata.components", "kata.shim"): "the same signals are forwarded",
    ("kata.cli", "kata.conformance"): "its verb",
    ("kata.cli", "kata.shim"): "run and exec in the foreground are their own shim",
}
#: What a backend may import of the project: policy needs no machinery.
BACKENDS = {"kata.errors", "kata.record", "kata.contract", "kata.oci", "kata.config", "kata.guestspec",
            "kata.machineplan", "kata.pods",
            "kata.personality", "kata.table", "kata.log"}

#: Heavy or dangerous module -> units that may import it.
GATES = {
    "stevedore": {"kata.loader"},
    "grpc": {"kata.transport.grpc_gate"},
    "qemu": {"kata.vm.qmp"},
    "tomli": {"kata.config.document"},
    "tomllib": set(),
    "tomlkit": {"kata.config.edit"},
    "google": {"kata.agent_client", "kata.proxy", "kata.transport", "kata.components", "kata_agent",
               "kata.conformance.engines.cri_messages"},
    "kata_agent.protocol": {"kata.greeting", "kata.agent_client", "kata.proxy", "kata.transport", "kata.components",
                            "kata_agent"},
    "asyncio": {"kata.agent_client", "kata.proxy", "kata.transport", "kata.components", "kata.vm",
                "kata.conformance.engines.cri"},
    "subprocess": {"kata.process"},
    "multiprocessing": set(),
    "click": {"kata.cli"},
    "ctypes": {"kata.seccomp", "kata.storage", "kata_agent.linux", "kata_agent.seccomp"},
}
#: Function -> units that may call it.
CALLS = {
    "os.fork": {"kata.spawn", "kata.shim", "kata_agent"},
    "os.posix_spawn": {"kata.shim"},
    "os.system": set(),
    "os.popen": set(),
    "sys.exit": {"kata.cli", "kata.shim", "kata.components", "kata.proxy.__main__", "kata.proxy.factory", "kata.revive",
                 "kata_agent"},
    "time.sleep": {"kata.cgroups"},  # cgroup v1 tells nobody when it is empty
}
MAX_LINES = 550
#: Parts of the agent that the host uses.
SHARED = {"kata_agent.linux", "kata_agent.protocol"}


def sources() -> dict[str, Path]:
    """Module name -> file, of all our packages but generated code."""
    found = {}
    for top, folder in ROOTS.items():
        for file in folder.rglob("*.py"):
            if file.stem.endswith(("_pb2", "_pb2_grpc")):
                continue
            parts = file.relative_to(folder).with_suffix("").parts
            found[".".join((top, *(p for p in parts if p != "__init__")))] = file
    return found


SOURCES = sources()


def within(module: str, units: set[str] | list[str]) -> str:
    """The unit that a module belongs to, "" if none."""
    return next((u for u in units if module == u or module.startswith(u + ".")), "")


@functools.cache
def layer_of(module: str) -> tuple[int, str]:
    """(layer, unit) of a module; -1 if the table lacks it."""
    found = [(len(unit), number, unit) for number, units in enumerate(LAYERS) if (unit := within(module, units))]
    return max(found)[1:] if found else (-1, module)


@functools.cache
def text(module: str) -> str:
    return SOURCES[module].read_text()


@functools.cache
def tree(module: str) -> ast.Module:
    return ast.parse(text(module))


def import_statements(module: str) -> Iterator[tuple[int, ast.stmt]]:
    """(line, statement) of every import that is carried out.

    Lines are looked at, and only imports are parsed: a tree of everything takes
    a second.
    """
    lines = text(module).splitlines()
    checked_only = -1  # indentation of the ``if TYPE_CHECKING`` that the line is in
    number, quoted = 0, False
    while number < len(lines):
        line = lines[number]
        number += 1
        if line.count('"""') % 2:
            quoted = not quoted
        if quoted:
            continue
        words = line.lstrip()
        if not words:
            continue
        indentation = len(line) - len(words)
        if indentation <= checked_only:
            checked_only = -1
        if words.startswith("if ") and "TYPE_CHECKING" in words:
            checked_only = indentation
        if checked_only >= 0 or not words.startswith(("import ", "from ")):
            continue
        first = number
        while "(" in words and ")" not in words and number < len(lines):
            words += lines[number].partition("#")[0]
            number += 1
        yield first, ast.parse(words).body[0]


@functools.cache
def imports(module: str) -> list[tuple[int, str]]:
    """(line, imported module) of every import, also those inside functions."""
    found = []
    for line, node in import_statements(module):
        if isinstance(node, ast.Import):
            found += [(line, name.name) for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{module}: relative import"
            for name in node.names:
                full = f"{node.module}.{name.name}"
                is_module = full in SOURCES or node.module in ("kata_agent", "kata_agent.protocol", "google")
                found.append((line, full if is_module else node.module))
    return found


def calls(module: str) -> Iterator[tuple[int, str]]:
    """(line, ``module.function``) of every call of a function in CALLS."""
    if not any(f"{name}(" in text(module) for name in CALLS):
        return
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Call):
            match node.func:
                case ast.Attribute(value=ast.Name(id=module_name), attr=function):
                    yield node.lineno, f"{module_name}.{function}"


def check(module: str, target: str) -> str:
    """Why a module may not import ``target``, "" if it may."""
    gate = within(target, list(GATES))
    if gate and not within(module, GATES[gate]):
        return f"only {', '.join(sorted(GATES[gate])) or 'nothing'} may import {gate}"
    if target.partition(".")[0] not in ROOTS or target in ("kata", "kata_agent"):
        return ""
    if module.startswith("kata_agent"):
        return "" if target.startswith("kata_agent") else "the agent knows nothing of the host"
    if target.startswith("kata_agent") and not within(target, SHARED):
        return "host and guest share kata_agent.linux and kata_agent.protocol only"
    (layer, unit), (below, other) = layer_of(module), layer_of(target)
    if layer == 3 and other != unit:
        return "" if within(target, BACKENDS) else f"a backend may import {', '.join(sorted(BACKENDS))}"
    if within(target, SHARED) or unit == other or (below < layer and below != 3) or (unit, other) in BESIDE:
        return ""
    return f"{unit} (layer {layer}) may not import {other} (layer {below})"


def test_imports_go_downward() -> None:
    wrong = [f"{SOURCES[module].relative_to(HERE)}:{line}: imports {target}: {why}"
             for module in sorted(SOURCES) for line, target in imports(module) if (why := check(module, target))]
    assert not wrong, "\n" + "\n".join(wrong)


def test_processes_have_few_doors() -> None:
    wrong = [f"{SOURCES[module].relative_to(HERE)}:{line}: only {sorted(CALLS[name]) or 'nothing'} may call {name}"
             for module in sorted(SOURCES) for line, name in calls(module)
             if name in CALLS and not within(module, CALLS[name])]
    assert not wrong, "\n" + "\n".join(wrong)


def test_every_module_is_in_the_table() -> None:
    missing = [m for m in SOURCES if not m.startswith("kata_agent") and m != "kata" and layer_of(m)[0] < 0]
    assert not missing, f"add to LAYERS: {missing}"


def test_the_table_has_no_dead_lines() -> None:
    """Exceptions that nothing uses any more are removed."""
    used = {(layer_of(m)[1], layer_of(t)[1]) for m in SOURCES for _line, t in imports(m)}
    assert not set(BESIDE) - used


@pytest.mark.parametrize(("module", "target"), [
    ("kata.oci", "kata.state"), ("kata.vm.argv", "kata.storage.share"), ("kata_unified.backend", "kata.vm.argv"),
    ("kata_unified.backend", "kata_clear"), ("kata.sandbox", "kata.cli"), ("kata.cli.state", "grpc"),
    ("kata.loader", "kata_unified"), ("kata_agent.server", "kata.errors"), ("kata.cli.run", "kata_agent.container"),
    ("kata.config.keys", "tomli"), ("kata.storage.clone", "kata_agent.protocol.agent_pb2"),
])
def test_the_table_forbids(module: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ROOTS, "kata_clear", HERE)
    assert check(module, target)


def test_files_can_be_read_in_one_sitting() -> None:
    long = {m: n for m in SOURCES if (n := text(m).count("\n")) > MAX_LINES}
    assert not long, f"split: {long}"


#: What is built into Debian's interpreter, which the guest has, but not into every one.
BUILT_IN = {"_collections", "_signal", "_socket", "array", "binascii", "fcntl", "math", "select", "_struct"}


def test_the_guest_holds_what_the_agent_imports() -> None:
    """Wherever in a function it does: the image's build sees only what is imported at once."""
    from kata.assets.guest import MODULES

    missing = set()
    for path in sorted((HERE / "agent" / "kata_agent").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
                node.body = []  # for type checkers alone
        for node in ast.walk(tree):
            names = ([alias.name for alias in node.names] if isinstance(node, ast.Import)
                     else [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else [])
            missing |= {(str(path.relative_to(HERE)), name) for name in names
                        if name.partition(".")[0] in sys.stdlib_module_names - set(sys.builtin_module_names)
                        and name.partition(".")[0] not in MODULES}
    assert not {(file, name) for file, name in missing if name not in BUILT_IN}
