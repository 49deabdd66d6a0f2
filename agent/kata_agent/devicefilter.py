"""Device rules of a container as a BPF program on its cgroup.

cgroup v2 has no device files: a program of type BPF_PROG_TYPE_CGROUP_DEVICE
is asked at every open(2) and mknod(2) of a device (bpf-helpers(7); its context
is struct bpf_cgroup_dev_ctx: access and type, major, minor).
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Iterable, Sequence

from kata_agent import log
from kata_agent.devices import DeviceNode
from kata_agent.errors import invalid
from kata_agent.linux import bpf
from kata_agent.protocol import oci_pb2

_TYPE_BLOCK, _TYPE_CHAR = 1, 2
_ACCESS = {"m": 1, "r": 2, "w": 4}
_MAX_RULES = 512
_MAX_LOADED = 16  # programs

# Opcodes of eBPF (kernel: Documentation/bpf/instruction-set.rst).
_LDX_W, _ALU32_AND, _ALU32_RSH, _MOV32, _MOV_IMM, _EXIT = 0x61, 0x54, 0x74, 0xBC, 0xB7, 0x95
_JNE_IMM, _JNE_REG, _JEQ_IMM = 0x55, 0x5D, 0x15


class Rule:
    """One rule; -1 for any number, "a" for both kinds."""

    __slots__ = ("access", "allow", "kind", "major", "minor")

    def __init__(self, allow: bool, kind: str, major: int, minor: int, access: str) -> None:
        self.allow = allow
        self.kind = kind
        self.major = major
        self.minor = minor
        self.access = access

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for rules that mean the same."""
        return self.allow, self.kind, self.major, self.minor, frozenset(self.access)


