"""``kata migrate``: carry configuration, engines' entries and containers over to the unified flavor, or back."""

from __future__ import annotations

import click

from kata.cli.context import Context
from kata.errors import UsageError


@click.group()
def command() -> None:
    """Carry configuration, engines' entries and running containers over to the unified flavor, or back."""


@command.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--all", "everything", is_flag=True, help="Every running container that is not unified's.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def adopt(context: Context, ids: tuple[str, ...], everything: bool, as_json: bool) -> int:
    """Make running containers of clear or runv unified's, without a restart.

    Their processes go on; from then on pause, update and what joins their pod follow unified's policy. Containers that
    share a machine go together. What cannot be carried over stays what it is, with a reason, and the exit code is 1.
    """
    from kata import flavors, loader
    from kata.migrate.adopt import adopt as adopt_containers

    if bool(ids) == everything:
        raise UsageError("no container is named" if not ids else "containers are named, and --all",
                         "name containers, or give --all")
    done = adopt_containers(context.root, ids, loader.load(flavors.DEFAULT), context.invocation())
    if as_json:
        import json

        print(json.dumps([{"id": o.id, "flavor": o.before if o.refused else flavors.DEFAULT, "before": o.before,
                           "refused": o.refused, "notes": list(o.notes)} for o in done], indent=2))
    for outcome in () if as_json else done:
        print(f"{outcome.id}: stays {outcome.before}'s: {outcome.refused}" if outcome.refused
              else f"{outcome.id}: {flavors.DEFAULT}'s, was {outcome.before}'s")
        for note in outcome.notes:
            print(f"  {note}")
    if not done and not as_json:
        print("no running container is another flavor's")
    return 1 if any(o.refused for o in done) else 0
