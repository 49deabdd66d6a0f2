"""libseccomp through ctypes: names of system calls and architectures to numbers."""

from __future__ import annotations

import ctypes

from kata.errors import HostError

#: Not known to libseccomp; other negative numbers stand for calls of other architectures.
UNKNOWN = -1


class _Version(ctypes.Structure):
    _fields_ = (("major", ctypes.c_uint), ("minor", ctypes.c_uint), ("micro", ctypes.c_uint))


class Library:
    """The host's libseccomp.

    :raise HostError: it is missing.
    """

    def __init__(self) -> None:
        try:
            self._lib = ctypes.CDLL("libseccomp.so.2")
        except OSError as e:
            raise HostError("linux.seccomp: libseccomp.so.2 is missing on the host",
                            "install the package libseccomp2") from e
        self._lib.seccomp_version.restype = ctypes.POINTER(_Version)
        self._lib.seccomp_arch_resolve_name.restype = ctypes.c_uint32
        self._lib.seccomp_arch_resolve_name.argtypes = (ctypes.c_char_p,)
        self._resolve = self._lib.seccomp_syscall_resolve_name_arch
        self._resolve.argtypes = (ctypes.c_uint32, ctypes.c_char_p)

    def version(self) -> str:
        v = self._lib.seccomp_version().contents
        return f"{v.major}.{v.minor}.{v.micro}"

    def architecture(self, name: str) -> int:
        """AUDIT_ARCH_* of an architecture, 0 if libseccomp does not know it; x32 has a number of its own here."""
        return int(self._lib.seccomp_arch_resolve_name(name.encode()))

    def number(self, architecture: int, name: str) -> int:
        """Number of a system call; negative if the architecture lacks it, :data:`UNKNOWN` if no one has it."""
        return int(self._resolve(architecture, name.encode()))
