"""bpf(2): programs on control groups."""

from __future__ import annotations

import ctypes
import errno
import struct

from kata_agent.linux.syscalls import invoke

BPF_PROG_LOAD = 5
BPF_PROG_ATTACH = 8
BPF_PROG_TYPE_CGROUP_DEVICE = 15
BPF_CGROUP_DEVICE = 6

_LOG_SIZE = 65536  # bytes for the verifier's words


def load(kind: int, instructions: bytes, name: str = "", licence: str = "GPL") -> int:
    """Load a program (8 bytes an instruction); its descriptor.

    The verifier is asked for its words only when it refuses: it would say a
    line for each instruction.

    :raise OSError: what it said last is in the text.
    """
    code = ctypes.create_string_buffer(instructions, len(instructions))
    licence_text = ctypes.create_string_buffer(licence.encode())
    log = ctypes.create_string_buffer(_LOG_SIZE)

    def attempt(level: int) -> int:
        size, where = (_LOG_SIZE, ctypes.addressof(log)) if level else (0, 0)
        return _bpf(BPF_PROG_LOAD, struct.pack(
            "=IIQQIIQII16s", kind, len(instructions) // 8, ctypes.addressof(code), ctypes.addressof(licence_text),
            level, size, where, 0, 0, name.encode()[:15]))

    try:
        return attempt(0)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EACCES):
            raise
    try:
        return attempt(1)
    except OSError as error:
        lines = [text for text in log.value.decode(errors="replace").splitlines() if not text.startswith("processed ")]
        raise OSError(error.errno, " - ".join([error.strerror or "bpf", *lines[-1:]])) from None


def attach(target_fd: int, prog_fd: int, where: int) -> None:
    """Attach a program to a cgroup directory; one attached before makes way for it."""
    # Without BPF_F_ALLOW_MULTI.
    _bpf(BPF_PROG_ATTACH, struct.pack("=IIII", target_fd, prog_fd, where, 0))


def _bpf(command: int, attr: bytes) -> int:
    return invoke("bpf", command, ctypes.create_string_buffer(attr, len(attr)), len(attr))
