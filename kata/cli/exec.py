"""``exec``: run another process in a container."""

from __future__ import annotations

import os
import sys

from kata import state
from kata.cli.context import Context
from kata.cli.create import CONSOLE_SOCKET, PID_FILE, check_fds, console_path
from kata.errors import UnsupportedError, UsageError, WrongState
from kata.table import FLAG, INT, MANY, Argument, Namespace, Option, Verb

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from typing import Any

    from kata.wire import Client

#: How long an exec may wait for its paused container to be resumed, seconds; runc has no limit.
_PAUSED = 86400.0

VERB = Verb(
    "Run another process in a container; ends with its exit code.",
    CONSOLE_SOCKET,
    PID_FILE,
    Option("--console", help="path of a terminal to use instead of the standard streams", metavar="TTY"),
    Option("--cwd", help="current directory of the process", metavar="DIR"),
    Option("--env", "-e", kind=MANY, help="environment variable NAME=VALUE", metavar="NAME=VALUE"),
    Option("--tty", "-t", kind=FLAG, help="give it a terminal"),
    Option("--user", "-u", help="UID[:GID]", metavar="USER"),
    Option("--additional-gids", "-g", kind=MANY, help="additional group", metavar="GID"),
    Option("--process", "-p", help="file with the process as JSON", metavar="FILE"),
    Option("--detach", "-d", kind=FLAG, help="return once it runs"),
    Option("--process-label", help="refused: SELinux is not in the guest", metavar="LABEL"),
    Option("--apparmor", help="refused: AppArmor is not in the guest", metavar="PROFILE"),
    Option("--no-new-privs", kind=FLAG, help="it and its children cannot gain privileges"),
    Option("--cap", "-c", kind=MANY, help="add a capability", metavar="CAP"),
    Option("--preserve-fds", kind=INT, help="only 0: a descriptor cannot cross into a virtual machine", metavar="N"),
    Option("--cgroup", kind=MANY, help="run in this sub-cgroup of the container's", metavar="PATH"),
    Option("--ignore-paused", kind=FLAG, help="allow it in a paused container"),
    Option("--no-subreaper", kind=FLAG, help="orphans are the guest's, with or without", hidden=True),
    arguments=[Argument("id"), Argument("command", "*")],
    passthrough=True,
)


def run(context: Context, args: Namespace) -> int:
    container = context.container(args["id"])
    check_fds(args["preserve_fds"])
    for option, what in (("process_label", "SELinux"), ("apparmor", "AppArmor")):
        if args[option]:
            raise UnsupportedError(f"--{option.replace('_', '-')} cannot hold: {what} is not in the guest",
                                   "leave it out; the virtual machine isolates the container")
    if container.status() not in ("created", "running", "paused"):
        raise WrongState(f"Container {container.id} is not ready or running", f"it is {container.status()}",
                         values={"id": container.id, "status": container.status(), "verb": "exec"})
    made = container.made_of("process", "extras")
    process = _process(context, args, made["process"])
    from kata.oci.extras import exec_extras

    extras: dict[str, Any] = {"process": exec_extras(process, made["extras"])}
    if args["cgroup"]:
        extras["cgroup"] = _cgroup(args["cgroup"])
    terminal = bool(process.get("terminal"))
    if terminal and args["detach"] and not args["console_socket"] and not args["console"]:
        raise UsageError("a detached process with a terminal needs a --console-socket")
    if args["console"] and (args["console_socket"] or not terminal):
        raise UsageError("--console goes with a terminal and without a --console-socket",
                         "add --tty, or leave --console out")
    if args["console_socket"] and not terminal:
        raise UsageError("--console-socket is given, but the process has no terminal", "add --tty, or leave it out")
    console = console_path(args["console"])
    if terminal and "consoleSize" not in process and not args["console_socket"]:
        process |= _size(console)
    exec_id = f"exec-{os.urandom(8).hex()}"
    context.log.phase("process checked")
    dialled = None
    if args["console_socket"]:
        from kata.daemons import dial_console

        dialled = dial_console(args["console_socket"])  # before anything runs that nobody could see
    try:
        with context.proxy(container) as client:
            client.request("exec", timeout=_PAUSED if args["ignore_paused"] else 90, id=container.id, exec_id=exec_id,
                           process=process, extras=extras, ignore_paused=args["ignore_paused"])
            context.log.phase("runs in the guest")
            if args["detach"] or dialled is not None or args["pid_file"]:
                code = _by_shim(args, container, client, exec_id, process, console,
                                -1 if dialled is None else dialled.fileno())
            else:
                code = _here(container, client, exec_id, terminal, console)
    finally:
        if dialled is not None:
            dialled.close()
    context.log.phase("shim started" if args["detach"] else "its process has ended")
    context.collect_phases(container)
    return code


