"""Files that come piece by piece, for guests without a shared folder."""

from __future__ import annotations

import os
import stat

from kata_agent.errors import internal, invalid
from kata_agent.protocol import agent_pb2
from kata_agent.resolve import ensure

#: Only below these: what the host copies are volumes of containers.
_ROOTS = ("/run/kata-containers/", "/run/kata/")
_MAX_SIZE = 1 << 40  # bytes


def copy_in(request: agent_pb2.CopyFileRequest) -> None:
    """Write one piece; with the last one the file gets its name.

    :raise AgentError: INVALID_ARGUMENT, a path or numbers that cannot be.
    """
    path = request.path
    if not path.startswith(_ROOTS) or path != os.path.normpath(path) or "\0" in path:
        raise invalid(f"{path[:256]!r} is not a plain path below {' or '.join(_ROOTS)}")
    end = request.offset + len(request.data)
    if not 0 <= request.offset <= end <= request.file_size <= _MAX_SIZE:
        raise invalid(f"{len(request.data)} bytes at {request.offset} do not fit into {request.file_size}")
    folder, _, name = path.rpartition("/")
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        parent = ensure(root, folder, True, stat.S_IMODE(request.dir_mode) or 0o755)
    finally:
        os.close(root)
    part = f".{name[:200]}.part"
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | (0 if request.offset else os.O_TRUNC)
        fd = os.open(part, flags, 0o600, dir_fd=parent)
        try:
            if os.fstat(fd).st_size != request.offset:
                raise invalid(f"{path}: {os.fstat(fd).st_size} bytes are there, the piece starts at {request.offset}")
            written = 0
            while written < len(request.data):
                written += os.pwrite(fd, request.data[written:], request.offset + written)
            if end < request.file_size:
                return
            os.fchown(fd, request.uid, request.gid)
            os.fchmod(fd, stat.S_IMODE(request.file_mode))
        finally:
            os.close(fd)
        os.rename(part, name, src_dir_fd=parent, dst_dir_fd=parent)
    except OSError as error:
        raise internal(f"cannot write {path}: {error.strerror}") from None
    finally:
        os.close(parent)
