"""Seccomp filters from linux.seccomp, by libseccomp.

Kata's own runtime sends finished filters (ProcessExtras.seccomp_bpf); this is
for Kata 1.x clients, which send the rules.
"""

from __future__ import annotations

import ctypes
import os

from kata_agent import log
from kata_agent.errors import internal, invalid, precondition
from kata_agent.protocol import oci_pb2

_LIBRARY = "libseccomp.so.2"
_MAX_RULES = 8192  # system calls, over all rules
_ACTIONS = {
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000 | 1,  # EPERM, as oci.proto has no errnoRet
    "SCMP_ACT_TRACE": 0x7FF00000 | 1,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
_OPERATORS = {"SCMP_CMP_NE": 1, "SCMP_CMP_LT": 2, "SCMP_CMP_LE": 3, "SCMP_CMP_EQ": 4, "SCMP_CMP_GE": 5,
              "SCMP_CMP_GT": 6, "SCMP_CMP_MASKED_EQ": 7}
_NR_SCMP_ERROR = -1


class _Compare(ctypes.Structure):
    """struct scmp_arg_cmp."""

    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


def _load() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError:
        return None
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_arch_resolve_name.restype = ctypes.c_uint32
    return library


def available() -> bool:
    """Whether the guest can make filters of its own."""
    return _load() is not None


def compile(spec: oci_pb2.LinuxSeccomp) -> bytes:
    """The BPF program of ``spec``; b"" when it has no default action, that is, there is no filter.

    :raise AgentError: INVALID_ARGUMENT; FAILED_PRECONDITION, libseccomp is missing.
    """
    if not spec.DefaultAction:
        return b""
    library = _load()
    if library is None:
        raise precondition(f"a seccomp filter is asked for, and the guest has no {_LIBRARY}")
    default = _action(spec.DefaultAction)
    context = library.seccomp_init(ctypes.c_uint32(default))
    if not context:
        raise internal("libseccomp: no filter can be made")
    pointer = ctypes.c_void_p(context)
    try:
        for name in spec.Architectures:
            _add_architecture(library, pointer, name)
        if sum(len(call.Names) for call in spec.Syscalls) > _MAX_RULES:
            raise invalid(f"more than {_MAX_RULES} seccomp rules")
        for call in spec.Syscalls:
            _add_call(library, pointer, call, default)
        return _export(library, pointer)
    finally:
        library.seccomp_release(pointer)


def _action(name: str) -> int:
    if name not in _ACTIONS:
        raise invalid(f"unknown seccomp action {name!r}")
    return _ACTIONS[name]


def _add_architecture(library: ctypes.CDLL, context: ctypes.c_void_p, name: str) -> None:
    token = library.seccomp_arch_resolve_name(name.removeprefix("SCMP_ARCH_").lower().encode())
    if not token:
        raise invalid(f"unknown seccomp architecture {name!r}")
    result = library.seccomp_arch_add(context, ctypes.c_uint32(token))
    if result not in (0, -17):  # EEXIST: the native one is always there
        raise internal(f"libseccomp: architecture {name}: {os.strerror(-result)}")


def _add_call(library: ctypes.CDLL, context: ctypes.c_void_p, call: oci_pb2.LinuxSyscall, default: int) -> None:
    action = _action(call.Action)
    if action == default:
        return  # libseccomp refuses a rule that says what happens anyway
    for name in call.Names:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number == _NR_SCMP_ERROR:
            log.debug(f"seccomp: system call {name} is not known, and cannot be called")
            continue
        # Comparisons of one argument are alternatives, of different ones conditions (runc agrees).
        indexes = [arg.Index for arg in call.Args]
        groups = [[arg] for arg in call.Args] if len(set(indexes)) < len(indexes) else [list(call.Args)]
        for group in groups:
            compares = (_Compare * max(len(group), 1))(*(_compare(arg) for arg in group))
            result = library.seccomp_rule_add_array(
                context, ctypes.c_uint32(action), ctypes.c_int(number), ctypes.c_uint(len(group)), compares)
            if result not in (0, -17):
                raise internal(f"libseccomp: rule for {name}: {os.strerror(-result)}")


def _compare(arg: oci_pb2.LinuxSeccompArg) -> _Compare:
    if arg.Op not in _OPERATORS or arg.Index > 5:
        raise invalid(f"unknown seccomp comparison {arg.Op!r} of argument {arg.Index}")
    return _Compare(arg.Index, _OPERATORS[arg.Op], arg.Value, arg.ValueTwo)


def _export(library: ctypes.CDLL, context: ctypes.c_void_p) -> bytes:
    fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    try:
        result = library.seccomp_export_bpf(context, fd)
        if result:
            raise internal(f"libseccomp: export: {os.strerror(-result)}")
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)
