"""Bundles: what is accepted, what is refused, and how the error names the place."""

from __future__ import annotations

import copy
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kata import guestspec, oci, seccomp
from kata.contract import RuntimeConfig
from kata.errors import BundleError, KataError, UnsupportedError

CONFIG: dict[str, Any] = {
    "ociVersion": "1.0.2-dev",
    "process": {
        "terminal": False,
        "user": {"uid": 0, "gid": 0, "additionalGids": [10], "umask": 18},
        "args": ["/bin/true"],
        "env": ["PATH=/bin"],
        "cwd": "/",
        "capabilities": {"bounding": ["CAP_CHOWN"], "effective": ["CAP_CHOWN"]},
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 512}],
        "noNewPrivileges": True,
        "oomScoreAdj": 100,
    },
    "root": {"path": "rootfs", "readonly": True},
    "hostname": "box",
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "size=1m"]},
    ],
    "hooks": {"prestart": [{"path": "/bin/true", "args": ["true"], "timeout": 3}]},
    "annotations": {"a": "b"},
    "linux": {
        "resources": {
            "devices": [{"allow": False, "access": "rwm"}],
            "memory": {"limit": 1 << 28, "swappiness": 2**64 - 1},
            "cpu": {"quota": 50000, "period": 100000},
        },
        "cgroupsPath": "/x",
        "namespaces": [{"type": t} for t in ("pid", "network", "ipc", "uts", "mount")],
        "devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o20666}],
        "seccomp": {"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64"],
                    "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]},
        "maskedPaths": ["/proc/kcore"],
    },
}

Bundles = Callable[..., oci.Bundle]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rootfs").mkdir()
    return tmp_path


@pytest.fixture
def load(folder: Path) -> Bundles:
    """Load a bundle with the configuration above after ``change`` was made to it."""

    def loader(change: Callable[[dict[str, Any]], object] | None = None) -> oci.Bundle:
        config = copy.deepcopy(CONFIG)
        if change:
            change(config)
        (folder / "config.json").write_text(json.dumps(config))
        return oci.load(str(folder), "c1")

    return loader


