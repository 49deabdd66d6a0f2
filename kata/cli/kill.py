"""``kill``: send a signal to a container."""

from __future__ import annotations

from kata.cli.context import Context
from kata.errors import UsageError, WrongState
from kata.table import FLAG, Argument, Namespace, Option, Verb

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
else:  # without the enumerations that the library wraps it in, which take milliseconds
    import _signal as signal

VERB = Verb(
    "Send a signal (a name, with or without SIG, or a number; 0: only look) to the first process of a container.",
    Option("--all", "-a", kind=FLAG, help="to all its processes"),
    arguments=[Argument("id"), Argument("signal", "?", "SIGTERM")],
)

#: Linux has more numbers than Python has names for.
MAX_SIGNAL = 64


def run(context: Context, args: Namespace) -> int:
    container = context.container(args["id"])
    number = signal_number(args["signal"])
    if container.status() == "stopped":
        if args["all"]:
            return 0
        raise WrongState("container not running", f"container {container.id} is stopped",
                         values={"id": container.id, "status": "stopped", "verb": "kill"})
    if number:  # 0 only asks whether there is somebody
        context.ask(container, "kill", signal=number, all=args["all"])
    return 0


def signal_number(text: str) -> int:
    """:raise UsageError: it is no signal."""
    if text.isdecimal() and int(text) <= MAX_SIGNAL:
        return int(text)
    name = text.upper()
    name = name if name.startswith("SIG") else f"SIG{name}"
    base, plus, offset = name.replace("SIGRTMIN+", "RTMIN+").partition("+")
    if plus and base == "RTMIN" and offset.isdecimal() and int(offset) <= MAX_SIGNAL - signal.SIGRTMIN:
        return int(signal.SIGRTMIN) + int(offset)
    number = None if name.startswith("SIG_") else getattr(signal, name, None)
    if not isinstance(number, int):
        raise UsageError(f"Signal {text} is not supported", "name one that kill -l lists, or a number from 0 to 64",
                         kind="unknown-signal", values={"signal": text})
    return number
