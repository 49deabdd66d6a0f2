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
    assert run(native, 0x40000000 | 39) == 0 and run(native, 2**32 - 1) == ERRNO | errno.EPERM
    assert run(build("SCMP_ACT_ALLOW").bpf, 5) == ALLOW


def test_calls_through_socketcall_and_ipc() -> None:
    bpf = build("SCMP_ACT_ERRNO", rule("ALLOW", "socket", "semop", "clone3"),
                rule("ALLOW", "bind", args=[(0, "EQ", 3, 0)]), architectures=["SCMP_ARCH_X86"]).bpf
    assert run(bpf, 359, arch=I386) == ALLOW
    assert [run(bpf, 102, (i,), I386) == ALLOW for i in (1, 2, 3)] == [True, True, False]
    assert [run(bpf, 117, (i,), I386) == ALLOW for i in (1, 2)] == [True, False]


def test_which_of_several_rules_counts() -> None:
    unconditional = build("SCMP_ACT_ERRNO", rule("LOG", "read", args=[(0, "EQ", 1, 0)]), rule("ALLOW", "read"),
                          rule("KILL_PROCESS", "read"), rule("ALLOW", "clone3")).bpf
    assert run(unconditional, 0, (1,)) == ALLOW
    longest = build("SCMP_ACT_ERRNO", rule("ALLOW", "read", args=[(1, "NE", 5, 0)]),
                    rule("LOG", "read", args=[(0, "EQ", 1, 0), (1, "NE", 5, 0)]), rule("ALLOW", "clone3")).bpf
    assert [run(longest, 0, a) for a in ((1, 0), (2, 0), (1, 5))] == [LOG, ALLOW, ERRNO | errno.EPERM]


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
        "MASKED_EQ": lambda a, v, w: a & v == w & v}
_values = st.sampled_from([0, 1, 2, 3, 1 << 31, 1 << 32, (1 << 32) + 1, 1 << 63, 2**64 - 1])
_condition = st.tuples(st.integers(0, 2), st.sampled_from(sorted(_OPS)), _values, _values)
_rule = st.tuples(st.lists(st.sampled_from(sorted(NUMBERS)), min_size=1, max_size=3, unique=True),
                  st.lists(_condition, max_size=3))


@settings(deadline=None)
@given(rules=st.lists(_rule, max_size=4), args=st.tuples(_values, _values, _values),
       call=st.sampled_from(sorted(set(NUMBERS) - {"clone3"})))
def test_any_rules_decide_as_they_say(rules: list[tuple[list[str], list[tuple[int, str, int, int]]]],
                                      args: tuple[int, int, int], call: str) -> None:
    def matches(conditions: list[tuple[int, str, int, int]]) -> bool:
        held = [_OPS[op](args[i], v, w) for i, op, v, w in conditions]
        indexes = [c[0] for c in conditions]
        return all(held) if len(set(indexes)) == len(indexes) else any(held)

    bpf = build("SCMP_ACT_ERRNO", *(rule("ALLOW", *names, args=c) for names, c in rules), rule("LOG", "clone3")).bpf
    allowed = any(call in names and matches(c) for names, c in rules)
    assert run(bpf, NUMBERS[call], args) == (ALLOW if allowed else ERRNO | errno.EPERM)


def libseccomp(profile: dict[str, Any], arches: tuple[bytes, ...]) -> bytes:
    """The filter that libseccomp itself makes of a profile whose conditions it handles well."""

    class Compare(ctypes.Structure):
        _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))

    lib = ctypes.CDLL("libseccomp.so.2")
    lib.seccomp_init.restype = ctypes.c_void_p
    codes = {"SCMP_ACT_ALLOW": ALLOW, "SCMP_ACT_ERRNO": ERRNO, "SCMP_ACT_LOG": LOG}
    operators = ["", "NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"]
    context = ctypes.c_void_p(lib.seccomp_init(codes[profile["defaultAction"]] | 1))
    for name in arches:
        lib.seccomp_arch_add(context, ctypes.c_uint32(lib.seccomp_arch_resolve_name(name)))
    for entry in profile["syscalls"]:
        action = codes[entry["action"]] | (entry.get("errnoRet", 1) if entry["action"] == "SCMP_ACT_ERRNO" else 0)
        items = [Compare(c["index"], operators.index(c["op"].removeprefix("SCMP_CMP_")), c["value"], c["valueTwo"])
                 for c in entry.get("args", ())]
        for name in entry["names"]:
            number = lib.seccomp_syscall_resolve_name(name.encode())
            lib.seccomp_rule_add_array(context, ctypes.c_uint32(action), number, len(items),
                                       (Compare * len(items))(*items))
    fd = os.memfd_create("filter")
    with os.fdopen(fd, "rb") as f:
        lib.seccomp_export_bpf(context, fd)
        lib.seccomp_release(context)
        f.seek(0)
        return f.read()


def test_a_profile_like_dockers_decides_as_libseccomps_filter() -> None:
    calls = """accept accept4 access arch_prctl bind brk capget capset chdir clock_gettime close connect dup dup2
        epoll_wait execve exit exit_group fchmod fcntl fork fstat futex getdents64 getegid getpid getppid getrandom
        gettid ioctl kill listen lseek madvise mkdir mmap mprotect munmap nanosleep open openat pipe2 poll prctl
        pread64 read recvfrom recvmsg rt_sigaction rt_sigprocmask rt_sigreturn sched_yield select semop sendmsg sendto
        set_robust_list set_tid_address setuid shmat sigaltstack stat statx tgkill time umask uname unlink vfork
        wait4 waitpid write writev""".split()
    rules = [rule("ALLOW", *calls), rule("ERRNO", "clone3", errnoRet=38),
             *(rule("ALLOW", "personality", args=[(0, "EQ", v, 0)]) for v in (0, 8, 0x20000, 0xFFFFFFFF)),
             rule("ALLOW", "clone", args=[(0, "MASKED_EQ", 0x7E020000, 0)]),
             rule("ALLOW", "socket", args=[(0, "NE", 40, 0)])]
    names = ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32")
    profile = {"defaultAction": "SCMP_ACT_ERRNO", "architectures": list(names), "syscalls": rules}
    ours, theirs = seccomp.compile_profile(profile, "").bpf, libseccomp(profile, (b"x86_64", b"x86", b"x32"))
    samples = [(0,), (8,), (40,), (0x20000,), (0xFFFFFFFF,), (0x7E020000,), (1,), (2,)]
    for arch, highest, base in ((X86_64, 435, 0), (I386, 435, 0), (X86_64, 435, 0x40000000), (0xC00000B7, 10, 0)):
        for number in range(highest + 1):
            for args in samples if number in (41, 56, 102, 117, 120, 135, 136, 359) else samples[:1]:
                at = (number + base, args, arch)
                assert run(ours, *at) == run(theirs, *at), at


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