def put(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """A change: ``value`` at a dotted path, in which numbers are array indexes."""

    def change(config: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        target: Any = config
        for p in parents:
            target = target[int(p)] if p.isdecimal() else target.setdefault(p, {})
        if isinstance(target, list):
            target[int(last)] = value
        else:
            target[last] = value

    return change


def add(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """A change: ``value`` appended to the array at a dotted path."""

    def change(config: dict[str, Any]) -> None:
        target: Any = config
        for p in path.split("."):
            target = target[p]
        target.append(value)

    return change


def test_accessors(load: Bundles, folder: Path) -> None:
    bundle = load()
    assert (bundle.id, bundle.path, bundle.rootfs) == ("c1", str(folder), str(folder / "rootfs"))
    assert (bundle.args, bundle.terminal, bundle.console_size) == (["/bin/true"], False, None)
    assert (bundle.root_readonly, bundle.hostname, bundle.domainname) == (True, "box", "")
    assert (bundle.netns, dict(bundle.join), bundle.cgroups_path) == ("", {}, "/x")
    assert bundle.hooks("prestart")[0]["path"] == "/bin/true" and not bundle.hooks("poststop")
    assert bundle.annotations == {"a": "b"} and bundle.warnings == ()
    assert bundle.seccomp and bundle.devices and bundle.resources and len(bundle.mounts) == 2


def test_null_is_absent(load: Bundles) -> None:
    bundle = load(lambda c: c.update(hooks=None, windows=None, domainname=None))
    assert "hooks" not in bundle.spec and "windows" not in bundle.spec


def test_unknown_property_is_named_and_dropped(load: Bundles) -> None:
    bundle = load(put("process.colour", {"deep": [1]}))
    assert "colour" not in bundle.process
    assert any("process.colour" in w for w in bundle.warnings)


def test_the_last_of_equal_keys_counts(load: Bundles, folder: Path) -> None:
    load()
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text('{"hostname": "first",' + text[1:])
    bundle = oci.load(str(folder), "c1")
    assert bundle.hostname == "box" and "the key 'hostname' is there twice" in bundle.warnings[0]


def test_notes_are_bounded(load: Bundles) -> None:
    assert len(load(lambda c: c.update({f"x{i}": 1 for i in range(10000)})).warnings) < 100


WRONG: list[tuple[str, Any, str]] = [
    ("process.args.0", 5, "process.args[0]: a string is expected, found a number (5)"),
    ("process.args", [], "process.args: is empty"),
    ("process.args", "sh", "process.args: an array is expected, found the string 'sh'"),
    ("process.args.0", None, "process.args[0]: a string is expected, found null"),
    ("process.env", {"A": "b"}, "process.env: an array is expected, found an object"),
    ("process.cwd", "tmp", "process.cwd: an absolute path"),
    ("process.terminal", 1, "process.terminal: a boolean"),
    ("process.user.uid", -1, "process.user.uid: a number from 0"),
    ("process.user.uid", True, "process.user.uid: a whole number is expected, found a boolean"),
    ("process.user.gid", 1.5, "process.user.gid: a whole number is expected, found a number (1.5)"),
    ("process.user.umask", 4096, "process.user.umask"),
    ("process.oomScoreAdj", 1001, "process.oomScoreAdj"),
    ("process.capabilities.bounding.0", "CAP_FLY", "process.capabilities.bounding[0]: unknown capability 'CAP_FLY'"),
    ("process.rlimits.0.type", "RLIMIT_FUN", "process.rlimits[0].type: unknown rlimit 'RLIMIT_FUN'"),
    ("process.rlimits.0.soft", 4096, "the soft limit of RLIMIT_NOFILE exceeds"),
    ("process.scheduler", {"policy": "SCHED_BEST"}, "process.scheduler.policy: unknown scheduling policy"),
    ("process.ioPriority", {"class": "IOPRIO_CLASS_X"}, "process.ioPriority.class"),
    ("process.args.0", "a\0b", "process.args[0]: holds a NUL byte"),
    ("process.env.0", "NOEQUALS", "process.env[0]: 'NOEQUALS' is not NAME=VALUE"),
    ("process.env.0", "A=\ud800", "process.env[0]: holds half of a surrogate pair"),
    ("annotations.a", 1, "annotations['a']: a string"),
    ("hostname", "h" * 65, "hostname: is longer than 64 bytes"),
    ("ociVersion", "2.0.0", "ociVersion: version '2.0.0'"),
    ("ociVersion", "one", "ociVersion"),
    ("root", {}, "root.path: is missing"),
    ("root.path", "", "root.path: is empty"),
    ("root.path", "absent", "no such file or directory"),
    ("root.path", "../../etc", "leaves the bundle"),
    ("root.path", "/", "the host's own root"),
    ("root.path", "config.json", "is not a directory"),
    ("mounts.0.destination", "/a/../b", "mounts[0].destination: '/a/../b' holds '..'"),
    ("mounts.0.destination", "/", "mounts[0].destination: a mount on '/'"),
    ("mounts.0.destination", "", "mounts[0].destination: is empty"),
    ("mounts.0.options", [1], "mounts[0].options[0]"),
    ("mounts.0", {"type": "proc"}, "mounts[0].destination: is missing"),
    ("hooks.prestart.0.path", "bin/x", "hooks.prestart[0].path: an absolute path"),
    ("hooks.prestart.0.timeout", 0, "hooks.prestart[0].timeout"),
    ("linux.namespaces.0.type", "planet", "linux.namespaces[0].type: unknown namespace 'planet'"),
    ("linux.namespaces.0.type", "ipc", "linux.namespaces[2]: 'ipc' is there twice"),
    ("linux.sysctl", {"../x": "1"}, "linux.sysctl"),
    ("linux.maskedPaths.0", "proc", "linux.maskedPaths[0]: an absolute path"),
    ("linux.devices.0.path", "/dev/../x", "linux.devices[0].path"),
    ("linux.devices.0", {"path": "/dev/x", "type": "c"}, "linux.devices[0].major: is missing"),
    ("linux.devices.0.type", "x", "unknown device type 'x' (it is about '/dev/fuse'): known are b, c, p, u"),
    ("linux.resources.memory.limit", -2, "linux.resources.memory.limit: a number from -1"),
    ("linux.resources.devices.0.access", "rx", "linux.resources.devices[0].access"),
    ("linux.resources.memory.limit", "1g", "linux.resources.memory.limit: a whole number"),
    ("linux.resources.cpu.period", -1, "linux.resources.cpu.period"),
    ("linux.seccomp.defaultAction", "SCMP_ACT_DANCE", "linux.seccomp.defaultAction: unknown seccomp action"),
    ("linux.seccomp.architectures.0", "SCMP_ARCH_PDP11", "unknown architecture"),
    ("linux.seccomp.syscalls.0.names.0", "no such", "linux.seccomp.syscalls[0].names[0]: 'no such' is not the name"),
    ("linux.seccomp.syscalls.0.args", [{"index": 0, "value": 0, "op": "SCMP_CMP_X"}], "unknown seccomp operator"),
    ("linux.seccomp.syscalls.0.args", [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}], "args[0].index"),
    ("linux.rootfsPropagation", "sideways", "unknown mount propagation"),
    ("linux.timeOffsets", {"boottime": {"secs": "1"}}, "linux.timeOffsets.boottime.secs"),
    ("windows", {}, "windows: is for windows"),
    ("vm", {"kernel": {}}, "vm: is for vm"),
]


@pytest.mark.parametrize(("path", "value", "text"), WRONG, ids=[f"{p}-{i}" for i, (p, _v, _t) in enumerate(WRONG)])
def test_wrong_value_is_named(load: Bundles, path: str, value: Any, text: str) -> None:
    with pytest.raises(BundleError) as e:
        load(put(path, value))
    assert text in str(e.value) and str(e.value).startswith("config.json: ")


@pytest.mark.parametrize("key", ["ociVersion", "process", "root", "linux"])
def test_required_parts(load: Bundles, key: str) -> None:
    with pytest.raises(BundleError, match=f"{key}: is missing"):
        load(lambda c: c.pop(key))


def test_duplicates(load: Bundles) -> None:
    with pytest.raises(BundleError, match=r"mounts\[2\]: '/proc' is mounted already by mounts\[0\]"):
        load(add("mounts", {"destination": "/proc/.", "type": "proc", "source": "proc"}))
    assert any("covers an earlier mount" in w for w in
               load(add("mounts", {"destination": "/tmp", "type": "tmpfs", "source": "other"})).warnings)
    with pytest.raises(BundleError, match="RLIMIT_NOFILE' is there twice"):
        load(add("process.rlimits", {"type": "RLIMIT_NOFILE", "hard": 1, "soft": 1}))


def test_relative_destination_starts_at_the_root(load: Bundles) -> None:
    assert load(put("mounts.1.destination", "a//./b/")).mounts[1]["destination"] == "/a/b"


UNSUPPORTED: list[tuple[str, Callable[[dict[str, Any]], object]]] = [
    (r"--net=host", lambda c: c["linux"]["namespaces"].pop(1)),
    (r"mount namespace of its own", lambda c: c["linux"]["namespaces"].pop(4)),
    (r"joining the mount namespace", put("linux.namespaces.4.path", "/proc/1/ns/mnt")),
    (r"hostname: cannot be set without a uts", lambda c: c["linux"]["namespaces"].pop(3)),
    (r"linux.intelRdt", put("linux.intelRdt", {"closID": "x"})),
    (r"SCMP_ACT_NOTIFY", put("linux.seccomp.defaultAction", "SCMP_ACT_NOTIFY")),
    (r"need a time namespace", put("linux.timeOffsets", {"boottime": {"secs": 1}})),
    (r"needs uidMappings", add("linux.namespaces", {"type": "user"})),
    (r"mappings need a user namespace", put("linux.uidMappings", [{"containerID": 0, "hostID": 1, "size": 1}])),
]


@pytest.mark.parametrize(("text", "change"), UNSUPPORTED, ids=[t for t, _c in UNSUPPORTED])
def test_what_cannot_hold_is_refused(load: Bundles, text: str, change: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(UnsupportedError, match=text) as e:
        load(change)
    assert e.value.hint


@pytest.mark.parametrize(("path", "value", "text"), [
    ("process.apparmorProfile", "docker-default", "process.apparmorProfile: 'docker-default'"),
    ("process.selinuxLabel", "x", "process.selinuxLabel"),
    ("linux.mountLabel", "x", "linux.mountLabel"),
    ("linux.resources.network", {"classID": 1}, "linux.resources.network"),
    ("linux.resources.rdma", {"mlx": {}}, "linux.resources.rdma"),
    ("linux.resources.memory.kernel", 1000000, "linux.resources.memory.kernel"),
    ("linux.resources.memory.disableOOMKiller", True, "disableOOMKiller"),
    ("linux.resources.memory.swappiness", 0, "swappiness"),
    ("linux.resources.cpu.realtimeRuntime", 1000, "realtimeRuntime"),
])
def test_what_is_left_out_is_named(load: Bundles, path: str, value: Any, text: str) -> None:
    assert any(text in w for w in load(put(path, value)).warnings)


def test_shared_namespaces_are_named(load: Bundles) -> None:
    assert any("--pid=host" in w for w in load(lambda c: c["linux"]["namespaces"].pop(0)).warnings)
    bundle = load(put("linux.namespaces.0.path", "/proc/7/ns/pid"))
    assert dict(bundle.join) == {"pid": "/proc/7/ns/pid"}


# --- the file itself ----------------------------------------------------------------


@pytest.mark.parametrize(("data", "text"), [
    (b"", "line 1, column 1"),
    (b"{", "config.json: line 1"),
    (b"[]", "an object is expected, found an array"),
    (b"\xff{}", "not UTF-8: byte 0 is 0xff"),
    (b'{"a": NaN}', "NaN is not a JSON number"),
    (b'{"a": -Infinity}', "-Infinity"),
    (b"[" * 100_000, "nested too deeply"),
    (b'{"a":' * 100_000, "nested too deeply"),
    (b'{"ociVersion": "1.0.2", "process": ' + b"9" * 5000 + b"}", "config.json"),
    (b'{"ociVersion": 1e999}', "ociVersion"),
    (b"{" + b",".join(b'"%d":1' % i for i in range(40_000)) + b',"77":1}', "ociVersion: is missing"),
    (b" " * (10 << 20), "larger than 2 MiB"),
    (b'{"x":"' + b"a" * (10 << 20) + b'"}', "larger than 2 MiB"),
], ids=[f"file{i}" for i in range(13)])
def test_hostile_file(folder: Path, data: bytes, text: str) -> None:
    (folder / "config.json").write_bytes(data)
    begin = time.monotonic()
    with pytest.raises(BundleError) as e:
        oci.load(str(folder), "c1")
    assert text in str(e.value) and len(str(e.value)) < 400
    assert time.monotonic() - begin < 5


def test_large_but_allowed_file_is_quick(load: Bundles) -> None:
    begin = time.monotonic()
    bundle = load(put("process.env", [f"V{i}=x" for i in range(100_000)]))
    assert len(bundle.process["env"]) == 100_000 and time.monotonic() - begin < 5


def test_missing_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"Invalid bundle path '.*nosuch': no such file or directory") as e:
        oci.load(str(tmp_path / "nosuch"), "c1")
    assert e.value.kind == "bundle-path"
    with pytest.raises(BundleError, match=r"cannot read config.json: no such file"):
        oci.load(str(tmp_path), "c1")
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="not a directory"):
        oci.load(str(tmp_path / "file"), "c1")
    with pytest.raises(BundleError, match=r"null byte|Invalid bundle path"):
        oci.load("a\0b", "c1")


def test_fifo_does_not_hang(folder: Path) -> None:
    os.mkfifo(folder / "config.json")
    with pytest.raises(BundleError, match="not a regular file"):
        oci.load(str(folder), "c1")


def test_rootfs_link_is_refused_and_a_link_above_is_not(load: Bundles, folder: Path, tmp_path: Path) -> None:
    (folder / "link").symlink_to("rootfs")
    with pytest.raises(BundleError, match="is a link"):
        load(put("root.path", "link"))
    (folder / "real" / "fs").mkdir(parents=True)
    (folder / "via").symlink_to("real")
    assert load(put("root.path", str(folder / "via" / "fs"))).rootfs == str(folder / "real" / "fs")


def test_process_and_resources_files(folder: Path) -> None:
    file = folder / "p.json"
    file.write_text('{"args": ["id"], "cwd": "/", "x": 1}')
    process, notes = oci.load_process(str(file))
    assert process == {"args": ["id"], "cwd": "/"} and "x: is not known" in notes[0]
    file.write_text('{"args": [1], "cwd": "/"}')
    with pytest.raises(BundleError, match=r"args\[0\]: a string"):
        oci.load_process(str(file))
    file.write_text('{"memory": {"limit": 5}}')
    assert oci.load_resources(str(file))[0] == {"memory": {"limit": 5}}


# --- properties -----------------------------------------------------------------------

_leaf = st.one_of(st.none(), st.booleans(), st.integers(-2**70, 2**70), st.floats(allow_nan=False), st.text(max_size=8),
                  st.sampled_from(["", "/", "..", "a\0", "/dev/x", "bind", "host"]))
_junk = st.recursive(_leaf, lambda c: st.one_of(st.lists(c, max_size=3), st.dictionaries(st.text(max_size=6), c,
                                                                                          max_size=3)), max_leaves=6)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [p for k, v in items for p in [(value, k), *places(v)]]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), junk=st.lists(_junk, min_size=1, max_size=3), drop=st.booleans())
def test_mutated_configuration_raises_only_our_errors(folder: Path, seed: int, junk: list[Any], drop: bool) -> None:
    config = copy.deepcopy(CONFIG)
    rng = random.Random(seed)
    for value in junk:
        target, key = rng.choice(places(config))
        if drop and isinstance(target, dict):
            del target[key]
        else:
            target[key] = value
    (folder / "config.json").write_text(json.dumps(config))
    try:
        bundle = oci.load(str(folder), "c1")
    except KataError as e:
        assert str(e) and "\n" not in str(e)
        return
    json.dumps(bundle.spec).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seccomp, "CACHE", "")
        try:
            plan = guestspec.build(RuntimeConfig(), bundle)
        except KataError as e:
            assert str(e) and "\n" not in str(e)
        else:
            json.dumps([plan.spec, plan.extras, plan.storages]).encode()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200))
def test_any_bytes_raise_only_our_errors(folder: Path, data: bytes) -> None:
    (folder / "config.json").write_bytes(data)
    with pytest.raises(KataError):
        oci.load(str(folder), "c1")
