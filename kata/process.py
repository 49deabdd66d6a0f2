"""The one door to other programs: the only file that calls subprocess.

A command's argument list is logged and appears in the error, together with its
exit code and the last lines it wrote, so that a user can run it again by hand.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from kata.errors import HostError

LAST_LINES = 5  #: lines of a failed command's output that its error repeats
PIPE = subprocess.PIPE
TimeoutExpired = subprocess.TimeoutExpired


@dataclass(frozen=True, slots=True)
class Completed:
    """What a command left: its exit code and output."""

    argv: tuple[str, ...]
    code: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Standard output as text."""
        return self.stdout.decode(errors="replace")


def last_lines(output: bytes, count: int = LAST_LINES) -> str:
    """The last ``count`` lines that are not empty, joined by `` | ``."""
    lines = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-count:])


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    timeout: float,
    check: bool = True,
    input: bytes = b"",
    stdout: BinaryIO | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    pass_fds: Sequence[int] = (),
    hint: str = "",
) -> Completed:
    """Run a command to its end and return what it wrote.

    :param timeout: seconds; the command is killed when they are over.
    :param check: raise when the exit code is not 0.
    :param input: what it reads from standard input; by default nothing.
    :param stdout: a file that takes standard output instead of the result.
    :param env: the whole environment; by default the caller's.
    :param hint: what a user can do when the command fails or is missing.
    :raise HostError: not found, killed by the timeout, or (``check``) failed.
    """
    args = [os.fspath(a) for a in argv]
    try:
        done = subprocess.run(
            args,
            input=input,
            stdout=subprocess.PIPE if stdout is None else stdout,
            stderr=subprocess.PIPE,
            env=None if env is None else dict(env),
            cwd=cwd,
            timeout=timeout,
            pass_fds=tuple(pass_fds),
            check=False,
        )
    except FileNotFoundError as e:
        if cwd is not None and not os.path.isdir(cwd):
            raise HostError(f"cannot run {args[0]}: directory {os.fspath(cwd)} does not exist") from e
        raise HostError(f"cannot run {args[0]}: program not found", hint or f"install {args[0]}") from e
    except OSError as e:
        raise HostError(f"cannot run {args[0]}: {e.strerror}", hint) from e
    except subprocess.TimeoutExpired as e:
        said = last_lines((e.stderr or b"") + (e.stdout or b""))
        text = f"{shlex.join(args)} did not end within {timeout:g} s and was killed"
        raise HostError(f"{text}; it last said: {said}" if said else text, hint) from e
    result = Completed(tuple(args), done.returncode, done.stdout or b"", done.stderr or b"")
    if check and result.code != 0:
        how = f"exit code {result.code}" if result.code > 0 else f"signal {-result.code}"
        said = last_lines(result.stderr) or last_lines(result.stdout)
        raise HostError(f"{shlex.join(args)} failed with {how}" + (f": {said}" if said else ""), hint)
    return result


def start(
    argv: Sequence[str | os.PathLike[str]],
    *,
    stdin: int | BinaryIO = subprocess.DEVNULL,
    output: int | BinaryIO = subprocess.PIPE,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    hint: str = "",
) -> subprocess.Popen[bytes]:
    """Start a command that goes on, in a session of its own; who calls ends it.

    :param stdin: what it reads from; by default nothing.
    :param output: what takes its output and errors; by default a pipe.
    :raise HostError: not found, or not to be executed.
    """
    args = [os.fspath(a) for a in argv]
    try:
        return subprocess.Popen(args, stdin=stdin, stdout=output, stderr=subprocess.STDOUT,
                                env=None if env is None else dict(env), start_new_session=True,
                                pass_fds=tuple(pass_fds))
    except OSError as e:
        raise HostError(f"cannot run {args[0]}: {e.strerror}", hint or f"install {args[0]}") from e


def follow(
    argv: Sequence[str | os.PathLike[str]],
    line: Callable[[str], None],
    *,
    timeout: float,
    env: Mapping[str, str] | None = None,
    hint: str = "",
) -> None:
    """Run a long command, and call ``line`` with each line of its output and errors as it comes.

    The command and all that it starts end with this call, however it ends.

    :param timeout: seconds; the command is killed when they are over.
    :raise HostError: not found, killed by the timeout, or failed.
    """
    args = [os.fspath(a) for a in argv]
    process = start(args, env=env, hint=hint)
    late = threading.Event()

    def kill() -> None:
        late.set()
        os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(timeout, kill)
    timer.start()
    said: deque[str] = deque(maxlen=4 * LAST_LINES)  # jobs that run at once go on after the one that failed
    try:
        assert process.stdout is not None
        with process.stdout as output:
            for raw in output:
                text = raw.decode(errors="replace").rstrip("\n")
                said.append(text.strip())
                line(text)
        timer.cancel()
        code = process.wait()
    finally:
        timer.cancel()
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if late.is_set():
        raise HostError(f"{shlex.join(args)} did not end within {timeout:g} s and was killed", hint)
    if code != 0:
        how = f"exit code {code}" if code > 0 else f"signal {-code}"
        raise HostError(f"{shlex.join(args)} failed with {how}: {' | '.join(filter(None, said))}", hint)
