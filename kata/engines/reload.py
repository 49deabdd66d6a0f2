"""Ask an engine whether it takes its files, tell it to read them again, and hear from it that it did."""

from __future__ import annotations

import os
import shutil
import signal
import time

from kata import process, state
from kata.config import document, jsonfile
from kata.engines.containerd import Containerd
from kata.errors import HostError
from kata.wire import UnixSocket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

FILE = "/etc/docker/daemon.json"
TIMEOUT = 20.0  #: seconds until dockerd has to say that it reloaded
RECEIVE = 1 << 16
CHECK = 60.0  #: seconds for an engine to look at its file
PID = 32  #: bytes of a file with a process id that are read
MAX_EVENTS = 1 << 20  #: bytes of events that are read


def running_docker(sysroot: str, path: str = FILE, pidfile: str = "") -> tuple[int, str]:
    """Process id and socket of dockerd, (0, "") if it does not run.

    :param path: its configuration.
    :param pidfile: where it wrote its process id, if that is neither configured nor the usual place.
    """
    try:
        text = document.text_of(f"{sysroot}{path}")
        settings = jsonfile.parse(text, f"{sysroot}{path}").value if text.strip() else {}
    except FileNotFoundError:
        settings = {}
    pid = _pid(sysroot, {"pidfile": pidfile} if pidfile else settings)
    return (pid, _socket(pid, sysroot, settings)) if pid else (0, "")


def docker(sysroot: str, path: str = FILE, pidfile: str = "") -> str:
    """Send SIGHUP to dockerd and wait for its event; returns what came of it.

    :raise HostError: dockerd did not take the file.
    """
    pid, socket = running_docker(sysroot, path, pidfile)
    path = f"{sysroot}{path}"
    if not pid:
        return "docker does not run: it reads its file when it starts"
    with UnixSocket() as events:
        events.settimeout(TIMEOUT)
        try:
            events.connect(socket)
            # The one who asks before the signal misses nothing.
            events.sendall(b'GET /events?filters={"type":{"daemon":true},"event":{"reload":true}} HTTP/1.1\r\n'
                           b"Host: docker\r\n\r\n")
            deadline = time.monotonic() + TIMEOUT
            head = _until(events, b"\r\n\r\n", deadline, b"")
            if b" 200 " not in head.split(b"\r\n", 1)[0]:
                raise HostError(f"docker at {socket} answers {head.splitlines()[0].decode(errors='replace')!r}",
                                "reload it by hand: systemctl reload docker")
            os.kill(pid, signal.SIGHUP)
            _until(events, b'"reload"', deadline, head.partition(b"\r\n\r\n")[2])
        except TimeoutError as e:
            raise HostError(f"dockerd (pid {pid}) did not say within {TIMEOUT:g} s that it reloaded {path}",
                            "its log says what it does not like") from e
        except ProcessLookupError:
            return "docker has ended: it reads its file when it starts"
        except OSError as e:
            raise HostError(f"cannot ask docker at {socket}: {e.strerror}",
                            "reload it by hand: systemctl reload docker") from e
    return f"docker (pid {pid}) has reloaded"


def _until(sock: UnixSocket, text: bytes, deadline: float, received: bytes) -> bytes:
    """What comes until ``text`` is in it.

    :raise TimeoutError: it did not come in time.
    """
    while text not in received:
        if len(received) > MAX_EVENTS:
            raise HostError("docker sends more events than are expected")
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        data = sock.recv(RECEIVE)
        if not data:
            raise OSError(0, "it closed the connection")
        received += data
    return received


def _pid(sysroot: str, settings: dict[str, Any]) -> int:
    """Process id of dockerd, 0 if it does not run."""
    named = settings.get("pidfile")
    for path in [named] if isinstance(named, str) else [f"{sysroot}/run/docker.pid", f"{sysroot}/var/run/docker.pid"]:
        try:
            with open(path, encoding="ascii") as f:
                pid = int(f.read(PID).strip())
        except (OSError, ValueError):
            continue
        if state.start_time(pid) and words_of(pid)[:1] and os.path.basename(words_of(pid)[0]) == "dockerd":
            return pid
    return 0


def words_of(pid: int) -> list[str]:
    """The command line of a process, with an empty word at its end; nothing if it is gone."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            return [w.decode(errors="replace") for w in f.read().split(b"\0")]
    except OSError:
        return []


def _socket(pid: int, sysroot: str, settings: dict[str, Any]) -> str:
    """The unix socket that dockerd listens on: by its options, its file, or the usual one."""
    words, hosts = words_of(pid), settings.get("hosts") or []
    for number, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name in ("-H", "--host"):
            hosts = [*hosts, value if equals else "".join(words[number + 1 : number + 2])]
    found = [h.removeprefix("unix://") for h in hosts if isinstance(h, str) and h.startswith("unix://")]
    return found[0] if found else f"{sysroot}/run/docker.sock"


# --- whether an engine would take its file ------------------------------------------------


def check_docker(path: str, pidfile: str = "") -> None:
    """The daemon's own check, with the options that it has now; one before docker 23 has none.

    :raise HostError: dockerd would not start with the file.
    """
    pid, _socket_path = running_docker("", path, pidfile)
    words, options = iter(words_of(pid)[1:-1] if pid else ()), []
    for word in words:
        if word == "--config-file":
            next(words, "")
        elif not word.startswith("--config-file="):
            options.append(word)
    done = process.run([shutil.which("dockerd") or "dockerd", *options, "--validate", "--config-file", path],
                       timeout=CHECK, check=False)
    if done.code and b"unknown flag: --validate" not in done.stderr + done.stdout:
        raise HostError(f"dockerd does not take {path}: {process.last_lines(done.stderr or done.stdout)}")


def check_containerd(path: str, programs: Mapping[str, str]) -> str:
    """What there is to say about the file, "" if nothing.

    :raise HostError: containerd does not take it, or something that it imports overrides the entries.
    """
    done = process.run(["containerd", "--config", path, "config", "dump"], timeout=CHECK)
    if Containerd("containerd", path, "").cri_disabled:  # then the dump is without it, and nothing is to be compared
        return f"the CRI plugin is among disabled_plugins of {path}: the runtimes wait there until it is enabled"
    dump = Containerd("containerd", path, "", done.text)
    if not dump.holds(programs):
        found = {r.name: r.program for r in dump.runtimes}
        wrong = next(n for n, p in programs.items() if found.get(n) != p)
        raise HostError(f"`containerd --config {path} config dump` has {found.get(wrong, 'nothing')} for the runtime "
                        f"{wrong}", "what `imports` names sets the same plugin: put the entries there, by --file")
    return ""


def check_podman(programs: Mapping[str, str], environ: Mapping[str, str]) -> None:
    """:raise HostError: podman does not find a runtime by its name, or finds another program."""
    for name, program in programs.items():
        done = process.run(["podman", "--runtime", name, "info", "--format", "{{.Host.OCIRuntime.Path}}"],
                           timeout=CHECK, env=environ)
        if done.text.strip() != program:
            raise HostError(f"podman has {done.text.strip() or 'nothing'} for the runtime {name}, not {program}",
                            "a later file of containers.conf.d, or CONTAINERS_CONF, says otherwise")
