"""``kata engine``: runtimes of Kata's in docker, containerd, CRI-O and podman."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import click

from kata.errors import UsageError

ENGINES = click.Choice(["docker", "containerd", "crio", "podman"])
FILE = click.option("--file", default="", metavar="FILE", help="The engine's configuration, if it is not at its usual "
                    "place. podman: what CONTAINERS_CONF names.")
SYSROOT = click.option("--sysroot", default="", metavar="DIR", help="Take every path below this folder, and speak to "
                       "no engine: for a system that is not this one.")


def wishes(command: Callable[..., Any]) -> Callable[..., Any]:
    """What install and remove have in common."""
    for option in reversed([
        click.argument("engine", type=ENGINES),
        click.option("--flavor", "flavors", multiple=True, metavar="NAME", help="Only the runtime kata-NAME (may be "
                     "given again).  [default: kata, and one for each flavor]"),
        FILE,
        click.option("--pidfile", default="", metavar="FILE", help="Where dockerd wrote its process id."),
        SYSROOT,
    ]):
        command = option(command)
    return command


@click.group()
def command() -> None:
    """Make docker, containerd, CRI-O or podman know Kata's runtimes, or forget them."""


@command.command()
@wishes
@click.option("--default", is_flag=True, help="Containers that name no runtime get the first of these.")
@click.option("--address", default="", metavar="PATH", help="Socket of containerd, for the proof.")
@click.option("--no-verify", is_flag=True, help="Run no container to prove it.")
def install(no_verify: bool, **wish: Any) -> int:
    """Write the runtimes into ENGINE's configuration, reload it, and run a container with each.

    When the engine refuses them, or a container does not run, the configuration is at once what it was.
    """
    from kata.engines import setup

    setup.install(_wish(wish, verify=not no_verify), click.echo)
    return 0


@command.command()
@wishes
def remove(**wish: Any) -> int:
    """Take the runtimes out of ENGINE's configuration, and reload it."""
    from kata.engines import setup

    setup.remove(_wish(wish), click.echo)
    return 0


@command.command()
@click.argument("engine", type=ENGINES, required=False, default=None)
@FILE
@SYSROOT
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def status(engine: str | None, file: str, sysroot: str, as_json: bool) -> int:
    """Show which of Kata's runtimes ENGINE has (all engines, if none is named)."""
    from kata import engines, flavors
    from kata.engines import setup

    if file and not engine:
        raise UsageError("--file without an engine: whose file is it?", "name the engine")
    default = flavors.host(flavors.host_file(os.environ)).default_flavor
    root, file = _absolute(sysroot), _absolute(file)
    found = [setup.status(name, root, file, default) for name in ([engine] if engine else engines.ENGINES)]
    if as_json:
        import json

        print(json.dumps(found, indent=2))
        return 0
    for each in found:
        facts = [*([] if each["installed"] else ["not installed"]), f"default runtime {each['default'] or 'its own'}",
                 *([] if each["runtimes"] else ["none of Kata's"])]
        print(f"{each['engine']}: {', '.join(facts)}")
        for e in each["runtimes"]:
            words = " ".join([e["program"], *e["args"]])
            print(f"  {e['name']:<14}{e['flavor']:<9}{words}  ({e['file']}:{e['line']})"
                  f"{': ' + e['problem'] if e['problem'] else ''}")
        for problem in each["problems"]:
            print(f"  {problem}")
    return 0


def _wish(wish: dict[str, Any], **more: Any) -> Any:
    from kata.engines.setup import Wish

    return Wish(**{**wish, "file": _absolute(wish["file"]), "sysroot": _absolute(wish["sysroot"])}, **more)


def _absolute(path: str) -> str:
    return os.path.abspath(path) if path else ""
