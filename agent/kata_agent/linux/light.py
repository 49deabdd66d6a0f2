"""``signal``, ``socket`` and ``deque`` without the library's modules around them.

Those make enumerations of a thousand constants and bring ``enum``, ``functools``,
``selectors`` and ``collections``: a quarter of a second of an emulated guest's
boot.  What is in C under them serves.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    import signal
    import socket
    from collections import deque
else:
    import _signal as signal
    import _socket
    import struct
    from _collections import deque

    class _Socket(_socket.socket):
        """``socket.socket`` as far as the agent uses it."""

        def accept(self):
            fd, address = self._accept()
            return _Socket(fileno=fd), address

        def __enter__(self):
            return self

        def __exit__(self, *_exc):
            self.close()

    def _socketpair(family=_socket.AF_UNIX, type=_socket.SOCK_STREAM):
        return tuple(_Socket(fileno=end.detach()) for end in _socket.socketpair(family, type))

    def _send_fds(sock, buffers, fds):
        """Send bytes with file descriptors (unix(7), SCM_RIGHTS)."""
        rights = struct.pack(f"{len(fds)}i", *fds)
        return sock.sendmsg(buffers, [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])

    def _recv_fds(sock, size, most):
        """``(bytes, descriptors, flags, address)``; at most ``most`` descriptors are taken."""
        data, ancillary, flags, address = sock.recvmsg(size, _socket.CMSG_LEN(4 * most))
        fds = []
        for level, kind, rights in ancillary:
            if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
                fds += struct.unpack_from(f"{len(rights) // 4}i", rights)
        return data, fds, flags, address

    socket = type(sys)("socket")
    vars(socket).update(vars(_socket))
    vars(socket).update(socket=_Socket, socketpair=_socketpair, send_fds=_send_fds, recv_fds=_recv_fds)

__all__ = ["deque", "signal", "socket"]
