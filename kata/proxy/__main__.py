"""The proxy's program: ``python -m kata.proxy SANDBOX-DIRECTORY [--resume | --pooled]``.

Started by a verb in the sandbox's network namespace and cgroup, with the
listening control socket as descriptor 3.  QEMU is started, and a clone has its
state, before anything heavy is imported: the guest runs meanwhile.  With
``--resume`` it takes over a machine whose proxy is gone.  With ``--pooled`` it
makes a machine warm, stops it, and waits until somebody claims it.
"""

from __future__ import annotations

import gc
import os
import sys

from kata.errors import HostError, KataError
from kata.proxy.log import log
from kata.proxy.start import Start
from kata_agent.linux import syscalls

TYPE_CHECKING = False  # typing is not imported: it is slow, and QEMU waits for it
if TYPE_CHECKING:
    from typing import Any

LISTENER = 3


def main(argv: list[str]) -> int:
    gc.disable()  # hardly anything of an import is garbage
    syscalls.set_name("kata-proxy")
    directory, resume, pooled = argv[0], "--resume" in argv[1:], "--pooled" in argv[1:]
    if pooled:
        # It is claimed by renaming it: only the working directory goes along.
        os.chdir(directory)
        directory = "."
    # QEMU must not have it: a listener that it held would take connections after our end.
    os.set_inheritable(LISTENER, False)
    try:
        start = Start(directory)
    except KataError as e:
        log(f"cannot start: {e}")
        return 1
    start.phase("proxy runs")
    failure: KataError | None = None
    try:
        if resume:
            start.resume()
        else:
            start.boot()
    except KataError as e:
        failure = e
    except OSError as e:
        failure = HostError(f"the proxy cannot set the sandbox up: {e}")
    # Heavy from here on: asyncio, protobuf, QMP.
    _lighten()
    import socket

    from kata.proxy import boot
    from kata.proxy.serve import serve

    gc.freeze()
    gc.enable()
    how = boot.take_over if resume else boot.warm_up if pooled else boot.boot
    serve(start, socket.socket(fileno=LISTENER), failure, how)
    sys.stdout.flush()
    # Nothing is left to tidy up; the interpreter's own end takes longer than ours.
    os._exit(0)


def _lighten() -> None:
    """Keep out what others import and nobody here uses: it takes time and memory.

    asyncio does without :mod:`ssl` where an interpreter lacks it; qemu.qmp names its SSLContext in annotations.
    """
    sys.modules["ssl"] = None  # type: ignore[assignment]
    import asyncio  # noqa: F401

    import kata_agent.protocol  # noqa: F401  (before anything of protobuf)

    absent: Any = type(sys)("ssl")
    absent.SSLContext = object
    sys.modules["ssl"] = absent


if __name__ == "__main__":
    main(sys.argv[1:])
