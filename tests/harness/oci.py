"""Drives the OCI command line the way an engine does."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from . import evidence, leaks
from .bundle import Bundle
from .proc import Result, environment, run
from .runtime import Runtime
from .wait import DEADLINE, Late

REAPER = str(Path(__file__).with_name("reaper.py"))


def is_factory(line: str) -> bool:
    """Whether a process (`pid command line`) is the template factory or its machine."""
    return "kata.proxy.factory" in line or "kata-factory" in line or " -name template" in line


class Launch:
    """A verb that leaves processes behind, run under a reaper (see reaper.py)."""

    def __init__(
        self,
        argv: Sequence[str],
        pid_file: Path,
        stdin: int | IO[bytes],
        stdout: int | IO[bytes],
        stderr: int | IO[bytes],
        pass_fds: Sequence[int] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.argv = tuple(argv)
        self.pid_file = pid_file
        self.started = time.monotonic()
        self.status, write_end = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", REAPER, str(write_end), str(pid_file), *argv],
            stdin=stdin, stdout=stdout, stderr=stderr,
            env=environment(env), start_new_session=True, pass_fds=(write_end, *pass_fds),
        )  # fmt: skip
        os.close(write_end)
        self._buffer = b""
        self._told: dict[str, int] = {}
        self._ended = False

    def _await(self, key: str | None, timeout: float) -> bool:
        """Read the reaper's words until ``key`` (None: the end) came."""
        end = time.monotonic() + timeout
        while not self._ended and (key is None or key not in self._told):
            readable, _, _ = select.select([self.status], [], [], max(0.0, end - time.monotonic()))
            if not readable:
                return False
            data = os.read(self.status, 4096)
            if not data:
                self._ended = True
                os.close(self.status)
                self.process.wait()
            self._buffer += data
            *lines, self._buffer = self._buffer.split(b"\n")
            for line in lines:
                self._told.update(json.loads(line))
        return key is None or key in self._told

    def verb_code(self, timeout: float = DEADLINE) -> int:
        """Exit code of the verb."""
        if not self._await("verb", timeout):
            left = self.descendants()
            self.kill()
            raise Late(f"$ {' '.join(self.argv)}\ndid not end within {timeout:g} s; processes:\n" + "\n".join(left))
        return self._told["verb"]

    def exit_code(self, timeout: float = DEADLINE) -> int:
        """Exit code of the container's process."""
        if not self._await("exit", timeout):
            raise Late(
                f"container process of `{' '.join(self.argv)}` did not end within {timeout:g} s (or had no pid file)"
            )
        return self._told["exit"]

    def gone(self, timeout: float = 20) -> None:
        """Wait until the verb's last descendant has ended.

        One may stay for a while: the factory that makes a template for later
        machines.  It belongs to no container, and ends by itself.
        """
        end = time.monotonic() + timeout
        while not self._await(None, 0.25):
            left = [line for line in self.descendants() if not is_factory(line)]
            if not left:
                return
            if time.monotonic() > end:
                raise Late(f"left behind {timeout:g} s after the end:\n" + "\n".join(left))

    def descendants(self) -> list[str]:
        """Live descendants of the reaper, each `pid command line`."""
        found, queue = [], [self.process.pid]
        while queue:
            pid = queue.pop()
            with contextlib.suppress(OSError):
                for task in os.listdir(f"/proc/{pid}/task"):
                    children = Path(f"/proc/{pid}/task/{task}/children").read_text().split()
                    queue.extend(int(c) for c in children)
            if pid != self.process.pid:
                with contextlib.suppress(OSError):
                    line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    found.append(f"{pid} {line.strip() or Path(f'/proc/{pid}/comm').read_text().strip()}")
        return found

    def kill(self) -> None:
        """Kill what is left of it: for the end of a failed test only."""
        for line in filter(lambda line: not is_factory(line), self.descendants()):
            with contextlib.suppress(OSError):
                os.kill(int(line.split()[0]), signal.SIGKILL)


