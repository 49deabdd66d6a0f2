"""Start QEMU.  Synchronous and light: the proxy starts it before it imports the rest."""

from __future__ import annotations

import os
import resource

from kata.contract import MachinePlan
from kata.errors import HostError
from kata.record import Record
from kata.spawn import spawn
from kata.vm.argv import Endpoints, qemu_argv
from kata.wire import listening_socket
from kata_agent.linux import capability, syscalls

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Callable

# What QEMU needs as root: the 9p server makes files with any owner, mode and
# device number on behalf of the guest, below the shared folder only.
CAPABILITIES = ("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_MKNOD",
                "CAP_SETFCAP")


class Launched(Record):
    """A QEMU process just started, and how to reach it (paths in the sandbox's directory)."""

    pid: int
    channel_token: str


class Memory(Record):
    """A template's memory: ``shared`` while it is made, copied on write by its clones.

    By descriptor, so that a template removed meanwhile still serves those who have it open.
    """

    fd: int
    shared: bool
    channel_token: str  #: of all its clones: it is on the saved kernel command line
    read_only: bool = False  #: QEMU can do with a file that it opens for reading only


def files(plan: MachinePlan) -> tuple[str, ...]:
    """Paths of the host that QEMU opens, itself included; "" among them is none."""
    return plan.qemu_path, plan.kernel, plan.initrd, plan.image, plan.firmware, plan.entropy_source


def launch(
    plan: MachinePlan,
    name: str,
    directory: str,
    share: str,
    memory: Memory | None = None,
    in_child: Callable[[str], None] | None = None,
) -> Launched:
    """Start the machine in the caller's namespaces.

    End state: QEMU runs in a session of its own with only the capabilities
    above, listening on ``channel.sock`` and ``qmp.sock``, its serial console
    in ``console.log`` and its messages in ``qemu.log`` of ``directory``.

    :param memory: a file that is the machine's memory; None: anonymous memory.
    :param in_child: runs in QEMU's process, the last thing before it executes; gets the channel's token.
    :raise HostError: it could not be started; nothing is left but the files.
    """
    token = memory.channel_token if memory is not None else os.urandom(32).hex()
    with listening_socket(f"{directory}/channel.sock") as channel, listening_socket(f"{directory}/qmp.sock") as qmp:
        ends = Endpoints(
            name=name,
            channel=channel.fileno(),
            qmp=qmp.fileno(),
            console=f"{directory}/console.log",
            share=share,
            generation_id=_guid(),
            channel_token=token,
            memory_file="" if memory is None else f"/proc/self/fd/{memory.fd}",
            memory_shared=memory is not None and memory.shared,
            memory_read_only=memory is not None and memory.read_only,
            incoming=memory is not None and not memory.shared,
        )
        # QEMU appends to it, and would make it readable for all.
        os.close(os.open(ends.console, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        log = os.open(f"{directory}/qemu.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        argv = qemu_argv(plan, ends)
        os.write(log, ("argv: " + " ".join(argv) + "\n").encode())

        def prepare() -> None:
            # Every open file of the guest is an open file of its 9p server.
            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            capability.limit_bounding(capability.to_mask(CAPABILITIES))
            syscalls.set_no_new_privs()
            if in_child is not None:
                in_child(token)

        keep = [ends.channel, ends.qmp, *([memory.fd] if memory is not None else [])]
        try:
            pid = spawn(argv, stdio=(-1, log, log), keep=keep, session=True, before_exec=prepare)
        except HostError as e:
            raise HostError(e.text, "is QEMU installed? (Debian: qemu-system-x86)", kind="vm") from e
        finally:
            os.close(log)
    return Launched(pid, token)


def _guid() -> str:
    """A random GUID (RFC 9562, version 4)."""
    raw = bytearray(os.urandom(16))
    raw[6], raw[8] = raw[6] & 0x0F | 0x40, raw[8] & 0x3F | 0x80
    text = raw.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def tail(path: str, lines: int = 12, limit: int = 4096) -> str:
    """The last lines of a log that a guest or QEMU wrote, made printable."""
    try:
        with open(path, "rb") as f:
            f.seek(0, os.SEEK_END)
            f.seek(max(0, f.tell() - limit))
            data = f.read()
    except FileNotFoundError:
        return ""
    text = data.decode(errors="replace").replace("\r", "")
    rows = ["".join(c for c in row if c.isprintable()).strip() for row in text.split("\n")]
    return "\n".join([row for row in rows if row][-lines:])
