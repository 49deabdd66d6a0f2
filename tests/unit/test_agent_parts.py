"""Parts of the agent that need no guest: options, limits, rules, settings, names."""

from __future__ import annotations

import os
import resource
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_agent import cgroup, devicefilter, dns, files, identity, limits, log, modules, mountopts, network, users
from kata_agent.errors import AgentError
from kata_agent.linux import syscalls as sc
from kata_agent.protocol import agent_pb2, codes, oci_pb2, types_pb2
from kata_agent.resolve import ensure
from kata_agent.sandbox import check_id
from kata_agent.settings import Settings

# --- mount options -----------------------------------------------------------------------


def test_mount_options() -> None:
    parsed = mountopts.MountOptions(["rbind", "ro", "nosuid", "rprivate", "noatime", "size=5", "mode=755", "tmpcopyup"])
    assert parsed.bind
    assert parsed.recursive
    assert parsed.copy_up
    assert parsed.flags == sc.MS_RDONLY | sc.MS_NOSUID | sc.MS_NOATIME
    assert parsed.attributes.set == sc.MOUNT_ATTR_RDONLY | sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NOATIME
    assert parsed.attributes.clear == sc.MOUNT_ATTR__ATIME
    assert parsed.propagation == [(sc.MS_PRIVATE, True)]
    assert parsed.data == "size=5,mode=755"


def test_later_options_win() -> None:
    parsed = mountopts.MountOptions(["ro", "rw", "noexec", "exec", "strictatime", "relatime"])
    assert parsed.flags & (sc.MS_RDONLY | sc.MS_NOEXEC) == 0
    assert parsed.attributes.set & (sc.MOUNT_ATTR_RDONLY | sc.MOUNT_ATTR_NOEXEC) == 0
    assert parsed.attributes.clear & sc.MOUNT_ATTR_RDONLY
    assert parsed.attributes.set & sc.MOUNT_ATTR__ATIME == sc.MOUNT_ATTR_RELATIME


def test_recursive_options() -> None:
    parsed = mountopts.MountOptions(["rro", "rnosuid"])
    assert parsed.tree.set == sc.MOUNT_ATTR_RDONLY | sc.MOUNT_ATTR_NOSUID
    assert not parsed.attributes


# --- limits --------------------------------------------------------------------------------


@pytest.mark.parametrize(("shares", "weight"), [(2, 1), (1024, 39), (262144, 10000), (0, 1), (10**9, 10000)])
def test_cpu_weight(shares: int, weight: int) -> None:
    assert limits.cpu_weight(shares) == weight


@pytest.mark.parametrize(("old", "new"), [(5, 1), (2000, 10000), (10, 1), (500, 4950), (1000, 10000)])
def test_io_weight(old: int, new: int) -> None:
    assert limits.io_weight(old) == new


def files_of(resources: oci_pb2.LinuxResources, **unified: str) -> dict[str, str]:
    made = limits.Limits(resources, unified)
    return {name: value for name, value, _ in made.files} | dict(made.weights)


def test_conversion() -> None:
    resources = oci_pb2.LinuxResources()
    resources.Memory.Limit, resources.Memory.Swap = 100, 150
    resources.CPU.Quota = -1
    resources.Pids.Limit = -1
    resources.BlockIO.ThrottleReadBpsDevice.add(Major=8, Minor=1, Rate=1000)
    resources.BlockIO.Weight = 500
    assert files_of(resources) == {
        "memory.max": "100", "memory.swap.max": "50", "cpu.max": "max 100000", "pids.max": "max",
        "io.max": "8:1 rbps=1000", "io.weight": "default 4950"}


def test_no_limits() -> None:
    assert files_of(oci_pb2.LinuxResources()) == {}
    resources = oci_pb2.LinuxResources()
    resources.Memory.Limit = -1
    resources.Memory.Swap = -1
    assert files_of(resources) == {"memory.max": "max", "memory.swap.max": "max"}