class Container:
    """A container made by ``create`` (or ``run --detach``)."""

    def __init__(self, oci: Oci, id: str, bundle: Bundle) -> None:
        self.oci = oci
        self.id = id
        self.bundle = bundle
        self.pid_file = oci.run_dir / f"{id}.pid"
        self.out_path = oci.run_dir / f"{id}.out"
        self.err_path = oci.run_dir / f"{id}.err"
        self.launch: Launch | None = None

    # --- what it wrote -------------------------------------------------------

    @property
    def stdout(self) -> str:
        return self.out_path.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return self.err_path.read_text(errors="replace")

    # --- verbs ---------------------------------------------------------------

    def launch_verb(
        self,
        verb: str,
        *options: str,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        pass_fds: Sequence[int] = (),
        globals: Sequence[str] = (),
        timeout: float = DEADLINE,
    ) -> Result:
        """``create`` or ``run --detach``; its streams become the container's."""
        start = time.monotonic()
        argv = self.oci.argv(
            *globals, verb, "--bundle", str(self.bundle.path), "--pid-file", str(self.pid_file), *options, self.id
        )
        with open(self.out_path, "wb") as out, open(self.err_path, "wb") as err:
            self.launch = Launch(argv, self.pid_file, stdin, out, err, pass_fds)
        code = self.launch.verb_code(timeout)
        return Result(tuple(argv), code, self.stdout, self.stderr, time.monotonic() - start)

    def start(self) -> Result:
        return self.oci.verb("start", self.id)

    def state(self) -> dict[str, Any]:
        """The parsed output of ``state``."""
        state: dict[str, Any] = json.loads(self.oci.verb("state", self.id).ok().stdout)
        return state

    @property
    def status(self) -> str:
        return str(self.state()["status"])

    @property
    def pid(self) -> int:
        return int(self.pid_file.read_text())

    def kill(self, sig: str = "KILL", *options: str) -> Result:
        return self.oci.verb("kill", *options, self.id, sig)

    def delete(self, *options: str) -> Result:
        return self.oci.verb("delete", *options, self.id)

    def exec(
        self, *argv: str, options: Sequence[str] = (), input: bytes | str | None = None, timeout: float = DEADLINE
    ) -> Result:
        """``exec`` in the foreground."""
        return self.oci.verb("exec", *options, self.id, *argv, input=input, timeout=timeout)

    def sh(self, script: str, *, options: Sequence[str] = (), input: bytes | str | None = None) -> Result:
        """A shell script by ``exec``."""
        return self.exec("/bin/sh", "-c", script, options=options, input=input)

    def exec_detached(
        self, *argv: str, options: Sequence[str] = (), stdin: int | IO[bytes] = subprocess.DEVNULL
    ) -> Launch:
        """``exec --detach`` with a pid file; its output goes where the container's went."""
        pid_file = self.oci.run_dir / f"{self.id}.{next(self.oci.numbers)}.pid"
        command = self.oci.argv("exec", "--detach", "--pid-file", str(pid_file), *options, self.id, *argv)
        with open(self.out_path, "ab") as out, open(self.err_path, "ab") as err:
            launch = Launch(command, pid_file, stdin, out, err)
        assert launch.verb_code() == 0, f"$ {' '.join(command)}\n{self.stderr}"
        return launch

    # --- its end -------------------------------------------------------------

    def wait(self, timeout: float = DEADLINE) -> int:
        """Exit code of the container's process, when it ended."""
        assert self.launch is not None
        return self.launch.exit_code(timeout)

    def finish(self) -> tuple[int, str, str]:
        """Start it, wait for its end: exit code, output, errors."""
        self.start().ok()
        code = self.wait()
        return code, self.stdout, self.stderr

    def assert_gone(self) -> None:
        """No process, record, mount, cgroup, socket is left of it."""
        if self.launch is not None:
            self.launch.gone()
        leaks.check_container(self.oci.root, self.id, [str(self.bundle.path)])

    def dispose(self, failed: bool) -> None:
        """End and delete it, whatever state it is in."""
        if failed:
            evidence.capture(self.oci.root, self.id, [self.out_path, self.err_path])
        deleted = self.delete("--force")
        try:
            if not failed:
                deleted.ok()
                self.assert_gone()
        finally:
            if self.launch is not None:
                self.launch.kill()
                with contextlib.suppress(Late):
                    self.launch.gone(10)
            for path in (self.pid_file, self.out_path, self.err_path):
                path.unlink(missing_ok=True)


