"""Seccomp profiles compiled to BPF on the host, by libseccomp through ctypes.

The host's processor is faster than an emulated one, and most containers bring
the same profile, so the finished program is kept by the hash of its profile.
Decisions are those of runc:

- a rule whose action is the default action adds nothing;
- two conditions on one argument make two rules, either of which matches;
- a system call with a number above all that the profile names gives ENOSYS
  and not the default error, so that a C library falls back to an older call;
- without ``flags``, SECCOMP_FILTER_FLAG_SPEC_ALLOW is set.

A system call that libseccomp does not know falls under the default action,
which is safe where the default refuses.  Where the default allows, leaving out
a rule would open the filter, so the name is an error.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import struct
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from kata.errors import BundleError, HostError, UnsupportedError

CACHE = "/run/kata/seccomp"
MAX_INSTRUCTIONS = 4096  #: BPF_MAXINSNS
_FORMAT = 1  #: of the cache; raise it when the same profile compiles to something else

_ACTIONS = {
    "SCMP_ACT_KILL": 0, "SCMP_ACT_KILL_THREAD": 0, "SCMP_ACT_KILL_PROCESS": 0x8000_0000, "SCMP_ACT_TRAP": 0x0003_0000,
    "SCMP_ACT_ERRNO": 0x0005_0000, "SCMP_ACT_TRACE": 0x7FF0_0000, "SCMP_ACT_LOG": 0x7FFC_0000,
    "SCMP_ACT_ALLOW": 0x7FFF_0000}
_WITH_ERRNO = ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE")
_PERMISSIVE = ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE")
_OPERATORS = {"SCMP_CMP_" + name: i for i, name in enumerate(("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"), 1)}
_FLAGS = {"SECCOMP_FILTER_FLAG_TSYNC": 1, "SECCOMP_FILTER_FLAG_LOG": 2, "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4}
#: Architectures whose system calls a kernel of the key's can run.
_FAMILIES = {"x86_64": ("x86_64", "x86", "x32"), "aarch64": ("aarch64", "arm")}
_UNKNOWN = -1  # __NR_SCMP_ERROR; other negative numbers stand for calls of other architectures
_X32_BIT = 0x4000_0000


class Compiled(NamedTuple):
    """A filter: ``struct sock_filter[]``, SECCOMP_FILTER_FLAG_* and what to tell the user."""

    bpf: bytes
    flags: int
    warnings: tuple[str, ...]


def compile_profile(profile: Mapping[str, Any], cache: str | None = None) -> Compiled:
    """The filter of a checked ``linux.seccomp``.

    :param cache: directory of finished filters, "" for none, by default :data:`CACHE`; one that cannot be
        written is done without.
    :raise BundleError: a rule that libseccomp refuses, or too many of them.
    :raise UnsupportedError: SCMP_ACT_NOTIFY.
    :raise HostError: libseccomp is missing.
    """
    lib = _library()
    text = json.dumps([_FORMAT, _version(lib), os.uname().machine, profile], sort_keys=True)
    cache = CACHE if cache is None else cache
    path = os.path.join(cache, hashlib.sha256(text.encode()).hexdigest()) if cache else ""
    found = _cached(path) if path else None
    if found:
        return found
    result = _Compiler(lib, profile).run()
    if path:
        with suppress(OSError):
            _store(path, result)
    return result


# --- libseccomp ----------------------------------------------------------------------


class _Condition(ctypes.Structure):
    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


class _Version(ctypes.Structure):
    _fields_ = (("major", ctypes.c_uint), ("minor", ctypes.c_uint), ("micro", ctypes.c_uint))


def _library() -> ctypes.CDLL:
    try:
        lib = ctypes.CDLL("libseccomp.so.2")
    except OSError as e:
        raise HostError("linux.seccomp: libseccomp.so.2 is missing on the host",
                        "install the package libseccomp2") from e
    context = ctypes.c_void_p
    lib.seccomp_version.restype = ctypes.POINTER(_Version)
    lib.seccomp_init.restype = context
    lib.seccomp_init.argtypes = (ctypes.c_uint32,)
    lib.seccomp_release.restype = None
    lib.seccomp_release.argtypes = (context,)
    lib.seccomp_arch_native.restype = ctypes.c_uint32
    lib.seccomp_arch_resolve_name.restype = ctypes.c_uint32
    lib.seccomp_arch_resolve_name.argtypes = (ctypes.c_char_p,)
    lib.seccomp_arch_add.argtypes = (context, ctypes.c_uint32)
    lib.seccomp_syscall_resolve_name_arch.argtypes = (ctypes.c_uint32, ctypes.c_char_p)
    lib.seccomp_rule_add_array.argtypes = (context, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint,
                                           ctypes.POINTER(_Condition))
    lib.seccomp_export_bpf.argtypes = (context, ctypes.c_int)
    # The level of the host's kernel says nothing about the guest's, which has all up to 4 (log, kill process).
    if lib.seccomp_api_get() < 4:
        lib.seccomp_api_set(ctypes.c_uint(4))
    return lib


def library_version() -> str:
    """Version of the host's libseccomp.

    :raise HostError: it is missing.
    """
    return _version(_library())


def _version(lib: ctypes.CDLL) -> str:
    v = lib.seccomp_version().contents
    return f"{v.major}.{v.minor}.{v.micro}"


# --- compilation -----------------------------------------------------------------------


class _Compiler:
    def __init__(self, lib: ctypes.CDLL, profile: Mapping[str, Any]) -> None:
        self.lib = lib
        self.profile = profile
        self.default = _action(profile["defaultAction"], profile.get("defaultErrnoRet"))
        self.unknown: dict[str, None] = {}
        self.warnings: list[str] = []
        machine = os.uname().machine
        listed = [a.removeprefix("SCMP_ARCH_").lower() for a in profile.get("architectures", ())]
        family = _FAMILIES.get(machine, (machine,))
        #: The guest's own architecture is always filtered; others of its kernel if they are listed.
        self.arches = {a: int(lib.seccomp_arch_resolve_name(a.encode()))
                       for a in family if a in listed or a == family[0]}

    def run(self) -> Compiled:
        context = self.lib.seccomp_init(self.default)
        if not context:
            raise HostError("linux.seccomp: libseccomp cannot make a filter")
        try:
            for name, token in self.arches.items():
                code = self.lib.seccomp_arch_add(context, token)
                if code not in (0, -errno.EEXIST):
                    raise HostError(f"linux.seccomp: libseccomp cannot filter {name}: {os.strerror(-code)}")
            for i, rule in enumerate(self.profile.get("syscalls", ())):
                self._rule(context, f"linux.seccomp.syscalls[{i}]", rule)
            bpf = self._stub() + self._export(context)
        finally:
            self.lib.seccomp_release(context)
        if len(bpf) // 8 > MAX_INSTRUCTIONS:
            raise BundleError(f"linux.seccomp: the profile compiles to {len(bpf) // 8} instructions; "
                              f"a kernel takes {MAX_INSTRUCTIONS}", "name fewer system calls or conditions")
        if self.unknown:
            self.warnings.append(f"linux.seccomp: not known to libseccomp {_version(self.lib)}, so the default action "
                                 f"holds for them: {', '.join(self.unknown)}")
        return Compiled(bpf, self._filter_flags(), tuple(self.warnings))

    def _rule(self, context: int, at: str, rule: Mapping[str, Any]) -> None:
        action = _action(rule["action"], rule.get("errnoRet"))
        if action == self.default:
            return
        conditions = [_Condition(c["index"], _OPERATORS[c["op"]], c["value"], c.get("valueTwo", 0))
                      for c in rule.get("args", ())]
        indexes = [c.arg for c in conditions]
        together = [conditions] if len(set(indexes)) == len(indexes) else [[c] for c in conditions]
        native = self.lib.seccomp_arch_native()
        for name in rule["names"]:
            number = self.lib.seccomp_syscall_resolve_name_arch(native, name.encode())
            if number == _UNKNOWN:
                if self.profile["defaultAction"] in _PERMISSIVE and rule["action"] not in _PERMISSIVE:
                    raise BundleError(f"{at}.names: unknown system call {name!r}",
                                      f"libseccomp {_version(self.lib)} cannot refuse what it does not know")
                self.unknown[name] = None
                continue
            for group in together:
                array = (_Condition * len(group))(*group)
                code = self.lib.seccomp_rule_add_array(context, action, number, len(group), array)
                if code not in (0, -errno.EEXIST):
                    raise BundleError(f"{at}: libseccomp refuses the rule for {name!r}: {os.strerror(-code)}")

    def _filter_flags(self) -> int:
        if "flags" not in self.profile:
            return _FLAGS["SECCOMP_FILTER_FLAG_SPEC_ALLOW"]
        flags = 0
        for name in self.profile["flags"]:
            if name == "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV":
                self.warnings.append(f"linux.seccomp.flags: {name} means nothing without a listener")
            flags |= _FLAGS.get(name, 0)
        return flags

    def _export(self, context: int) -> bytes:
        fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
        with os.fdopen(fd, "rb") as f:
            code = self.lib.seccomp_export_bpf(context, fd)
            if code != 0:
                raise HostError(f"linux.seccomp: libseccomp cannot write the filter: {os.strerror(-code)}")
            f.seek(0)
            return f.read()

    def _stub(self) -> bytes:
        """Instructions before the filter: ENOSYS for calls newer than the profile (see the module's text)."""
        enosys = _ACTIONS["SCMP_ACT_ERRNO"] | errno.ENOSYS
        if self.profile["defaultAction"] in ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG") or self.default == enosys:
            return b""
        highest = {a: self._highest(token) for a, token in self.arches.items()}
        blocks: list[list[tuple[int, int, int, int]]] = []
        for arch, token in self.arches.items():
            if arch == "x32" or highest[arch] < 0:
                continue  # x32 has the token of x86_64 to the kernel and is told apart by a bit
            body = [_load(0)]
            if arch == "x86_64":
                body.append(_jump(_JGE, _X32_BIT, 3, 0))
            body += [_jump(_JGT, highest[arch], 0, 1), (_RET, 0, 0, enosys), _SKIP]
            if arch == "x86_64":
                if highest.get("x32", -1) >= 0:
                    body += [_jump(_JGT, highest["x32"], 0, 1), (_RET, 0, 0, enosys)]
                body.append(_SKIP)
            blocks.append([_jump(_JEQ, token, 0, len(body)), *body])
        if not blocks:
            return b""
        code = [_load(4), *(line for block in blocks for line in block)]
        return b"".join(struct.pack("=HBBI", *((_JA, 0, 0, len(code) - i - 1) if line is _SKIP else line))
                        for i, line in enumerate(code))

    def _highest(self, token: int) -> int:
        """The highest number of a system call that the profile names."""
        resolve = self.lib.seccomp_syscall_resolve_name_arch
        names = (name for rule in self.profile.get("syscalls", ()) for name in rule["names"])
        return max((resolve(token, name.encode()) for name in names), default=-1)


_RET, _JA, _JEQ, _JGT, _JGE = 0x06, 0x05, 0x15, 0x25, 0x35  # linux/bpf_common.h
_SKIP = (_JA, 0, 0, 0)  #: to the filter itself; the distance is put in last


def _load(offset: int) -> tuple[int, int, int, int]:
    return (0x20, 0, 0, offset)  # BPF_LD | BPF_W | BPF_ABS, of struct seccomp_data


def _jump(code: int, value: int, then: int, otherwise: int) -> tuple[int, int, int, int]:
    return (code, then, otherwise, value)


def _action(name: str, error: int | None) -> int:
    if name not in _ACTIONS:
        raise UnsupportedError(f"linux.seccomp: {name} needs a listener on the same kernel",
                               "decide in the profile, with SCMP_ACT_ERRNO or SCMP_ACT_ALLOW")
    return _ACTIONS[name] | ((errno.EPERM if error is None else error) if name in _WITH_ERRNO else 0)


# --- the cache ---------------------------------------------------------------------------


def _cached(path: str) -> Compiled | None:
    """A finished filter: a line of JSON (flags, warnings), then the program."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    with os.fdopen(fd, "rb") as f:
        head, _newline, bpf = f.read().partition(b"\n")
    try:
        flags, warnings = json.loads(head)
    except ValueError:
        return None  # cut short by a full disk
    return Compiled(bpf, flags, tuple(warnings)) if bpf and len(bpf) % 8 == 0 else None


def _store(path: str, compiled: Compiled) -> None:
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    aside = f"{path}.{os.getpid()}.tmp"
    fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(fd, "wb") as f:
            f.write(json.dumps([compiled.flags, compiled.warnings]).encode() + b"\n" + compiled.bpf)
        os.rename(aside, path)
    except OSError:
        os.unlink(aside)
        raise
