"""``kata migrate``: carry configuration, engines' entries and containers over to the unified flavor, or back."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from kata import changes
from kata.cli.context import Context
from kata.errors import ConfigError, HostError, StateError, UsageError

if TYPE_CHECKING:
    from kata.migrate.plan import Plan

#: Names of sets of changes: the first is ``migrate-1``.
PREFIX = "migrate-"

SYSROOT = click.option("--sysroot", default="", metavar="DIR", help="Take every path below this folder.")


def wishes(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of plan and apply."""
    for option in reversed([
        click.option("--from", "sources", multiple=True, type=click.Choice(["clear", "runv", "kata"]),
                     help="Migrate only this (may be given again).  [default: all that is found]"),
        click.option("--to", type=click.Choice(["unified", "clear", "runv"]), default="unified", show_default=True,
                     help="Migrate to this flavor; clear and runv read unified's configuration."),
        click.option("--file", default="", metavar="FILE", help="Configuration file to read instead of the usual "
                     "place, in the language of --from (Kata 1.x to 4.x: kata)."),
        click.option("--command-line", default="", metavar="TEXT",
                     help="A command line of runv or cc-runtime to read."),
        click.option("--engine", "engines", multiple=True, metavar="NAME",
                     help="Look at and change only this engine (may be given again); none: no engine."),
        click.option("--accept", "accepted", multiple=True, metavar="TABLE.KEY",
                     help="Leave out this key, of which nothing is known (may be given again)."),
        SYSROOT,
        click.option("--json", "as_json", is_flag=True, help="As JSON."),
        click.option("--report", default="", metavar="FILE", help="Also write the report as Markdown; - is standard "
                     "output, without the table."),
    ]):
        command = option(command)
    return command


@click.group()
@click.pass_context
def command(click_context: click.Context) -> None:
    """Carry configuration, engines' entries and running containers over to the unified flavor, or back."""
    options = click_context.obj.options
    if options["kata_config"] and click_context.invoked_subcommand != "adopt":
        raise UsageError(f"--kata-config {options['kata_config']} is not for this verb",
                         "--from and --file name a configuration to migrate")


@command.command()
@wishes
def plan(**wish: Any) -> int:
    """Show what becomes of every key, and which files would change. Nothing is changed."""
    sets = _sets(wish["sysroot"])
    for name in _names(sets):
        found = sets.status(name)
        if found is not None and found.state != changes.APPLIED:
            raise StateError(f"{name} was killed half way", "kata migrate status undoes it")
    _show(_plan(wish), wish)
    return 0


@command.command()
@wishes
@click.option("--plan", "expected", default="", metavar="ID", help="Only if this is still the plan.")
@click.option("--no-reload", is_flag=True, help="Change the files, and leave engines as they are.")
def apply(expected: str, no_reload: bool, **wish: Any) -> int:
    """Do it: all files or none, with a backup. Running containers go on as they are."""
    sets = _sets(wish["sysroot"])
    for name in _recover(sets):
        click.echo(f"{name} was killed half way, and is undone", err=True)
    made = _plan(wish)
    if made.unknown:
        raise ConfigError(f"nothing is known of {', '.join(row.key for row in made.unknown)}",
                          "; ".join(dict.fromkeys(row.instead for row in made.unknown)))
    if expected and made.id != expected:
        raise StateError(f"the plan is {made.id} by now, not {expected}: a file has changed since",
                         "look at it again: kata migrate plan")
    _show(made, wish)
    if not made.changes:
        return 0
    name = f"{PREFIX}{1 + max((_number(n) for n in sets.names()), default=0)}"
    sets.apply(name, made.changes, {"to": made.to, "plan": made.id, "notes": list(made.notes),
                                    "actions": [a.__dict__ for a in made.actions]})
    click.echo(f"applied as {name}; kata migrate rollback brings the old files back", err=True)
    return _reload(made, sets, name, wish["sysroot"], no_reload)


@command.command()
@click.argument("name", required=False, default="")
@SYSROOT
@click.option("--force", is_flag=True, help="Also over files that were changed since; what they hold is kept.")
@click.option("--no-reload", is_flag=True, help="Change the files, and leave engines as they are.")
def rollback(name: str, sysroot: str, force: bool, no_reload: bool) -> int:
    """Bring the files back, byte for byte, as they were before NAME (the latest migration)."""
    sets = _sets(sysroot)
    known = _names(sets)
    if name and name not in known:
        raise StateError(f"there is no migration {name}", f"known are {', '.join(known) or 'none'}")
    if not known:
        raise StateError("nothing was migrated, so there is nothing to roll back")
    name = name or known[-1]
    status = sets.status(name)
    for path in sets.rollback(name, force=force):
        print(f"{path}: as before")
    note = status.note if status else {}
    for text in note.get("notes", ()):
        click.echo(f"note: {text}", err=True)
    for action in note.get("actions", ()):
        _tell(action["engine"], action["how"], action["why"], sysroot, no_reload)
    return 0