#: What every container may use, whatever its rules (config-linux.md, "Default Devices").
DEFAULTS = (
    Rule(True, "c", -1, -1, "m"), Rule(True, "b", -1, -1, "m"),
    *(Rule(True, "c", major, minor, "rwm") for major, minor in (
        (1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (136, -1))),
)


def rules(devices: Sequence[oci_pb2.LinuxDeviceCgroup], nodes: Iterable[DeviceNode]) -> list[Rule]:
    """All rules of a container, the last of which decides.

    Kata 1.x clients send none; then a container may use the devices that it gets.

    :raise AgentError: INVALID_ARGUMENT.
    """
    asked = from_spec(devices)
    if not asked:
        for node in nodes:
            kind = "b" if stat.S_ISBLK(node.mode) else "c"
            if not stat.S_ISFIFO(node.mode):
                asked.append(Rule(True, kind, node.major, node.minor, "rwm"))
    return [*asked, *DEFAULTS]


def from_spec(devices: Iterable[oci_pb2.LinuxDeviceCgroup]) -> list[Rule]:
    """The rules of linux.resources.devices, checked.

    0:0 is what Kata 1.x sends for a rule without numbers ("a" rules only).

    :raise AgentError: INVALID_ARGUMENT.
    """
    rules = []
    for device in devices:
        kind = device.Type or "a"
        if kind not in ("a", "b", "c"):
            raise invalid(f"device rule of unknown type {device.Type!r}")
        if set(device.Access) - set(_ACCESS):
            raise invalid(f"device rule with unknown access {device.Access!r}")
        numbers = (device.Major, device.Minor)
        if kind == "a" and numbers == (0, 0):
            numbers = (-1, -1)
        if not all(-1 <= number < 1 << 31 for number in numbers):
            raise invalid(f"device rule for {device.Major}:{device.Minor}, which is no device number")
        rules.append(Rule(device.Allow, kind, *numbers, device.Access or "rwm"))
    if len(rules) > _MAX_RULES:
        raise invalid(f"more than {_MAX_RULES} device rules")
    return rules


def program(rules: Sequence[Rule]) -> bytes:
    """The BPF program: the last rule that matches decides, nothing matches = denied.

    An allow rule matches when it covers all of the access that is asked for, a
    deny rule when it covers any of it.  Equal rules mean the same as the last
    of them, so that engines which spell the defaults out get the same program.
    """
    code = [
        _insn(_LDX_W, 2, 1, 0),  # r2 = type | access << 16
        _insn(_MOV32, 3, 2),
        _insn(_ALU32_AND, 2, imm=0xFFFF),  # r2 = type
        _insn(_ALU32_RSH, 3, imm=16),  # r3 = access
        _insn(_LDX_W, 4, 1, 4),  # r4 = major
        _insn(_LDX_W, 5, 1, 8),  # r5 = minor
    ]
    for rule in {rule.key: rule for rule in reversed(rules)}.values():
        code += _rule(rule)
        if rule.kind == "a" and rule.major < 0 and rule.minor < 0 and set(rule.access) == set(_ACCESS):
            break  # nothing comes past it; the verifier refuses code that cannot be reached
    else:
        code += [_insn(_MOV_IMM, 0, imm=0), _insn(_EXIT)]
    return b"".join(code)


def _rule(rule: Rule) -> list[bytes]:
    mask = sum(_ACCESS[letter] for letter in set(rule.access))
    tests: list[tuple[int, int, int, int]] = []  # (opcode, register, other register, immediate): leaves if true
    if rule.kind != "a":
        tests.append((_JNE_IMM, 2, 0, _TYPE_BLOCK if rule.kind == "b" else _TYPE_CHAR))
    setup: list[bytes] = []
    if mask != 7:
        setup = [_insn(_MOV32, 1, 3), _insn(_ALU32_AND, 1, imm=mask)]
        tests.append((_JNE_REG, 1, 3, 0) if rule.allow else (_JEQ_IMM, 1, 0, 0))
    if rule.major >= 0:
        tests.append((_JNE_IMM, 4, 0, rule.major))
    if rule.minor >= 0:
        tests.append((_JNE_IMM, 5, 0, rule.minor))
    end = [_insn(_MOV_IMM, 0, imm=int(rule.allow)), _insn(_EXIT)]
    body: list[bytes] = list(setup)
    for index, (opcode, register, other, imm) in enumerate(tests):
        body.append(_insn(opcode, register, other, len(tests) - index - 1 + len(end), imm))
    return body + end


def _insn(opcode: int, dst: int = 0, src: int = 0, offset: int = 0, imm: int = 0) -> bytes:
    return struct.pack("=BBhi", opcode, dst | src << 4, offset, imm)


#: Programs that the kernel holds for containers to come.  It verifies and compiles a program when it is loaded,
#: which takes an emulated processor longer than all else at a container's cgroup.
_loaded: dict[bytes, int] = {}


def load(code: bytes) -> int:
    """Descriptor of the program ``code``, which stays ours."""
    fd = _loaded.pop(code, -1)
    if fd < 0:
        fd = bpf.load(bpf.BPF_PROG_TYPE_CGROUP_DEVICE, code, "kata_devices")
    _loaded[code] = fd
    if len(_loaded) > _MAX_LOADED:
        os.close(_loaded.pop(next(iter(_loaded))))
    return fd


def preload() -> None:
    """Load what a container without rules of its own gets.

    A template has it then, and with it the 2 MiB that the kernel fills when the
    first program is compiled: each clone would have them of its own.
    """
    try:
        load(program(DEFAULTS))
    except OSError as error:
        log.debug(f"device rules: {error.strerror}")  # the first container says it louder


def attach(cgroup: str, rules: Sequence[Rule]) -> None:
    """Make ``rules`` the device rules of a cgroup; a kernel without BPF gets a warning."""
    fd = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        bpf.attach(fd, load(program(rules)), bpf.BPF_CGROUP_DEVICE)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EPERM, errno.EINVAL):
            raise
        log.warning(f"device rules are not enforced: {error.strerror}")
    finally:
        os.close(fd)
