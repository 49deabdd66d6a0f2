"""What conmon and containerd-shim are to a container: the parent of what a verb leaves behind.

``python -m kata.conformance.engines.reaper STATUS_FD PID_FILE COMMAND...`` adopts
orphans, runs the command with its own standard streams, then waits for every
descendant.  It tells on STATUS_FD, a line each: ``verb CODE`` when the command
ended, ``exit CODE`` when the process named in PID_FILE did (128 + signal when
killed, as engines count).  The descriptor closes when no descendant is left.
"""

from __future__ import annotations

import os
import sys

from kata.spawn import spawn
from kata_agent.linux.syscalls import set_child_subreaper


def main() -> None:
    status, pid_file, command = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    os.set_inheritable(status, False)
    set_child_subreaper()
    verb = spawn(command, stdio=(0, 1, 2))
    # The streams belong to the container: whoever reads them must see their end.
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    container, verb_done = 0, False
    ended: dict[int, int] = {}
    while True:
        try:
            pid, how = os.wait()
        except ChildProcessError:
            return
        code = os.waitstatus_to_exitcode(how)
        ended[pid] = code if code >= 0 else 128 - code
        if pid == verb:
            verb_done = True
            try:
                with open(pid_file, encoding="ascii") as f:
                    container = int(f.read())
            except (OSError, ValueError):
                container = 0
            _tell(status, "verb", ended[pid])
        if verb_done and container in ended:
            _tell(status, "exit", ended.pop(container))
            container = 0


def _tell(fd: int, what: str, code: int) -> None:
    try:
        os.write(fd, f"{what} {code}\n".encode())
    except BrokenPipeError:
        pass  # nobody asks any more; go on reaping


if __name__ == "__main__":
    main()
