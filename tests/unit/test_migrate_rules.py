"""Migration's tables: what a flavor planned is what unified plans afterwards, but for what a row of the report says."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata import oci
from kata.cli.plan import _flat
from kata.config import document, kata1
from kata.contract import Backend, InvocationOptions
from kata.errors import ConfigError
from kata.migrate import CHANGED, DROPPED, RENAMED, SAME, UNKNOWN, Row, Setting, carry, sources, target
from kata.migrate.carry import Carried
from kata.migrate.tables import clear as clear_table
from kata.migrate.tables import kata as kata_table
from kata.migrate.tables import reverse, runv
from kata.planjson import to_json
from kata_clear import ClearBackend
from kata_clear import assets as clear_assets
from kata_clear import backend as clear_backend
from kata_clear import language as clear_language
from kata_runv import RunvBackend
from kata_runv import language as runv_language
from kata_unified import UnifiedBackend

MIB = 1 << 20


def settings(folder: Path, text: str) -> list[Setting]:
    (folder / "c.toml").write_text(text)
    return sources.settings(document.read(str(folder / "c.toml")))


def rows(carried: Carried) -> dict[str, Row]:
    return {row.key: row for row in carried.rows}


# --- the plan before and after ------------------------------------------------------------


def plans(backend: Backend, options: InvocationOptions, resources: Mapping[str, Any]) -> dict[str, Any]:
    spec = {"ociVersion": "1.0.0", "process": {"args": ["true"], "cwd": "/"}, "root": {"path": "/"},
            "linux": {"namespaces": [{"type": "pid"}], "resources": resources}}
    bundle = oci.Bundle("c1", "/", spec, "/proc", ())
    config = backend.load_config(options, {})
    return dict(_flat("", {"sandbox": to_json(backend.plan_sandbox(config, bundle, options)),
                           "container": to_json(backend.plan_container(config, bundle, "c1", "single"))}))


def compare(folder: Path, before: Mapping[str, Any], carried: Carried, resources: Mapping[str, Any]) -> None:
    """Unified's plan differs in nothing but what a row names."""
    (folder / "u.toml").write_text(target.new(carried.values, "a test"))
    after = plans(UnifiedBackend(), options(folder, "u.toml"), resources)
    named = {field for row in carried.rows if row.kind in (CHANGED, DROPPED) for field in row.fields}
    differs = {field for field in {*before, *after} if before.get(field) != after.get(field)}
    # A flavor's name is what migration changes; a clear container's warnings tell of Clear's own parts.
    left = differs - named - {"sandbox.flavor", "container.flavor", "container.warnings"}
    assert not left, {field: (before.get(field), after.get(field)) for field in left}


def options(folder: Path, config: str = "", **flavor: str) -> InvocationOptions:
    initrd = folder / "initrd"
    initrd.write_bytes(b"x")
    (folder / "image").write_bytes(b"x")
    return InvocationOptions(
        config_path=f"{folder}/{config}" if config else "", options=flavor, host_cpus=4, host_memory=8192,
        kernel_asset="/k", initrd_asset=str(initrd), image_asset=f"{folder}/image", boot_initrd_asset="/b")