class Oci:
    """The runtime's command line with a ``--root`` of its own."""

    def __init__(self, runtime: Runtime, run_dir: Path, work_dir: Path, rootfs: Path, tag: str) -> None:
        self.runtime = runtime
        self.run_dir = run_dir
        self.root = run_dir / "root"
        self.work_dir = work_dir
        self.rootfs = rootfs
        self.tag = tag
        self.numbers = itertools.count(1)

    def argv(self, *args: str) -> list[str]:
        return [self.runtime.path, "--root", str(self.root), *args]

    def verb(
        self,
        *args: str,
        input: bytes | str | None = None,
        timeout: float = DEADLINE,
        env: Mapping[str, str] | None = None,
    ) -> Result:
        """Any verb that leaves nothing behind, to its end."""
        return run(*self.argv(*args), input=input, timeout=timeout, env=env)

    def new_id(self) -> str:
        return f"{self.tag}-{next(self.numbers)}"

    def bundle(self, script: str = "") -> Bundle:
        """A fresh bundle, not yet written; its process runs ``script`` or sleeps until told to end."""
        bundle = Bundle(self.work_dir / f"b{next(self.numbers)}", self.rootfs)
        return bundle.sh(script) if script else bundle

    @contextlib.contextmanager
    def container(self, bundle: Bundle, id: str = "") -> Iterator[Container]:
        """A container not yet created; whatever becomes of it is undone at the end."""
        container = Container(self, id or self.new_id(), bundle.write())
        failed = True
        try:
            yield container
            failed = False
        finally:
            container.dispose(failed)

    @contextlib.contextmanager
    def created(
        self, bundle: Bundle, *options: str, stdin: int | IO[bytes] = subprocess.DEVNULL, id: str = ""
    ) -> Iterator[Container]:
        """A created container."""
        with self.container(bundle, id) as container:
            container.launch_verb("create", *options, stdin=stdin).ok()
            yield container

    @contextlib.contextmanager
    def running(
        self, bundle: Bundle, *options: str, stdin: int | IO[bytes] = subprocess.DEVNULL, id: str = ""
    ) -> Iterator[Container]:
        """A started container."""
        with self.created(bundle, *options, stdin=stdin, id=id) as container:
            container.start().ok()
            yield container

    def run(
        self,
        bundle: Bundle,
        *options: str,
        input: bytes = b"",
        timeout: float = DEADLINE,
        id: str = "",
        check_gone: bool = True,
    ) -> Result:
        """``run`` in the foreground, to its end; then nothing may be left of it."""
        bundle.write()
        id = id or self.new_id()
        start = time.monotonic()
        argv = self.argv("run", "--bundle", str(bundle.path), *options, id)
        launch = Launch(argv, self.run_dir / f"{id}.none", subprocess.PIPE, subprocess.PIPE, subprocess.PIPE)
        try:
            out, err = launch.process.communicate(input, timeout)
        except subprocess.TimeoutExpired:
            evidence.capture(self.root, id)
            left = launch.descendants()
            launch.kill()
            self.verb("delete", "--force", id)
            raise Late(
                f"$ {' '.join(argv)}\ndid not end within {timeout:g} s; processes:\n" + "\n".join(left)
            ) from None
        code = launch.verb_code(5)
        result = Result(
            tuple(argv), code, out.decode(errors="replace"), err.decode(errors="replace"), time.monotonic() - start
        )
        if check_gone:
            try:
                launch.gone()
                leaks.check_container(self.root, id, [str(bundle.path)])
            except AssertionError as exc:
                evidence.capture(self.root, id)
                self.verb("delete", "--force", id)
                launch.kill()
                raise AssertionError(f"{exc}\nafter:\n{result}") from None
        return result
