"""``run``: create and start, and without --detach wait, carry signals, and remove."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress

from kata.cli.context import Context
from kata.cli.create import COMMON, create
from kata.cli.delete import delete
from kata.cli.start import start
from kata.errors import KataError, NotFound
from kata.table import FLAG, Argument, Namespace, Option, Verb

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    import signal
    from collections.abc import Iterator
else:  # without the enumerations that the library wraps it in
    import _signal as signal

VERB = Verb(
    "Create and start a container; ends with the exit code of its process.",
    *COMMON,
    Option("--detach", "-d", kind=FLAG, help="return once it runs"),
    Option("--keep", kind=FLAG, help="do not delete it when its process has ended"),
    Option("--no-subreaper", kind=FLAG, help="orphans are the guest's, with or without", hidden=True),
    arguments=[Argument("id")],
)


def run(context: Context, args: Namespace) -> int:
    foreground = not args["detach"] and not args["console_socket"]
    container = create(context, args, foreground=foreground)
    pid = container.record["pid"]
    try:
        start(context, container)
        context.log.phase("started")
    except BaseException:
        with suppress(KataError):
            delete(context, container, True)
        raise
    if args["detach"]:
        context.collect_phases(container)
        return 0
    with carried(pid), raw_terminal(container.record["terminal"] and foreground and not args["console"]):
        _, status = os.waitpid(pid, 0)
    context.log.phase("its process has ended")
    context.collect_phases(container)
    if not args["keep"]:
        with suppress(NotFound):  # somebody else has deleted it: the exit code is ours to tell all the same
            delete(context, context.container(container.id), True)
        context.log.phase("deleted")
    return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


@contextmanager
def carried(pid: int) -> Iterator[None]:
    """Pass signals on to the shim ``pid``, which passes them on to the process.

    What a terminal sends goes to its whole foreground group, the shim included.
    """
    from_terminal = {signal.SIGINT, signal.SIGQUIT} if os.isatty(0) else set()

    def forward(number: int, _frame: object) -> None:
        if number not in from_terminal:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    numbers = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2]
    previous = {number: signal.signal(number, forward) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def raw_terminal(wanted: bool) -> Iterator[None]:
    """The user's terminal in raw mode: the guest's does the line editing."""
    if not wanted or not os.isatty(0):
        yield
        return
    import termios
    import tty

    before = termios.tcgetattr(0)
    tty.setraw(0, termios.TCSANOW)  # what was typed ahead is the process's
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
