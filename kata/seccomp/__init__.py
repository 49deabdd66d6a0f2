"""Seccomp profiles compiled to BPF on the host.

The host's processor is faster than an emulated one, and most containers bring
the same profile, so the finished program is kept by the hash of its profile.
libseccomp names the numbers; the program is made here (:mod:`kata.seccomp.bpf`)
because libseccomp 2.5 answers wrongly, or never, for some profiles with several
conditions on one system call.  Decisions are those of runc:

- a rule whose action is the default action adds nothing;
- two conditions on one argument make two rules, either of which matches;
- a rule without conditions counts before those with conditions, and of several
  that match, the one with more conditions;
- a system call with a number above all that the profile names gives ENOSYS
  and not the default error, so that a C library falls back to an older call;
- without ``flags``, SECCOMP_FILTER_FLAG_SPEC_ALLOW is set.

A system call that libseccomp does not know falls under the default action,
which is safe where the default refuses.  Where the default allows, leaving out
a rule would open the filter, so the name is an error.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from kata.errors import BundleError, UnsupportedError
from kata.seccomp.bpf import Condition, Outcome, Ranges, Rule, always, program
from kata.seccomp.library import UNKNOWN, Library

CACHE = "/run/kata/seccomp"
MAX_INSTRUCTIONS = 4096  #: BPF_MAXINSNS
_FORMAT = 2  #: of the cache; raise it when the same profile compiles to something else

_ACTIONS = {
    "SCMP_ACT_KILL": 0, "SCMP_ACT_KILL_THREAD": 0, "SCMP_ACT_KILL_PROCESS": 0x8000_0000, "SCMP_ACT_TRAP": 0x0003_0000,
    "SCMP_ACT_ERRNO": 0x0005_0000, "SCMP_ACT_TRACE": 0x7FF0_0000, "SCMP_ACT_LOG": 0x7FFC_0000,
    "SCMP_ACT_ALLOW": 0x7FFF_0000}
_WITH_ERRNO = ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE")
_PERMISSIVE = ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE")
_KILL = _ACTIONS["SCMP_ACT_KILL"]
_ENOSYS = _ACTIONS["SCMP_ACT_ERRNO"] | errno.ENOSYS
_FLAGS = {"SECCOMP_FILTER_FLAG_TSYNC": 1, "SECCOMP_FILTER_FLAG_LOG": 2, "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4}

#: Architectures whose system calls a kernel of the key's can run, its own first.
_FAMILIES = {"x86_64": ("x86_64", "x86", "x32"), "aarch64": ("aarch64", "arm")}
_X32 = 0x4000_0000  #: numbers of x32, which the kernel counts as x86_64
_SKIPPED = 0xFFFF_FFFF  #: the number a tracer sets to skip a call

#: On 32-bit x86 a program can make these calls directly or through socketcall(2) and ipc(2), whose first
#: argument says which; libseccomp gives neither number.  name -> (direct number or -1, call, argument).
_MULTIPLEXED = {
    **{name: (direct, 102, i) for i, (name, direct) in enumerate((
        ("socket", 359), ("bind", 361), ("connect", 362), ("listen", 363), ("accept", -1), ("getsockname", 367),
        ("getpeername", 368), ("socketpair", 360), ("send", -1), ("recv", -1), ("sendto", 369), ("recvfrom", 371),
        ("shutdown", 373), ("setsockopt", 366), ("getsockopt", 365), ("sendmsg", 370), ("recvmsg", 372),
        ("accept4", 364), ("recvmmsg", 337), ("sendmmsg", 345)), 1)},
    "semop": (-1, 117, 1), "semget": (393, 117, 2), "semctl": (394, 117, 3), "semtimedop": (-1, 117, 4),
    "msgsnd": (400, 117, 11), "msgrcv": (401, 117, 12), "msgget": (399, 117, 13), "msgctl": (402, 117, 14),
    "shmat": (397, 117, 21), "shmdt": (398, 117, 22), "shmget": (395, 117, 23), "shmctl": (396, 117, 24),
}


class Compiled(NamedTuple):
    """A filter: ``struct sock_filter[]``, SECCOMP_FILTER_FLAG_* and what to tell the user."""

    bpf: bytes
    flags: int
    warnings: tuple[str, ...]


def compile_profile(profile: Mapping[str, Any], cache: str | None = None) -> Compiled:
    """The filter of a checked ``linux.seccomp``.

    :param cache: directory of finished filters, "" for none, by default :data:`CACHE`; one that cannot be
        written is done without.
    :raise BundleError: an unknown system call that cannot be left out, or too many rules.
    :raise UnsupportedError: SCMP_ACT_NOTIFY.
    :raise HostError: libseccomp is missing.
    """
    library = Library()
    text = json.dumps([_FORMAT, library.version(), os.uname().machine, profile], sort_keys=True)
    cache = CACHE if cache is None else cache
    path = os.path.join(cache, hashlib.sha256(text.encode()).hexdigest()) if cache else ""
    found = _cached(path) if path else None
    if found:
        return found
    result = _Compiler(library, profile).run()
    if path:
        with suppress(OSError):
            _store(path, result)
    return result


def library_version() -> str:
    """Version of the host's libseccomp.

    :raise HostError: it is missing.
    """
    return Library().version()


class _Compiler:
    def __init__(self, library: Library, profile: Mapping[str, Any]) -> None:
        self.library = library
        self.profile = profile
        self.default = _action(profile["defaultAction"], profile.get("defaultErrnoRet"))
        self.unknown: dict[str, None] = {}
        self.warnings: list[str] = []
        machine = os.uname().machine
        listed = [a.removeprefix("SCMP_ARCH_").lower() for a in profile.get("architectures", ())]
        family = _FAMILIES.get(machine, (machine,))
        self.native = family[0]
        #: The guest's own architecture is always filtered; others of its kernel if they are listed.
        self.tokens = {a: library.architecture(a) for a in family if a in listed or a == self.native}
        #: architecture -> number -> rules
        self.rules: dict[str, dict[int, list[Rule]]] = {a: {} for a in self.tokens}
        self.highest = dict.fromkeys(self.tokens, -1)

    def run(self) -> Compiled:
        for i, rule in enumerate(self.profile.get("syscalls", ())):
            self._add(f"linux.seccomp.syscalls[{i}]", rule)
        bpf = program(((self.tokens[a], self._ranges(a)) for a in self.tokens if a != "x32"), _KILL)
        if len(bpf) // 8 > MAX_INSTRUCTIONS:
            raise BundleError(f"linux.seccomp: the profile compiles to {len(bpf) // 8} instructions; "
                              f"a kernel takes {MAX_INSTRUCTIONS}", "name fewer system calls or conditions")
        if self.unknown:
            self.warnings.append(f"linux.seccomp: not known to libseccomp {self.library.version()}, so the default "
                                 f"action holds for them: {', '.join(self.unknown)}")
        return Compiled(bpf, self._filter_flags(), tuple(self.warnings))

    def _add(self, at: str, rule: Mapping[str, Any]) -> None:
        action = _action(rule["action"], rule.get("errnoRet"))
        conditions = tuple(Condition(c["index"], c["op"].removeprefix("SCMP_CMP_"), c["value"], c.get("valueTwo", 0))
                           for c in rule.get("args", ()))
        together = len({c.argument for c in conditions}) == len(conditions)
        groups = [conditions] if together else [(c,) for c in conditions]
        for name in rule["names"]:
            if self.library.number(self.tokens[self.native], name) == UNKNOWN:
                if action != self.default and self.profile["defaultAction"] in _PERMISSIVE \
                        and rule["action"] not in _PERMISSIVE:
                    raise BundleError(f"{at}.names: unknown system call {name!r}",
                                      f"libseccomp {self.library.version()} cannot refuse what it does not know")
                self.unknown[name] = None
                continue
            for arch, token in self.tokens.items():
                number = self.library.number(token, name)
                if arch == "x86" and name in _MULTIPLEXED:
                    number, call, which = _MULTIPLEXED[name]
                    if action != self.default:
                        self.rules[arch].setdefault(call, []).extend(
                            Rule(_through(group, which), action) for group in groups)
                self.highest[arch] = max(self.highest[arch], number)
                if number >= 0 and action != self.default:
                    self.rules[arch].setdefault(number, []).extend(Rule(group, action) for group in groups)

    def _ranges(self, arch: str) -> Ranges:
        """What happens to each number; above the highest one that the profile names, ENOSYS."""
        default = always(self.default)
        newer = default if self.profile["defaultAction"] in ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG") else always(_ENOSYS)
        ranges = Ranges(default)
        if self.highest[arch] >= 0:
            ranges.split(self.highest[arch] + 1, newer)
        if arch == "x86_64":
            ranges.split(_X32, default if "x32" in self.tokens else always(_KILL))
            if self.highest.get("x32", -1) >= 0:
                ranges.split(self.highest["x32"] + 1, newer)
            ranges.split(_SKIPPED, default)
        rules = {**self.rules[arch], **(self.rules.get("x32", {}) if arch == "x86_64" else {})}
        ranges.set({number: self._outcome(found) for number, found in rules.items()})
        return ranges

    def _outcome(self, rules: list[Rule]) -> Outcome:
        for rule in rules:
            if not rule.conditions:
                return (rule,)
        ordered = sorted(dict.fromkeys(rules), key=lambda rule: -len(rule.conditions))
        return (*ordered, *always(self.default))

    def _filter_flags(self) -> int:
        if "flags" not in self.profile:
            return _FLAGS["SECCOMP_FILTER_FLAG_SPEC_ALLOW"]
        flags = 0
        for name in self.profile["flags"]:
            if name == "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV":
                self.warnings.append(f"linux.seccomp.flags: {name} means nothing without a listener")
            flags |= _FLAGS.get(name, 0)
        return flags


def _through(conditions: tuple[Condition, ...], which: int) -> tuple[Condition, ...]:
    """Conditions of a multiplexed call.

    Its real arguments lie in memory, which a filter cannot read.  As with
    libseccomp, and so runc, what a rule says of the first one is lost.
    """
    return (Condition(0, "EQ", which), *(c for c in conditions if c.argument != 0))


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
