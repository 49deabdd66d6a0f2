"""What conmon and containerd-shim are to a container: its parent.

Run as a program: ``reaper.py STATUS_FD PID_FILE COMMAND...``.  It becomes the
reaper of orphans, runs the command with its own standard streams, then waits
for the process named in PID_FILE and for every other descendant.  It tells on
STATUS_FD, a line of JSON each: ``{"verb": code}`` when the command ended,
``{"exit": code}`` when the container's process ended (128 + signal when killed,
as engines count).  The descriptor closes when no descendant is left, which
makes "nothing is left behind" an event.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys

PR_SET_CHILD_SUBREAPER = 36


def code_of(status: int) -> int:
    """An exit code as shells and engines count it."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def main() -> None:
    status_fd, pid_file, command = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    os.set_inheritable(status_fd, False)
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")

    def tell(**what: int) -> None:
        try:
            os.write(status_fd, json.dumps(what).encode() + b"\n")
        except BrokenPipeError:
            pass  # the test is over; keep reaping

    verb = os.fork()
    if verb == 0:
        try:
            os.execvp(command[0], command)
        except OSError as exc:
            print(f"{command[0]}: {exc.strerror}", file=sys.stderr)
            os._exit(127)
    # The streams belong to the container: whoever reads them must see their end.
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    for fd in range(3, 64):
        if fd not in (status_fd, null):
            try:
                os.close(fd)
            except OSError:
                pass
    container = 0
    ended: dict[int, int] = {}
    verb_done = False
    while True:
        try:
            pid, status = os.wait()
        except ChildProcessError:
            break
        ended[pid] = code_of(status)
        if pid == verb:
            verb_done = True
            try:
                with open(pid_file, encoding="ascii") as f:
                    container = int(f.read())
            except (OSError, ValueError):
                container = 0
            tell(verb=ended[pid])
        if verb_done and container in ended:
            tell(exit=ended.pop(container))
            container = 0


main()