@command.command()
@SYSROOT
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def status(sysroot: str, as_json: bool) -> int:
    """Say which migrations are applied, and whether their files are still as they left them.

    One that was killed half way is undone first, so that the files are the old ones or the new ones.
    """
    sets = _sets(sysroot)
    undone = _recover(sets)
    found = [s for s in map(sets.status, _names(sets)) if s is not None]
    if as_json:
        import json

        print(json.dumps({"state": "new" if found else "old", "undone": undone, "migrations": [
            {"name": s.name, "to": s.note.get("to", ""), "plan": s.note.get("plan", ""), "state": s.state,
             "files": [{"path": path, "now": now} for path, now in s.files]} for s in found]}, indent=2))
        return 0
    for name in undone:
        print(f"{name} was killed half way, and is undone")
    if not found:
        print("old: nothing is migrated")
    for each in found:
        print(f"{each.name}: {each.now}, to {each.note.get('to', '')} (plan {each.note.get('plan', '')})")
        for path, now in each.files:
            print(f"  {path}: {now}")
    return 0


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


# --- what they share ------------------------------------------------------------------------


def _plan(wish: dict[str, Any]) -> Plan:
    from kata.assets import store
    from kata.migrate.plan import Wish, make

    if wish["file"] and not wish["sources"] and wish["to"] == "unified":
        raise UsageError("--file without --from: whose language is it in?", "add --from clear, or --from kata")
    if wish["file"] and "runv" in wish["sources"]:
        raise UsageError("runV has no configuration file", "give its options: --command-line 'runv ...'")
    if wish["file"] and len(wish["sources"]) > 1:
        raise UsageError("--file goes with one --from")
    # The link, so that an image that is built later is used.
    image = os.path.join(store.root(), "selected", "image") if store.selected_path("image") else ""
    return make(Wish(to=wish["to"], sources=wish["sources"], file=os.path.abspath(wish["file"]) if wish["file"] else "",
                     command_line=wish["command_line"], engines=wish["engines"], accepted=wish["accepted"],
                     sysroot=os.path.abspath(wish["sysroot"]) if wish["sysroot"] else "", image=image))


def _show(made: Plan, wish: dict[str, Any]) -> None:
    from kata.migrate import report

    if wish["as_json"]:
        import json

        print(json.dumps(report.as_json(made), indent=2))
    elif wish["report"] != "-":
        print("\n".join(report.table(made)))
    if wish["report"] == "-":
        print(report.markdown(made), end="")
    elif wish["report"]:
        try:
            with open(wish["report"], "w", encoding="utf-8") as f:
                f.write(report.markdown(made))
        except OSError as e:
            raise HostError(f"cannot write the report {wish['report']}: {e.strerror}") from e


def _sets(sysroot: str) -> changes.Changes:
    return changes.Changes(f"{os.path.abspath(sysroot) if sysroot else ''}{changes.FOLDER}")


def _number(name: str) -> int:
    number = name.removeprefix(PREFIX)
    return int(number) if name.startswith(PREFIX) and number.isdecimal() else 0


def _names(sets: changes.Changes) -> list[str]:
    """Migrations, in the order in which they were applied."""
    return sorted((n for n in sets.names() if _number(n)), key=_number)


def _recover(sets: changes.Changes) -> list[str]:
    """Undo what was killed half way; the names."""
    return [name for name in _names(sets) if sets.recover(name)]


def _reload(made: Plan, sets: changes.Changes, name: str, sysroot: str, no_reload: bool) -> int:
    """Tell the engines; a docker that does not take its new file gets the old one back."""
    for action in made.actions:
        try:
            _tell(action.engine, action.how, action.why, sysroot, no_reload)
        except HostError as e:
            sets.rollback(name)
            raise HostError(f"{e.text}; the old files are back", e.hint) from e
    return 0


def _tell(engine: str, how: str, why: str, sysroot: str, no_reload: bool) -> None:
    if how == "SIGHUP" and not no_reload:
        from kata.engines import reload

        click.echo(reload.docker(os.path.abspath(sysroot) if sysroot else ""), err=True)
    elif how == "SIGHUP":
        click.echo(f"{engine}: reload it (SIGHUP): {why}", err=True)
    elif how == "restart":
        click.echo(f"{engine}: restart it: {why}", err=True)