RESOURCES = st.fixed_dictionaries({}, optional={
    "memory": st.builds(lambda mib: {"limit": mib * MIB}, st.integers(16, 4096)),
    "cpu": st.fixed_dictionaries({}, optional={"quota": st.integers(1000, 1_000_000), "cpus": st.just("0-2")}),
})
BOOLS = st.booleans()
CLEAR = st.fixed_dictionaries({}, optional={
    ("hypervisor.qemu", "path"): st.sampled_from(["/usr/bin/qemu-lite-system-x86_64", "/usr/bin/qemu-system-x86_64"]),
    ("hypervisor.qemu", "kernel"): st.sampled_from(["", "/usr/share/clear-containers/vmlinuz.container"]),
    ("hypervisor.qemu", "image"): st.sampled_from(["", "/usr/share/clear-containers/clear-containers.img"]),
    ("hypervisor.qemu", "machine_type"): st.sampled_from(["", "pc", "q35"]),
    ("hypervisor.qemu", "machine_accelerators"): st.sampled_from(["", "usb=off"]),
    ("hypervisor.qemu", "kernel_params"): st.sampled_from(["", "a=1 b", "quiet"]),
    ("hypervisor.qemu", "default_vcpus"): st.integers(-2, 9),
    ("hypervisor.qemu", "default_bridges"): st.integers(0, 5),
    ("hypervisor.qemu", "default_memory"): st.integers(0, 4096),
    ("hypervisor.qemu", "disable_block_device_use"): BOOLS,
    ("hypervisor.qemu", "block_device_driver"): st.sampled_from(["virtio-blk", "virtio-scsi"]),
    ("hypervisor.qemu", "enable_mem_prealloc"): BOOLS, ("hypervisor.qemu", "enable_hugepages"): BOOLS,
    ("hypervisor.qemu", "enable_swap"): BOOLS, ("hypervisor.qemu", "enable_debug"): BOOLS,
    ("hypervisor.qemu", "disable_nesting_checks"): BOOLS,
    ("proxy.cc", "path"): st.just("/usr/libexec/clear-containers/cc-proxy"), ("proxy.cc", "enable_debug"): BOOLS,
    ("shim.cc", "enable_debug"): BOOLS, ("agent.kata", "enable_debug"): BOOLS,
    ("agent.kata", "boot_timeout"): st.integers(1, 3600),
    ("runtime", "internetworking_model"): st.sampled_from(["macvtap", "bridged", "default"]),
    ("runtime", "enable_debug"): BOOLS,
})


