"""Seccomp profiles: the compiled filter decides as runc's would, in an interpreter and in the kernel."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kata import seccomp
from kata.errors import BundleError, HostError, UnsupportedError

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers below are x86_64's")

X86_64, I386 = 0xC000003E, 0x40000003
ALLOW, ERRNO, KILL_PROCESS, LOG = 0x7FFF0000, 0x00050000, 0x80000000, 0x7FFC0000
NUMBERS = {"read": 0, "write": 1, "getpid": 39, "kill": 62, "personality": 135, "clone": 56, "unshare": 272,
           "getppid": 110, "clone3": 435}
ENOSYS = ERRNO | errno.ENOSYS


def run(bpf: bytes, nr: int, args: tuple[int, ...] = (), arch: int = X86_64) -> int:
    """What a kernel would decide: an interpreter of classic BPF over struct seccomp_data."""
    data = struct.pack("=iIQ6Q", nr if nr < 2**31 else nr - 2**32, arch, 0, *(*args, 0, 0, 0, 0, 0, 0)[:6])
    program = list(struct.iter_unpack("=HBBI", bpf))
    a = at = 0
    while True:
        code, jt, jf, k = program[at]
        at += 1
        if code == 0x20:
            (a,) = struct.unpack_from("=I", data, k)
        elif code == 0x06:
            return int(k)
        elif code == 0x54:
            a &= k
        elif code == 0x05:
            at += k
        elif code in (0x15, 0x25, 0x35, 0x45):
            at += jt if {0x15: a == k, 0x25: a > k, 0x35: a >= k, 0x45: bool(a & k)}[code] else jf
        else:
            raise AssertionError(f"unexpected instruction {code:#x}")


def build(default: str, *rules: dict[str, Any], **rest: Any) -> seccomp.Compiled:
    return seccomp.compile_profile({"defaultAction": default, "syscalls": list(rules), **rest}, cache="")


def rule(action: str, *names: str, args: list[tuple[int, str, int, int]] | None = None, **rest: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"names": list(names), "action": f"SCMP_ACT_{action}", **rest}
    if args:
        found["args"] = [{"index": i, "op": f"SCMP_CMP_{op}", "value": v, "valueTwo": w} for i, op, v, w in args]
    return found


def test_actions_and_errors() -> None:
    bpf = build("SCMP_ACT_ERRNO", rule("ALLOW", "read", "clone3"), rule("ERRNO", "write", errnoRet=7),
                rule("KILL_PROCESS", "kill"), rule("LOG", "getppid"), defaultErrnoRet=38 + 5).bpf
    for name, wanted in (("read", ALLOW), ("write", ERRNO | 7), ("kill", KILL_PROCESS), ("getppid", LOG),
                         ("getpid", ERRNO | 43)):
        assert run(bpf, NUMBERS[name]) == wanted
    assert run(build("SCMP_ACT_ERRNO", rule("ALLOW", "clone3")).bpf, 0) == ERRNO | errno.EPERM


def test_calls_newer_than_the_profile_do_not_exist() -> None:
    bpf = build("SCMP_ACT_ERRNO", rule("ALLOW", "read", "unshare")).bpf
    assert run(bpf, 273) == ENOSYS and run(bpf, 271) == ERRNO | errno.EPERM
    assert run(build("SCMP_ACT_ALLOW", rule("ERRNO", "read")).bpf, 9999) == ALLOW
    assert run(build("SCMP_ACT_KILL_PROCESS", rule("ALLOW", "read")).bpf, 9999) == ENOSYS


def test_architectures() -> None:
    arches = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_AARCH64"]
    bpf = build("SCMP_ACT_ERRNO", rule("ALLOW", "read", "getpid", "clone3"), architectures=arches).bpf
    assert run(bpf, 39) == ALLOW
    assert run(bpf, 20, arch=I386) == ALLOW and run(bpf, 39, arch=I386) == ERRNO | errno.EPERM
    assert run(bpf, 9999, arch=I386) == ENOSYS
    assert run(bpf, 0x40000000 | 39) == ALLOW and run(bpf, 0x40000000 | 9999) == ENOSYS
    native = build("SCMP_ACT_ERRNO", rule("ALLOW", "read", "clone3")).bpf
    assert run(native, 3, arch=I386) == 0, "an architecture that is not listed is killed"


@pytest.mark.parametrize(("op", "value", "two", "hits", "misses"), [
    ("EQ", 5, 0, [5], [4, 5 | 1 << 40]),
    ("NE", 5, 0, [4, 6], [5]),
    ("LT", 5, 0, [4, 0], [5, 1 << 40]),
    ("LE", 5, 0, [5], [6]),
    ("GT", 1 << 33, 0, [(1 << 33) + 1], [1 << 33, 5]),
    ("GE", 1 << 33, 0, [1 << 33], [5, (1 << 33) - 1]),
    ("MASKED_EQ", 0x7E020000, 0, [0, 1], [0x20000, 0x10000000]),
    ("MASKED_EQ", 0xF0, 0x30, [0x3F], [0x2F, 0x40]),
])
def test_operators(op: str, value: int, two: int, hits: list[int], misses: list[int]) -> None:
    bpf = build("SCMP_ACT_ERRNO", rule("ALLOW", "clone", args=[(1, op, value, two)]), rule("ALLOW", "clone3")).bpf
    assert all(run(bpf, 56, (99, v)) == ALLOW for v in hits)
    assert all(run(bpf, 56, (99, v)) == ERRNO | errno.EPERM for v in misses)


def test_conditions_on_one_argument_are_alternatives_and_on_several_must_all_hold() -> None:
    either = build("SCMP_ACT_ERRNO", rule("ALLOW", "personality", args=[(0, "EQ", 0, 0), (0, "EQ", 8, 0)])).bpf
    assert [run(either, 135, (v,)) == ALLOW for v in (0, 8, 9)] == [True, True, False]
    both = build("SCMP_ACT_ERRNO", rule("ALLOW", "personality", args=[(0, "EQ", 0, 0), (1, "EQ", 8, 0)])).bpf
    assert [run(both, 135, v) == ALLOW for v in ((0, 8), (0, 0), (8, 8))] == [True, False, False]


def test_a_rule_with_the_default_action_adds_nothing() -> None:
    plain = build("SCMP_ACT_ERRNO", rule("ALLOW", "clone3"))
    assert build("SCMP_ACT_ERRNO", rule("ALLOW", "clone3"), rule("ERRNO", "read")).bpf == plain.bpf
    assert build("SCMP_ACT_ERRNO", rule("ALLOW", "clone3"), rule("ERRNO", "read", errnoRet=2)).bpf != plain.bpf


def test_unknown_system_calls() -> None:
    compiled = build("SCMP_ACT_ERRNO", rule("ALLOW", "read", "frobnicate"))
    assert "frobnicate" in compiled.warnings[0] and run(compiled.bpf, 0) == ALLOW
    assert build("SCMP_ACT_ERRNO", rule("ERRNO", "frobnicate", errnoRet=38)).warnings
    with pytest.raises(BundleError, match=r"syscalls\[0\].names: unknown system call 'frobnicate'"):
        build("SCMP_ACT_ALLOW", rule("ERRNO", "frobnicate"))


def test_flags() -> None:
    assert build("SCMP_ACT_ALLOW").flags == 4
    assert build("SCMP_ACT_ALLOW", flags=[]).flags == 0
    assert build("SCMP_ACT_ALLOW", flags=["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC"]).flags == 3
    assert build("SCMP_ACT_ALLOW", flags=["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]).warnings


def test_notify_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="SCMP_ACT_NOTIFY"):
        build("SCMP_ACT_ERRNO", rule("NOTIFY", "mount"))


def test_too_many_instructions() -> None:
    rules = [rule("ALLOW", "clone", args=[(0, "EQ", n << 32 | n, 0), (1, "EQ", n, 0)]) for n in range(1, 900)]
    with pytest.raises(BundleError, match="a kernel takes 4096"):
        build("SCMP_ACT_ERRNO", *rules)


def test_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> ctypes.CDLL:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(HostError, match="libseccomp2"):
        build("SCMP_ACT_ALLOW")


def test_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule("ALLOW", "read", "nosuchcall")]}
    cache = tmp_path / "a" / "seccomp"
    first = seccomp.compile_profile(profile, str(cache))
    (file,) = cache.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and stat.S_IMODE(cache.stat().st_mode) == 0o700
    monkeypatch.setattr(seccomp, "_Compiler", None)
    assert seccomp.compile_profile(profile, str(cache)) == first
    monkeypatch.undo()
    for broken in (b"", b"[", b"[4, []]\n1234567", b"\xff"):
        file.write_bytes(broken)
        assert seccomp.compile_profile(profile, str(cache)) == first
    assert len(list(cache.iterdir())) == 1
    assert seccomp.compile_profile(profile, "/proc/nowhere") == first, "a cache that cannot be written is done without"


# --- properties -------------------------------------------------------------------------

_OPS = {"EQ": lambda a, v, w: a == v, "NE": lambda a, v, w: a != v, "LT": lambda a, v, w: a < v,
        "LE": lambda a, v, w: a <= v, "GT": lambda a, v, w: a > v, "GE": lambda a, v, w: a >= v,
        "MASKED_EQ": lambda a, v, w: a & v == w}
_values = st.sampled_from([0, 1, 2, 3, 1 << 31, 1 << 32, (1 << 32) + 1, 1 << 63, 2**64 - 1])
_condition = st.tuples(st.integers(0, 2), st.sampled_from(sorted(_OPS)), _values, _values)
_names = st.lists(st.sampled_from(sorted(NUMBERS)), min_size=1, max_size=2, unique=True)


@settings(max_examples=80, deadline=None)
@given(names=_names, conditions=st.lists(_condition, max_size=3), args=st.tuples(_values, _values, _values),
       call=st.sampled_from(sorted(NUMBERS)))
def test_one_rule_decides_as_it_says(names: list[str], conditions: list[tuple[int, str, int, int]],
                                     args: tuple[int, int, int], call: str) -> None:
    # A value outside its mask can never match; libseccomp masks it first.
    conditions = [(i, op, v, w & v if op == "MASKED_EQ" else w) for i, op, v, w in conditions]
    bpf = build("SCMP_ACT_ERRNO", rule("ALLOW", *names, args=conditions), rule("LOG", "clone3")).bpf
    held = [_OPS[op](args[i], v, w) for i, op, v, w in conditions]
    indexes = [c[0] for c in conditions]
    matches = all(held) if len(set(indexes)) == len(indexes) else any(held)
    if call != "clone3":
        assert run(bpf, NUMBERS[call], args) == (ALLOW if call in names and matches else ERRNO | errno.EPERM)


# --- the kernel ------------------------------------------------------------------------------


def in_child(bpf: bytes, flags: int, nr: int, *args: int) -> int:
    """errno (0: none) of a system call in a process under the filter."""
    libc = ctypes.CDLL(None, use_errno=True)

    class Program(ctypes.Structure):
        _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))

    program = Program(len(bpf) // 8, bpf)
    pid = os.fork()
    if pid == 0:
        code = 99
        if libc.prctl(38, 1, 0, 0, 0) == 0 and libc.syscall(317, 1, flags, ctypes.byref(program)) == 0:
            ctypes.set_errno(0)
            libc.syscall(nr, *args)
            code = ctypes.get_errno()
        os._exit(code)
    _pid, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def test_the_kernel_takes_the_filter_and_decides_the_same() -> None:
    compiled = build("SCMP_ACT_ALLOW", rule("ERRNO", "getppid", errnoRet=77),
                     rule("ERRNO", "personality", args=[(0, "EQ", 8, 0)], errnoRet=78),
                     rule("KILL_PROCESS", "unshare"))
    assert in_child(compiled.bpf, 0, 110) == 77
    assert in_child(compiled.bpf, 0, 135, 8) == 78
    assert in_child(compiled.bpf, 0, 135, 0xFFFFFFFF) == 0
    assert in_child(compiled.bpf, 0, 272, 0) == -31, "SIGSYS"


def test_the_kernel_takes_the_stub() -> None:
    names = ["exit_group", "getpid", "rt_sigreturn", "munmap", "futex", "write", "brk", "mmap", "set_robust_list"]
    compiled = build("SCMP_ACT_ERRNO", rule("ALLOW", *names), defaultErrnoRet=79,
                     architectures=["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"])
    assert in_child(compiled.bpf, compiled.flags, 39) == 0
    assert in_child(compiled.bpf, compiled.flags, 110) == 79
    assert in_child(compiled.bpf, compiled.flags, 900) == errno.ENOSYS