@pytest.mark.parametrize("change", [
    lambda r: (setattr(r.Memory, "Limit", 100), setattr(r.Memory, "Swap", 50)),
    lambda r: (setattr(r.Memory, "Limit", -1), setattr(r.Memory, "Swap", 50)),
    lambda r: r.HugepageLimits.add(Pagesize="../x", Limit=1),
])
def test_limits_that_cannot_be(change: object) -> None:
    resources = oci_pb2.LinuxResources()
    change(resources)  # type: ignore[operator]
    with pytest.raises(AgentError) as info:
        limits.Limits(resources, {})
    assert info.value.code == codes.INVALID_ARGUMENT


@pytest.mark.parametrize(("wanted", "online", "result"), [
    ("0-3", {0, 1}, "0,1"), ("1", {0}, "0"), ("2,3", {0, 1, 4}, "0,1"), ("0", {0, 1}, "0")])
def test_processors_of_the_host_on_the_guest(wanted: str, online: set[int], result: str) -> None:
    assert limits.fit(wanted, online) == result


@pytest.mark.parametrize("key", ["../memory.max", "memory", "", "a/b.c", "."])
def test_unified_keys(key: str) -> None:
    with pytest.raises(AgentError):
        cgroup.check_unified({key: "1"})


def test_limits_that_strangle_come_late() -> None:
    assert [limits._due(name, "early") for name in ("memory.max", "cpu.max", "pids.max")] == [False, False, True]
    assert [limits._due(name, "late") for name in ("memory.max", "cpu.max", "pids.max")] == [True, True, False]


# --- device rules ----------------------------------------------------------------------------


def run_bpf(code: bytes, kind: int, access: int, major: int, minor: int) -> int:
    """An interpreter for the few instructions that device programs are made of."""
    registers = [0] * 11
    context = {0: kind | access << 16, 4: major, 8: minor}
    at = 0
    while True:
        opcode, regs, offset, imm = struct.unpack_from("=BBhi", code, at * 8)
        dst, src = regs & 15, regs >> 4
        at += 1
        if opcode == 0x61:
            registers[dst] = context[offset]
        elif opcode == 0xBC:
            registers[dst] = registers[src] & 0xFFFFFFFF
        elif opcode == 0x54:
            registers[dst] &= imm & 0xFFFFFFFF
        elif opcode == 0x74:
            registers[dst] >>= imm
        elif opcode == 0xB7:
            registers[dst] = imm
        elif opcode == 0x55:
            at += offset if registers[dst] != imm else 0
        elif opcode == 0x15:
            at += offset if registers[dst] == imm else 0
        elif opcode == 0x5D:
            at += offset if registers[dst] != registers[src] else 0
        elif opcode == 0x95:
            return registers[0]
        else:
            raise AssertionError(hex(opcode))


M, R, W = 1, 2, 4
Rule = devicefilter.Rule


def allowed(rules: list[Rule], kind: str, access: int, major: int, minor: int) -> bool:
    return bool(run_bpf(devicefilter.program(rules), 1 if kind == "b" else 2, access, major, minor))


def test_last_rule_wins() -> None:
    rules = [Rule(False, "a", -1, -1, "rwm"), Rule(True, "c", 10, 229, "rw"), Rule(False, "c", 10, 229, "w")]
    assert allowed(rules, "c", R, 10, 229)
    assert not allowed(rules, "c", W, 10, 229)
    assert not allowed(rules, "c", R | W, 10, 229)
    assert not allowed(rules, "c", M, 10, 229)
    assert not allowed(rules, "b", R, 10, 229)
    assert not allowed([], "c", R, 1, 3)
    assert allowed([Rule(True, "a", -1, -1, "rwm")], "b", R | W, 8, 0)
    assert allowed([*rules, *devicefilter.DEFAULTS], "c", R | W, 1, 3)
    assert allowed([*rules, *devicefilter.DEFAULTS], "b", M, 77, 3)
    assert not allowed([*rules, *devicefilter.DEFAULTS], "b", R, 77, 3)