@given(CLEAR, RESOURCES)
def test_clear_plans_what_unified_plans_then(values: dict[tuple[str, str], Any], resources: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        folder = Path(name)
        text = target.new(values, "a test")
        (folder / "clear.toml").write_text(text)
        before = plans(ClearBackend(), options(folder, "clear.toml"), resources)
        carried = carry.clear(settings(folder, text), image=f"{folder}/image")
        assert {r.key for r in carried.rows} >= {f"[{t}] {k}" for t, k in values}
        compare(folder, before, carried, resources)


RUNV = st.fixed_dictionaries({}, optional={
    "driver": st.sampled_from(["qemu", "kvm"]), "agent": st.just("kata"),
    "default_cpus": st.integers(1, 8).map(str), "default_memory": st.integers(1, 4096).map(str),
    "template": st.just("/t"), "debug": st.just("true"),
})


@given(RUNV, RESOURCES)
def test_runv_plans_what_unified_plans_then(given_options: dict[str, str], resources: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        folder = Path(name)
        before = plans(RunvBackend(), options(folder, **given_options), resources)
        words = [word for key, value in given_options.items()
                 for word in ([f"--{key}"] if key == "debug" else [f"--{key}", value])]
        carried = carry.runv(sources.runv_options(words))
        assert {r.key for r in carried.rows} >= {f"--{key}" for key in given_options}
        compare(folder, before, carried, resources)


@given(CLEAR)
def test_there_and_back(values: dict[tuple[str, str], Any]) -> None:
    """Clear -> unified -> clear: what Clear's loader makes of both files differs in nothing but what a row names."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        folder = Path(name)
        there = carry.clear(settings(folder, target.new(values, "a test")))
        back = carry.to_clear(settings(folder, target.new(there.values, "a test")))
        (folder / "one.toml").write_text(target.new(values, "a test"))
        (folder / "two.toml").write_text(target.new(back.values, "a test"))
        before, after = (plans(ClearBackend(), options(folder, n), {}) for n in ("one.toml", "two.toml"))
        named = {f for c in (there, back) for row in c.rows if row.kind in (CHANGED, DROPPED) and row.new_key
                 for f in row.fields}
        differs = {f for f in before if before[f] != after[f]} - named - {"container.warnings"}
        assert not differs, {f: (before[f], after[f]) for f in differs}


def test_unified_defaults_as_runv_options() -> None:
    carried = carry.to_runv([Setting("hypervisor.qemu", "default_vcpus", 12),
                             Setting("hypervisor.qemu", "default_memory", 512),
                             Setting("hypervisor.qemu", "enable_debug", True),
                             Setting("factory", "template_path", "/t"),
                             Setting("runtime", "internetworking_model", "macvtap")])
    assert carried.values == {("", "default_cpus"): 8, ("", "default_memory"): 512, ("", "debug"): True,
                              ("", "template"): "/t"}
    found = rows(carried)
    assert found["[hypervisor.qemu] default_vcpus"].kind == CHANGED
    assert found["[hypervisor.qemu] default_memory"].new_key == "--default_memory"
    assert found["[runtime] internetworking_model"].kind == DROPPED
    assert carry.to_runv([]).values == {("", "default_memory"): 2048}
    with pytest.raises(ConfigError, match="default_memory: a whole number"):
        carry.to_runv([Setting("hypervisor.qemu", "default_memory", "much")])


# --- the tables ---------------------------------------------------------------------------


def test_the_tables_know_every_key_of_the_flavors() -> None:
    """A key that a flavor takes is in its table; what is said of its defaults and places is what the flavor has."""
    for table, keys in clear_language.LANGUAGE.items():
        found = carry.clear([Setting(table, key, _any(spec)) for key, spec in keys.items()])
        assert not [r for r in found.rows if r.kind == UNKNOWN]
    own = {**clear_language.DEFAULTS}
    names = {("hypervisor.qemu", "machine_type"): "machine_type",
             ("hypervisor.qemu", "block_device_driver"): "block_device_driver",
             ("runtime", "internetworking_model"): "internetworking_model", ("factory", "enable_template"): "template"}
    assert {names[key]: value for key, value in clear_table.DEFAULTS.items()} == own
    assert clear_table.PLACES == clear_backend.CONFIG_PATHS
    assert (clear_table.DEFAULT_MEMORY, clear_table.LEAST_ASKED) == (
        clear_language.DEFAULT_MEMORY, clear_language.LEAST_ASKED)
    for places in clear_assets.CLEARS_OWN.values():
        for place in places:
            key = "path" if "qemu" in place else "image" if place.endswith("img") else "kernel"
            assert rows(carry.clear([Setting("hypervisor.qemu", key, place)]))[
                f"[hypervisor.qemu] {key}"].kind == CHANGED
    assert {key for _t, key in runv.RULES} == {*runv_language.OPTIONS, "debug", "log_dir"}
    assert runv_language.DEFAULTS["default_memory"] == runv.DEFAULT_MEMORY
    for key in reverse.LANGUAGE_OF_CLEAR:
        assert key in clear_language.LANGUAGE
        assert set(reverse.LANGUAGE_OF_CLEAR[key]) <= set(clear_language.LANGUAGE[key])


def _any(key: Any) -> Any:
    """A value that a key takes."""
    for value in (False, 256, 1, "", "pc", "virtio-blk", "macvtap", "ttrpc", "auto", "/x", [], "virtio-9p"):
        try:
            key.convert(value)
        except ValueError:
            continue
        return value
    raise AssertionError(key)


@pytest.mark.parametrize("table", [clear_table.RULES, kata_table.RULES])
def test_what_rules_write_is_a_key(table: Mapping[tuple[str, str], Any]) -> None:
    for (place, key), rule in table.items():
        if rule.kind in (SAME, RENAMED, CHANGED) and key != "*":
            moved = {**clear_table.MOVED, **kata_table.MOVED}.get(place, place)
            assert (rule.key or key) in kata1.LANGUAGE[rule.table or moved], (place, key)


def test_dropped_rows_say_why() -> None:
    """The consequence is there, and no row of a class is without words where words are due."""
    for table in (clear_table.BEHAVIOURS, runv.BEHAVIOURS):
        assert all(b.why and b.old and b.new for b in table)
    values: Sequence[Any] = (True, 1, "x", "virtio-fs", ["x"], 0, "")
    for (place, key), rule in kata_table.RULES.items():
        for value in values:
            try:
                carried = carry.kata([Setting(place, "any" if key == "*" else key, value)])
            except (ConfigError, TypeError, ValueError):
                continue
            [row] = [r for r in carried.rows if not r.why.startswith("not set")]
            assert row.why or row.kind in (SAME, RENAMED), (row, rule)


# --- languages ----------------------------------------------------------------------------


def test_kata_of_any_version(tmp_path: Path) -> None:
    carried = carry.kata(settings(tmp_path, """
        [hypervisor.qemu]
        default_vcpus = 1.5
        shared_fs = "virtio-fs"
        confidential_guest = false
        disable_selinux = true
        use_vsock = true
        image = "/opt/kata/share/kata-containers/kata-containers.img"
        path = "/opt/kata/bin/qemu-system-x86_64"
        [hypervisor.qemu.factory]
        enable_template = false
        [agent.kata]
        dial_timeout_ms = 45500
        [runtime]
        static_sandbox_resource_mgmt = true
        name = "virt_container"
        [proxy.kata]
        path = "/usr/libexec/kata-proxy"
        """))
    found = rows(carried)
    assert carried.values == {
        ("hypervisor.qemu", "default_vcpus"): 2, ("hypervisor.qemu", "shared_fs"): "virtio-9p",
        ("factory", "enable_template"): False, ("agent.kata", "boot_timeout"): 46}
    kinds = {key: row.kind for key, row in found.items() if row.file}
    assert kinds == {
        "[hypervisor.qemu] default_vcpus": RENAMED, "[hypervisor.qemu] shared_fs": CHANGED,
        "[hypervisor.qemu] confidential_guest": DROPPED, "[hypervisor.qemu] disable_selinux": DROPPED,
        "[hypervisor.qemu] use_vsock": DROPPED, "[hypervisor.qemu] image": CHANGED, "[hypervisor.qemu] path": CHANGED,
        "[hypervisor.qemu.factory] enable_template": RENAMED, "[agent.kata] dial_timeout_ms": RENAMED,
        "[runtime] static_sandbox_resource_mgmt": CHANGED, "[runtime] name": DROPPED, "[proxy.kata] path": DROPPED}
    assert found["[agent.kata] dial_timeout_ms"].line == 13
    assert found["[runtime] disable_guest_seccomp"].new is False and not found["[runtime] disable_guest_seccomp"].file


def test_the_table_of_another_hypervisor() -> None:
    carried = carry.kata([Setting("hypervisor.clh", "default_vcpus", 3), Setting("hypervisor.clh", "path", "/clh")])
    assert carried.values == {("hypervisor.qemu", "default_vcpus"): 3}
    assert rows(carried)["[hypervisor.clh] path"].kind == DROPPED
    both = carry.kata([Setting("hypervisor.qemu", "default_vcpus", 1), Setting("hypervisor.clh", "default_vcpus", 3)])
    assert both.values == {("hypervisor.qemu", "default_vcpus"): 1}


def test_an_unknown_key_blocks_unless_it_is_named(tmp_path: Path) -> None:
    text = "[hypervisor.qemu]\ndefault_memry = 5\n[nonsense]\nx = 1\n"
    found = rows(carry.clear(settings(tmp_path, text)))
    row = found["[hypervisor.qemu] default_memry"]
    assert (row.kind, row.line) == (UNKNOWN, 2)
    assert row.why == "nothing is known of this key (did you mean 'default_memory'?)"
    assert row.instead == "correct it, or leave it out with --accept hypervisor.qemu.default_memry"
    assert found["[nonsense] x"].kind == UNKNOWN
    accepted = carry.clear(settings(tmp_path, text), accepted=["default_memry", "[nonsense] x"])
    assert {r.kind for r in accepted.rows if r.file} == {DROPPED}


@pytest.mark.parametrize(("text", "error"), [
    ("[hypervisor.qemu]\ndefault_vcpus = true\n", r":2: default_vcpus: a whole number from -1024 to 1024 is expected"),
    ("[hypervisor.qemu]\ndefault_memory = \"2G\"\n", r":2: default_memory: a whole number"),
    ("[hypervisor.qemu]\nmachine_type = [\"pc\"]\n", r":2: machine_type: one of"),
    ("[proxy.cc]\nenable_debug = 1\n", r":2: enable_debug: true or false is expected"),
    ("[hypervisor.qemu]\nkernel = \"a\"\nkernel = \"b\"\n", r":3: Cannot overwrite a value"),
    ("[hypervisor.qemu\n", r":1: Expected"),
])
def test_wrong_values_are_errors(tmp_path: Path, text: str, error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        carry.clear(settings(tmp_path, text))


KEYS = sorted({*kata_table.RULES, *clear_table.RULES, *((t, k) for t, keys in kata1.LANGUAGE.items() for k in keys),
               ("hypervisor.clh", "default_memory"), ("x", "y")})
ANY = st.recursive(st.booleans() | st.integers() | st.floats() | st.text(max_size=3), lambda v: st.lists(v, max_size=2),
                   max_leaves=3)


@given(st.lists(st.builds(Setting, st.just("t"), st.just("k"), ANY), max_size=3), st.data())
def test_no_value_is_a_surprise(values: list[Setting], data: st.DataObject) -> None:
    """Whatever stands in a file: a row for each key, or an error that a user can read."""
    places = [data.draw(st.sampled_from(KEYS)) for _ in values]
    found = [Setting(table, key, s.value) for (table, key), s in zip(places, values, strict=True)]
    for work in (carry.clear, carry.kata, carry.to_clear, carry.to_runv):
        try:
            carried = work(found)  # type: ignore[operator]
        except ConfigError:
            continue
        assert {f"[{s.table}] {s.key}" for s in found} <= {r.key for r in carried.rows}


@pytest.mark.parametrize(("line", "error"), [
    ("--default_memory", "--default_memory lacks its value"),
    ("--default_memory x", "--default_memory: a whole number is expected, found 'x'"),
    ("--kernel /a --kernel=/b", "--kernel is given twice: remove one"),
    ("--kernl /a", r"--kernl: runV has no such option: did you mean 'kernel'\?"),
])
def test_wrong_options_are_errors(line: str, error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        sources.runv_options(line.split(), "f", 3)


def test_every_option_of_runv() -> None:
    words = ("--debug --driver xen --agent hyperstart --default_cpus=2 --kernel /k --initrd /var/lib/hyper/i --bios /b "
             "--cbfs /c --vsock --log_dir /l --root /r --log /x run --bundle /b").split()
    carried = carry.runv(sources.runv_options(words))
    found = rows(carried)
    assert {key: row.kind for key, row in found.items() if key.startswith("--")} == {
        "--debug": RENAMED, "--driver": DROPPED, "--agent": CHANGED, "--default_cpus": RENAMED, "--kernel": RENAMED,
        "--initrd": CHANGED, "--bios": RENAMED, "--cbfs": DROPPED, "--vsock": DROPPED, "--log_dir": DROPPED,
        "--root": SAME, "--log": SAME}
    assert carried.values["hypervisor.qemu", "firmware"] == "/b"
    assert all(carried.values[table, "enable_debug"] for table in ("hypervisor.qemu", *runv.DEBUG))
    assert json.dumps([{**r.__dict__} for r in carried.rows])


