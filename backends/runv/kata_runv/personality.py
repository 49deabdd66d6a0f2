"""How runV 1.0 spoke."""

from __future__ import annotations

import os
import time

from kata import OCI_VERSION, __version__
from kata.personality import Personality, worded
from kata.table import FLAG, Option

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, ClassVar

    from kata.errors import KataError

LOG_DIR = "/var/log/hyper"

#: (verb, kind of error) -> its words; kind "" is any other error of the verb.
TEXTS = {
    ("state", "not-found"): "State file of {id} not found",
    ("kill", "not-found"): "kill signal failed, container {id} does not exist",
    ("kill", "wrong-state"): "kill signal failed, container {id} is {status}",
    ("start", "not-found"): "open /run/runv/{id}/state.json: no such file or directory",
    ("delete", "not-found"): "open /run/runv/{id}/state.json: no such file or directory",
    ("pause", "not-found"): "can't get process list, open /run/runv/{id}/process.json: no such file or directory",
    ("resume", "not-found"): "can't get process list, open /run/runv/{id}/process.json: no such file or directory",
    ("exec", "not-found"): "exec command failed: container {id} does not exist",
    ("exec", "wrong-state"): "exec command failed: container {id} is {status}",
    ("create", "in-use"): 'Run Container error: container "{id}" exists',
    ("run", "in-use"): 'Run Container error: container "{id}" exists',
    ("create", "missing-id"): "Run Container error: no container id provided",
    ("run", "missing-id"): "Run Container error: no container id provided",
    ("create", ""): "Run Container error: {text}",
    ("run", ""): "Run Container error: {text}",
    ("delete", "wrong-state"): "the container {id} is still alive, use -f to force kill it?",
    ("", "missing-id"): "Please specify container ID",
    ("", "invalid-command"): "No help topic for '{command}'",
    ("", "unknown-signal"): 'unknown signal "{signal}"',
}
LETTERS = {"debug": "I", "info": "I", "warning": "W", "error": "E", "fatal": "F"}


class RunvPersonality(Personality):
    """runV's words.

    What is different on purpose: ``state`` also has ``bundle`` and ``rootfs``,
    which the specification and engines ask for; ``create`` of a machine that
    does not come up fails (runV answered 0); ``--log`` is written where an
    engine names it, besides glog's folder.
    """

    program = "runv"
    options = (
        Option("--log_dir", help=f"folder of log files ({LOG_DIR})", metavar="DIR"),
        Option("--driver", help="kvm, qemu-kvm or qemu: all are QEMU here", metavar="NAME"),
        Option("--agent", help="kata; hyperstart has no equivalent", metavar="NAME"),
        Option("--default_cpus", help="vCPUs of a container without a limit (1)", metavar="N"),
        Option("--default_memory", help="MiB of a container without a limit (128)", metavar="MIB"),
        Option("--kernel", help="guest kernel", metavar="FILE"),
        Option("--initrd", help="guest initrd", metavar="FILE"),
        Option("--bios", help="firmware", metavar="FILE"),
        Option("--cbfs", help="refused: QEMU boots the kernel itself", metavar="FILE"),
        Option("--template", help="folder of a template made by manage create-template", metavar="DIR"),
        Option("--vsock", kind=FLAG, help="refused: the channel is a virtio-serial port", hidden=True),
    )
    verbs: ClassVar[Mapping[str, tuple[str, str]]] = {
        "ps": ("kata_runv.verbs.ps", "list the processes of a container by the pids of their shims"),
        "manage": ("kata_runv.verbs.manage", "make or remove a template of a machine"),
        "interface": ("kata_runv.verbs.interface", "add, list, change or remove interfaces of a container"),
    }
    absent = frozenset({"version", "events", "update", "features", "kata-env", "kata-check"})

    def version(self, program: str, commit: str) -> str:
        return f"runv version {__version__}\ncommit: {commit}\nspec: {OCI_VERSION}"

    def state(self, view: Mapping[str, Any]) -> Mapping[str, Any]:
        return {
            "ociVersion": view["ociVersion"], "id": view["id"], "pid": view["pid"], "bundlePath": view["bundle"],
            "rootfsPath": view["rootfs"], "status": view["status"], "created": view["created"], "owner": "root",
            "bundle": view["bundle"], "rootfs": view["rootfs"], "annotations": view["annotations"],
        }

    def entry(self, view: Mapping[str, Any]) -> Mapping[str, Any]:
        keys = ("ociVersion", "id", "pid", "status", "bundle", "rootfs", "created")
        return {**{key: view[key] for key in keys}, "owner": "root"}

    def owner(self, view: Mapping[str, Any]) -> str:
        return "root"

    def failure(self, program: str, verb: str, error: KataError) -> tuple[str, int]:
        text = worded(error, TEXTS, verb)
        if error.kind == "invalid-command":
            return text, 3
        if (verb, error.kind) == ("delete", "wrong-state"):
            # runV ended through Go's default exit here, after a line of glog.
            return f"{glog(time.time(), 'error', text, 'main')}\n{text}", 22
        return text, 1 if verb in ("state", "list") else 255

    def log_path(self, options: Mapping[str, Any]) -> str:
        if options["log"]:
            return str(options["log"])
        folder = options["log_dir"] or LOG_DIR
        try:
            os.makedirs(folder, mode=0o750, exist_ok=True)
        except OSError:
            return ""  # whoever may not write there has no log, and no wait either
        return f"{folder}/runv.log"

    def log_line(self, verb: str) -> Callable[[float, str, str], str]:
        def line(seconds: float, level: str, message: str) -> str:
            return glog(seconds, level, message, verb or "main")

        return line


def glog(seconds: float, level: str, message: str, where: str) -> str:
    """A line as Go's glog writes it: level and date, time, pid, place."""
    micro = int(seconds % 1 * 1e6)
    stamp = time.strftime("%m%d %H:%M:%S", time.localtime(seconds))
    return f"{LETTERS[level]}{stamp}.{micro:06d} {os.getpid():>7} {where}] {message}"