rule_strategy = st.builds(
    Rule, st.booleans(), st.sampled_from("abc"), st.sampled_from([-1, 1, 8]), st.sampled_from([-1, 0, 5]),
    st.sampled_from(["r", "w", "m", "rw", "rwm"]))


@given(st.lists(rule_strategy, max_size=6), st.sampled_from("bc"), st.integers(1, 7), st.sampled_from([1, 8, 9]),
       st.sampled_from([0, 5, 6]))
def test_program_does_what_the_rules_say(rules: list[Rule], kind: str, access: int, major: int, minor: int) -> None:
    expected = False
    for rule in rules:
        mask = sum({"m": 1, "r": 2, "w": 4}[letter] for letter in rule.access)
        covers = not access & ~mask if rule.allow else bool(access & mask)
        if rule.kind in ("a", kind) and rule.major in (-1, major) and rule.minor in (-1, minor) and covers:
            expected = rule.allow
    assert allowed(rules, kind, access, major, minor) is expected


def test_rules_that_spell_the_defaults_out_make_the_same_program() -> None:
    """So the program that was loaded beforehand serves."""
    spelled = [Rule(False, "a", -1, -1, "rwm"), *devicefilter.DEFAULTS[::-1], *devicefilter.DEFAULTS]
    assert devicefilter.program(spelled) == devicefilter.program(devicefilter.DEFAULTS)


def test_without_rules_a_container_may_use_what_it_gets() -> None:
    from kata_agent.devices import DeviceNode

    nodes = [DeviceNode("/dev/x", "b", 8, 3), DeviceNode("/dev/p", "p", 0, 0)]
    made = devicefilter.rules([], nodes)
    assert allowed(made, "b", R | W, 8, 3)
    assert not allowed(made, "b", R, 8, 4)
    assert not allowed(made, "c", R, 1, 1)
    assert allowed(made, "c", R | W, 1, 3)


def test_rules_of_a_specification() -> None:
    resources = oci_pb2.LinuxResources()
    resources.Devices.add(Allow=False, Access="rwm")
    resources.Devices.add(Allow=True, Type="c", Major=1, Minor=-1, Access="r")
    rules = devicefilter.from_spec(resources.Devices)
    assert [(r.kind, r.major, r.minor) for r in rules] == [("a", -1, -1), ("c", 1, -1)]
    for bad in ({"Type": "x"}, {"Access": "q"}, {"Type": "c", "Major": -2}):
        resources = oci_pb2.LinuxResources()
        resources.Devices.add(**bad)  # type: ignore[arg-type]
        with pytest.raises(AgentError):
            devicefilter.from_spec(resources.Devices)


# --- settings, names, lists --------------------------------------------------------------------


def test_settings() -> None:
    settings = Settings()
    settings.add(["quiet", f"agent.channel_token={'ab' * 32}", "agent.log=debug", "agent.hotplug_timeout=10s",
                  "agent.container_pipe_size=65536", "root=/dev/vda"])
    assert settings.token == b"\xab" * 32
    assert (settings.log_level, settings.hotplug_timeout, settings.pipe_size) == (log.DEBUG, 10.0, 65536)
    assert settings.warnings == []


@pytest.mark.parametrize("word", ["agent.log=loud", "agent.channel_token=12", "agent.nonesuch=1", "agent.devmode",
                                  "agent.hotplug_timeout=-1", "agent.container_pipe_size=x", "agent.channel=tcp:1"])
def test_settings_that_are_wrong_are_warnings(word: str) -> None:
    settings = Settings()
    settings.add([word])
    assert len(settings.warnings) == 1
    assert settings.warnings[0].startswith(word)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-x", ".x", "x" * 256, "ä", "a b", "a\0"])
def test_ids_that_are_none(name: str) -> None:
    with pytest.raises(AgentError):
        check_id(name)


@pytest.mark.parametrize("name", ["a", "0123456789abcdef" * 4, "web_1.x-y+z"])
def test_ids(name: str) -> None:
    check_id(name)


