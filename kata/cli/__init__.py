"""The command: global options, a verb, its words.

A verb is a module of this package with a ``VERB`` (what it takes, see
:mod:`kata.table`) and ``run(context, args) -> exit code``, or with a click
``command`` of its own.  Only the verb that is asked for is imported.
"""

from __future__ import annotations

import gc
import os
import sys

from kata.errors import KataError, UsageError
from kata.table import FLAG, MANY, OPTIONAL, VALUE, Option, parse

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, NoReturn

    from kata.cli.context import Context
    from kata.flavors import Choice
    from kata.personality import Personality

#: name -> (module, help); no help: hidden.
VERBS: dict[str, tuple[str, str]] = {
    "create": ("create", "make a container"),
    "start": ("start", "run the process of a created container"),
    "run": ("run", "create and start a container"),
    "state": ("state", "print the state of a container"),
    "list": ("list", "list containers"),
    "kill": ("kill", "send a signal to a container"),
    "delete": ("delete", "remove a container"),
    "exec": ("exec", "run another process in a container"),
    "ps": ("ps", "list the processes of a container"),
    "pause": ("pause", "suspend all processes of a container"),
    "resume": ("resume", "resume a paused container"),
    "update": ("update", "change the resources of a container"),
    "events": ("events", "print events and statistics of a container"),
    "spec": ("spec", "write a config.json to start from"),
    "features": ("features", "print what this runtime can do, as JSON"),
    "version": ("version", "print the version"),
    "cleanup": ("cleanup", "remove what crashed sandboxes left behind"),
    "plan": ("plan", "print the plans made for a bundle"),
    "image": ("image", "build and select guest images"),
    "kernel": ("kernel", "build, list and select guest kernels"),
    "factory": ("factory", "make, show or remove templates of machines"),
    "flavor": ("flavor", "show the flavors, or set the host's default"),
    "migrate": ("migrate", "carry configuration and containers over to the unified flavor, or back"),
    "engine": ("engine", "make docker, containerd, CRI-O or podman know Kata's runtimes"),
    "roadmap": ("roadmap", "show or set where this host is on the way to one runtime"),
    "conformance": ("conformance", "compare flavors and other runtimes: the same cases, what differs"),
    "kata-env": ("env", "print the configuration and the host's abilities"),
    "kata-check": ("check", "check whether this host can run containers"),
}

OPTIONS: tuple[Option, ...] = (
    Option("--root", help="directory of container state", metavar="DIR"),
    Option("--log", help="file that takes log messages", metavar="FILE"),
    Option("--log-format", choices=("text", "json"), help="format of log messages"),
    Option("--debug", kind=FLAG, help="log debug messages"),
    Option("--systemd-cgroup", kind=FLAG, help="cgroup paths are systemd's slice:prefix:name"),
    Option("--flavor", help="flavor for new containers", metavar="NAME"),
    Option("--kata-config", "--config", help="configuration file", metavar="FILE"),
    Option("--kata-show-default-config-paths", "--show-default-config-paths", kind=FLAG,
           help="print where configuration files are looked for"),
    Option("--rootless", kind=OPTIONAL, help="auto, true or false; true cannot hold: root is needed"),
    Option("--criu", help="refused: a virtual machine is not checkpointed by CRIU", hidden=True),
    Option("--timings", kind=FLAG, help="print the phases of the verb on standard error; also KATA_TIMINGS=1"),
    Option("--version", "-v", kind=FLAG, help="print the version"),
)

#: Objects that the collector looks at once: more than imports make, of which nothing is garbage.
GARBAGE = 100_000

_UNSUPPORTED = ("checkpoint", "restore", "init")