def _process(context: Context, args: Namespace, first: dict[str, Any]) -> dict[str, Any]:
    """The process to run: from the file, or the container's own with what the options change.

    :raise BundleError: it is not a valid process.
    """
    from kata import oci

    if args["process"]:
        if args["command"]:
            raise UsageError("both --process and a command are given", "give one of them")
        process, notes = oci.load_process(args["process"])
    else:
        if not args["command"]:
            raise UsageError("no command to run is given", "name it after the container id, or give --process FILE")
        process = {**first, "args": list(args["command"]), "terminal": args["tty"]}
        process.pop("consoleSize", None)
        if args["cwd"]:
            process["cwd"] = args["cwd"]
        process["env"] = [*process.get("env", ()), *args["env"]]
        process["user"] = _user(process.get("user", {}), args["user"], args["additional_gids"])
        if args["cap"]:
            process["capabilities"] = _with_caps(process.get("capabilities", {}), args["cap"])
        notes = oci.check_process(process, "exec")
    if args["tty"]:
        process["terminal"] = True
    if args["no_new_privs"]:
        process["noNewPrivileges"] = True
    for note in notes:
        context.log.warning(note)
    return process


def _size(console: str) -> dict[str, Any]:
    """The size its terminal has now, so that the process meets it from its first instruction on."""
    fd = os.open(console, os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC) if console else os.dup(0)
    try:
        columns, lines = os.get_terminal_size(fd)
    except OSError:
        return {}
    finally:
        os.close(fd)
    return {"consoleSize": {"height": lines, "width": columns}}


def _user(user: dict[str, Any], text: str, groups: tuple[str, ...]) -> dict[str, Any]:
    user = dict(user)
    if text:
        uid, _, gid = text.partition(":")
        if not uid.isdecimal() or (gid and not gid.isdecimal()):
            raise UsageError(f"--user {text} is not UID or UID:GID", "give numbers; names are the engine's to resolve")
        user = {"uid": int(uid), "gid": int(gid) if gid else 0}
    if groups:
        if not all(g.isdecimal() for g in groups):
            raise UsageError(f"--additional-gids {' '.join(groups)}: not all are numbers")
        user["additionalGids"] = [*user.get("additionalGids", ()), *map(int, groups)]
    return user


def _with_caps(capabilities: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """runc adds them to every set but the inheritable and ambient ones."""
    changed = dict(capabilities)
    for kind in ("bounding", "effective", "permitted"):
        changed[kind] = list(dict.fromkeys([*changed.get(kind, ()), *names]))
    return changed


def _cgroup(paths: tuple[str, ...]) -> str:
    """runc takes CONTROLLER:PATH for cgroup v1; the guest has cgroup v2, where one path is all."""
    if len(paths) != 1 or ":" in paths[0]:
        raise UsageError(f"--cgroup {' '.join(paths)} names controllers", "the guest has cgroup v2: give one path")
    if ".." in paths[0].split("/"):
        raise UsageError(f"--cgroup {paths[0]} leaves the container's cgroup")
    return paths[0].strip("/")


def _by_shim(args: Namespace, container: state.Container, client: Client, exec_id: str,
             process: dict[str, Any], console: str, console_socket: int) -> int:
    from kata import cgroups
    from kata.daemons import start_shim, write_pid_file
    from kata.spawn import reap

    terminal = bool(process.get("terminal"))
    try:
        network = os.open(f"/proc/{container.record['pid']}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as e:
        raise WrongState(f"Container {container.id} is not ready or running", "it has just ended",
                         values={"id": container.id, "status": "stopped", "verb": "exec"}) from e
    try:
        pid = start_shim(
            container.proxy_socket, container.id, exec_id, process["args"], terminal=terminal, network=network,
            console_socket=console_socket, console=console,
            join_cgroup=cgroups.at(container.record["cgroup"]).join, foreground=not args["detach"],
            connection=client.sock.fileno())
    finally:
        os.close(network)
    if args["pid_file"]:
        try:
            write_pid_file(args["pid_file"], pid)
        except BaseException:  # nobody would know of the process
            from kata.teardown import end_process

            end_process(pid, state.start_time(pid))
            raise
    if args["detach"]:
        return 0
    from kata.cli.run import carried, raw_terminal

    with carried(pid), raw_terminal(terminal and not args["console_socket"] and not console):
        return reap(pid)


def _here(container: state.Container, client: Client, exec_id: str, terminal: bool, console: str) -> int:
    """Be the shim: nobody needs a process of its own to stand for this one."""
    from kata.shim import Shim, use_console

    tty_fd = use_console(console) if console else -1
    sys.stdout.flush()
    shim = Shim(container.proxy_socket, container.id, exec_id, terminal=terminal, tty_fd=tty_fd,
                connection=client.sock)
    if not terminal or console:
        return shim.run()
    from kata.cli.run import raw_terminal

    with raw_terminal(True):
        return shim.run()