@pytest.mark.parametrize(("pattern", "text", "fits"), [
    ("virtio:d00000005v*", "virtio:d00000005v00001AF4", True), ("virtio:d00000005v*", "virtio:d00000006v1", False),
    ("a*b*c", "axxbyyc", True), ("a*b*c", "axxbyyd", False), ("abc", "abc", True), ("abc", "abcd", False),
    ("a*", "a", True), ("*c", "abc", True)])
def test_module_aliases(pattern: str, text: str, fits: bool) -> None:
    assert modules.matches(pattern, text) is fits


def test_a_module_that_is_built_in_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / os.uname().release
    folder.mkdir()
    (folder / "modules.dep").write_text("")
    (folder / "modules.builtin").write_text("kernel/fs/some-fs/some-fs.ko\n")
    monkeypatch.setattr(modules, "_ROOT", str(tmp_path))
    modules.load_named("some_fs", ())
    with pytest.raises(AgentError, match="kernel module other_fs: the guest has none in"):
        modules.load_named("other_fs", ())


def test_cpu_lists() -> None:
    assert identity.cpu_list("0-2,5") == {0, 1, 2, 5}
    for bad in ("2-1", "x", "0-", "9999999"):
        with pytest.raises(AgentError):
            identity.cpu_list(bad)


def test_prefixes() -> None:
    address = types_pb2.IPAddress
    assert network._prefix(address(address="10.0.0.1", mask="255.255.0.0")) == "10.0.0.1/16"
    assert network._prefix(address(address="10.0.0.1", mask="24")) == "10.0.0.1/24"
    assert network._prefix(address(address="fe80::1", mask="64")) == "fe80::1/64"
    assert network._broadcast("10.0.0.1/24") == "10.0.0.255"
    assert network._broadcast("10.0.0.1/31") == ""
    for ip, mask in (("x", ""), ("1.2.3.4", "33"), ("1.2.3.4", "255.0.255.0")):
        with pytest.raises(ValueError, match="not"):
            network._prefix(address(address=ip, mask=mask))


def test_dns_failure() -> None:
    query = bytes.fromhex("1234 0100 0001 0000 0000 0000 0161 0000 0100 01".replace(" ", ""))
    answer = dns.failure(query)
    assert answer[:2] == query[:2]
    assert answer[2] & 0x80
    assert answer[3] & 15 == 2
    assert answer[12:] == query[12:]


def test_copied_files_stay_where_they_may() -> None:
    for path in ("/etc/passwd", "/run/kata/../x", "/run/kata//x", "/run/katax/y", "relative"):
        with pytest.raises(AgentError):
            files.copy_in(agent_pb2.CopyFileRequest(path=path, file_size=1, data=b"x"))


# --- users -------------------------------------------------------------------------------------


