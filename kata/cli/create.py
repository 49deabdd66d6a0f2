"""``create``: make a container, its process ready to run."""

from __future__ import annotations

import os

from kata import state
from kata.cli.context import Context
from kata.errors import BundleError, UnsupportedError, UsageError
from kata.table import FLAG, INT, Argument, Namespace, Option, Verb

BUNDLE = Option("--bundle", "-b", help="directory with config.json; the current one by default", metavar="DIR")
CONSOLE_SOCKET = Option("--console-socket", help="unix socket that takes the terminal's master", metavar="SOCKET")
PID_FILE = Option("--pid-file", help="file that takes the pid, written last", metavar="FILE")
#: Accepted by create and run for engines that pass them; why they hold is in their help.
COMMON = (
    BUNDLE,
    CONSOLE_SOCKET,
    PID_FILE,
    Option("--console", help="path of a terminal to use instead of the standard streams", metavar="TTY"),
    Option("--no-pivot", kind=FLAG, help="the guest's own root is never visible to a container, with or without"),
    Option("--no-new-keyring", kind=FLAG, help="the host's keyrings are never visible to a container"),
    Option("--preserve-fds", kind=INT, help="only 0: a descriptor cannot cross into a virtual machine", metavar="N"),
)

VERB = Verb("Make a container from a bundle; 'start' runs its process.", *COMMON, arguments=[Argument("id")])


def run(context: Context, args: Namespace) -> int:
    context.collect_phases(create(context, args))
    return 0


def create(context: Context, args: Namespace, *, foreground: bool = False) -> state.Container:
    """Make the container that ``args`` describe (see :class:`kata.sandbox.Creation`)."""
    from kata import oci
    from kata.sandbox import Creation

    container_id = state.check_id(args["id"])
    check_fds(args["preserve_fds"])
    context.log.phase("more imports")
    bundle = oci.load(args["bundle"] or ".", container_id)
    context.log.phase("bundle checked")
    console_socket = args["console_socket"]
    if bundle.terminal and not console_socket and not args["console"] and not foreground:
        raise BundleError("the process wants a terminal, and there is nobody to give it to",
                          "name a --console-socket, or set process.terminal to false")
    if args["console"] and not bundle.terminal:
        raise BundleError("--console is given but process.terminal is false",
                          "set process.terminal to true or leave --console out")
    if args["console"] and console_socket:
        raise UsageError("--console and --console-socket are both given", "give one of them")
    console = console_path(args["console"])
    if console_socket and not bundle.terminal:
        raise BundleError("--console-socket is given but process.terminal is false",
                          "set process.terminal to true or leave --console-socket out")
    backend, invocation = context.new_containers_backend(), context.invocation()
    context.log.phase("backend found")
    if context.deprecated:
        from kata.cli import merged

        merged.warn(context, invocation, args["bundle"] or ".", container_id)
    creation = Creation(
        context.root or state.DEFAULT_ROOT, backend, bundle, invocation, context.log,
        console_socket=os.path.abspath(console_socket) if console_socket else "",
        pid_file=os.path.abspath(args["pid_file"]) if args["pid_file"] else "",
        systemd_cgroup=context.options["systemd_cgroup"], foreground=foreground, console=console)
    return creation.run()


def console_path(path: str) -> str:
    """The absolute path of a ``--console``; "" stays.

    :raise UsageError: it is no terminal.
    """
    if not path:
        return ""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as e:
        raise UsageError(f"--console {path} cannot be opened: {e.strerror}") from e
    try:
        if not os.isatty(fd):
            raise UsageError(f"--console {path} is no terminal", "give the path of a pseudo terminal")
    finally:
        os.close(fd)
    return os.path.abspath(path)


def check_fds(count: int) -> None:
    """:raise UnsupportedError: descriptors beyond the standard streams are to be handed over."""
    if count:
        raise UnsupportedError(f"--preserve-fds {count} cannot hold",
                               "a file descriptor cannot cross into a virtual machine; mount the file or use stdin")