__all__ = ["MANY", "OPTIONS", "VALUE", "VERBS", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """The program's entry; never raises but for SystemExit."""
    words = [*(sys.argv[1:] if argv is None else argv)]  # "list" is a verb of this package
    program = os.path.basename(sys.argv[0]) or "kata"
    try:
        return _main(program, words)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 141


def program() -> NoReturn:
    """:func:`main` as a process: its end without the interpreter's own, which takes a fifth of a short verb."""
    gc.set_threshold(GARBAGE)
    _open_streams()
    try:
        code = main()
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 0 if e.code is None else 1
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and not stream.closed:
                stream.flush()
    except BrokenPipeError:
        code = code or 141
    except OSError as e:
        os.write(2, f"kata: cannot write the output: {e.strerror}\n".encode())
        code = code or 1
    os._exit(code)


def _open_streams() -> None:
    """A standard stream that the caller has closed is /dev/null: its number would be that of the next file opened."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            fd = os.open("/dev/null", os.O_RDWR)
            if fd != number:
                os.dup2(fd, number)
                os.close(fd)
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


def _main(program: str, words: list[str]) -> int:
    from kata import flavors
    from kata.cli.context import Context
    from kata.personality import Personality

    context: Context | None = None
    speaker, verb, given = Personality(), "", words
    try:
        flavor = flavors.choose(_asked_flavor(words), os.environ, program)
        speaker = _speaker(flavor)
        table = (*speaker.options, *OPTIONS)
        verbs = {**VERBS, **speaker.verbs}
        parsed = parse(table, (), False, words, stop_at_first=True)
        if parsed is not None and parsed[1] < len(words):
            options, words = parsed[0], words[parsed[1]:]
        else:
            from kata.cli import full

            options, words = full.parse_global(full.Program(program, verbs, table, _help()), words)
        for own, common in speaker.spellings.items():
            options[common] = options.pop(own) or options[common]
        verb = words[0] if words else ""
        context = Context(program, options, flavor, speaker, verb)
        _check_global(options)
        if options["version"]:
            from kata.cli import version

            return version.run(context, {})
        if options["kata_show_default_config_paths"]:
            print(*context.backend().config_paths(context.invocation()), sep="\n")
            return 0
        if not words:
            return 0
        code = _verb(context, verbs, words[0], words[1:])
        if context.log.phases:
            from kata.cli import timings

            timings.show(context)
        return code
    except KataError as e:
        return _failed(context or _stranded(program, given), speaker, program, verb, e)
    except BrokenPipeError:
        raise
    except Exception as e:
        # A defect of ours: where it happened goes to the log, never to a user's terminal.
        return _defect(context or _stranded(program, given), speaker, program, verb, e)


def _asked_flavor(words: Sequence[str]) -> str:
    """The value of ``--flavor`` among the global options: it tells which of them there are."""
    for i, word in enumerate(words):
        if word == "--flavor":
            return words[i + 1] if i + 1 < len(words) else ""
        if word.startswith("--flavor="):
            return word[9:]
        if word in VERBS:
            break
    return ""


def _speaker(flavor: Choice) -> Personality:
    """How the flavor speaks.  A default that is broken must not keep anybody from setting another.

    :raise KataError: somebody asked for a flavor that there is not, or that is broken.
    """
    from kata.personality import Personality

    if flavor.name == "unified":
        return Personality()
    from kata import loader

    try:
        return loader.personality(flavor.name, flavor.origin)
    except KataError:
        if not flavor.by_host:
            raise
        return Personality()


def _help() -> str:
    return "Run OCI containers, each or each pod in a virtual machine of its own."


def _check_global(options: dict[str, Any]) -> None:
    from kata.errors import UnsupportedError

    if options["rootless"] not in ("", "auto", "false"):
        raise UnsupportedError("--rootless=true cannot hold", "run as root: taps, mounts and cgroups need it")
    if options["criu"]:
        raise UnsupportedError("--criu cannot hold: a virtual machine is not checkpointed by CRIU", "leave it out")


def _verb(context: Context, verbs: Mapping[str, tuple[str, str]], name: str, words: list[str]) -> int:
    entry = verbs.get(name)
    if entry is None or name in context.personality.absent:
        hint = ""
        if entry is not None:
            hint = f"`kata {name}` does it, whichever flavor made the container"
        elif name not in _UNSUPPORTED:
            import difflib

            near = difflib.get_close_matches(name, verbs, 1)
            hint = f"did you mean {near[0]!r}?" if near else ""
        raise UsageError(f'Invalid command "{name}"', hint, kind="invalid-command", values={"command": name})
    path = entry[0] if "." in entry[0] else f"kata.cli.{entry[0]}"
    __import__(path)  # importlib is not imported for one function
    module: Any = sys.modules[path]
    if not hasattr(module, "VERB"):
        from kata.cli import full

        return full.run_click(context.program, name, module.command, words, context)
    verb = module.VERB
    parsed = parse(verb.options, verb.arguments, verb.passthrough, words)
    if parsed is not None:
        args = parsed[0]
    else:
        from kata.cli import full

        args = full.parse_verb(context.program, name, verb, words)
    code: int = module.run(context, args)
    return code


def _stranded(program: str, words: list[str]) -> Context | None:
    """For the log, where an engine looks for the reason: the options of every flavor, when which one was not found."""
    from kata import flavors
    from kata.cli.context import Context
    from kata.personality import Personality

    try:
        parsed = parse(OPTIONS, (), False, words, stop_at_first=True)
        return Context(program, parsed[0], flavors.Choice(flavors.DEFAULT, ""), Personality(), "") if parsed else None
    except KataError:
        return None


def _failed(context: Context | None, speaker: Personality, program: str, verb: str, error: KataError) -> int:
    if context is not None:
        context.log.error(str(error))
    text, code = speaker.failure(speaker.program or program, verb, error)
    sys.stderr.write(f"{text}\n")
    return code


def _defect(context: Context | None, speaker: Personality, program: str, verb: str, error: Exception) -> int:
    import traceback

    if context is not None:
        context.log.debug("".join(traceback.format_exception(error)))
    if os.environ.get("KATA_TRACEBACK"):
        traceback.print_exception(error)
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{os.path.basename(last.filename)}:{last.lineno}"
    what = KataError(f"internal error: {type(error).__name__}: {error} ({where})",
                     "please report it, with the output of the same command under KATA_TRACEBACK=1")
    return _failed(context, speaker, program, verb, what)