@pytest.fixture
def accounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "passwd").write_text("root:x:0:0::/root:/bin/sh\n# note\nbob:x:12:34::/b:/bin/sh\nbroken\n")
    (tmp_path / "group").write_text("root:x:0:\nstaff:x:50:bob,eve\n77:x:5:\n")
    real = open

    def fake(path: str, *args: object, **kwargs: object) -> object:
        name = str(path)
        return real(tmp_path / name.rpartition("/")[2] if name.startswith("/etc/") else path, *args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr("builtins.open", fake)


@pytest.mark.usefixtures("accounts")
def test_user_names() -> None:
    found = users.look_up("bob", "", [])
    assert (found.uid, found.gid, found.groups, found.home) == (12, 34, [50], "/b")
    found = users.look_up("12", "staff", ["9"])
    assert (found.uid, found.gid, found.groups) == (12, 50, [9])
    found = users.look_up("999", "", [])
    assert (found.uid, found.gid, found.groups, found.home) == (999, 0, [], "/")
    assert users.group_of("77") == 5
    with pytest.raises(users.UserError):
        users.look_up("nobody", "", [])
    with pytest.raises(users.UserError):
        users.look_up("bob", "nogroup", [])


# --- processes ---------------------------------------------------------------------------------


def plan(**fields: object) -> identity.ProcessPlan:
    from kata_agent.protocol import guest_pb2

    process = oci_pb2.Process(**{"Args": ["x"], "Cwd": "/", **fields})  # type: ignore[arg-type]
    return identity.ProcessPlan(process, guest_pb2.ProcessExtras(), None)


@pytest.mark.parametrize("fields", [
    {"Args": []}, {"Cwd": "relative"}, {"Args": ["a\0b"]}, {"OOMScoreAdj": 5000},
    {"Rlimits": [oci_pb2.POSIXRlimit(Type="RLIMIT_FISH")]},
    {"Rlimits": [oci_pb2.POSIXRlimit(Type="RLIMIT_CPU", Soft=2, Hard=1)]},
    {"Rlimits": [oci_pb2.POSIXRlimit(Type="RLIMIT_CPU")] * 2},
])
def test_processes_that_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(AgentError) as info:
        plan(**fields)
    assert info.value.code == codes.INVALID_ARGUMENT


def test_executables(tmp_path: Path) -> None:
    (tmp_path / "tool").write_text("")
    (tmp_path / "tool").chmod(0o755)
    (tmp_path / "data").write_text("")
    assert identity.executable("tool", f"/nonesuch:{tmp_path}") == f"{tmp_path}/tool"
    for name, text in (
        ("data", 'exec: "data": executable file not found in $PATH'),
        (f"{tmp_path}/none", f'exec: "{tmp_path}/none": stat {tmp_path}/none: no such file or directory'),
        (f"{tmp_path}/data", f'exec: "{tmp_path}/data": permission denied'),
        (str(tmp_path), f'exec: "{tmp_path}": is a directory'),
        ("", 'exec: "": executable file not found in $PATH'),
    ):
        with pytest.raises(identity.StageError) as info:
            identity.executable(name, str(tmp_path))
        assert info.value.text == text


def test_an_executable_is_found_without_descriptors(tmp_path: Path) -> None:
    """The process's own RLIMIT_NOFILE holds by then."""
    (tmp_path / "tool").write_text("")
    (tmp_path / "tool").chmod(0o755)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        assert identity.executable("tool", f"/nonesuch:{tmp_path}") == f"{tmp_path}/tool"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- paths below a root --------------------------------------------------------------------------


def test_missing_mount_points_are_made_inside(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "up").symlink_to("../../..")
    (root / "abs").symlink_to("/somewhere/else")
    fd = os.open(root, os.O_PATH)
    try:
        for path, directory in (("/a/b/c", True), ("/up/f/g", False), ("/abs/x", True), ("/a/../../d", True)):
            os.close(ensure(fd, path, directory))
        (root / "loop").symlink_to("loop")
        with pytest.raises(OSError, match="symbolic"):
            ensure(fd, "/loop/x", True)
        with pytest.raises(NotADirectoryError):
            ensure(fd, "/f/g/h", True)
    finally:
        os.close(fd)
    assert (root / "a/b/c").is_dir()
    assert (root / "f/g").is_file()
    assert (root / "somewhere/else/x").is_dir()
    assert (root / "d").is_dir()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["root"]


# --- start-up --------------------------------------------------------------------------------------

SLOW = {"asyncio", "logging", "subprocess", "json", "inspect", "dataclasses", "typing", "re", "contextlib", "pathlib",
        "shutil", "tempfile", "multiprocessing", "grpc", "traceback"}
HOST_ONLY = {"tc.py"}


def test_the_agent_imports_nothing_slow_when_it_starts() -> None:
    """Each costs an emulated guest a tenth of a second or so; inside of functions they may be imported."""
    import ast

    package = Path(identity.__file__).parent
    found = []
    for path in package.rglob("*.py"):
        if path.name.endswith("_pb2.py") or path.name in HOST_ONLY:
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            else:
                continue
            found += [f"{path.name}: {name}" for name in names if name.split(".")[0] in SLOW]
    assert found == []
