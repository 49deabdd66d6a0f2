"""``roadmap``: from three flavors to one, and how far this host is."""

from __future__ import annotations

import os
from typing import Any

from kata import engines, flavors, loader
from kata.cli import flavor as flavor_verb
from kata.cli.context import Context
from kata.config import hostfile
from kata.errors import ConfigError, KataError, UsageError
from kata.table import FLAG, Argument, Namespace, Option, Verb

VERB = Verb(
    "Show where this host is on the way from clear and runv to one runtime; 'set PHASE' goes on, or back.",
    Option("--json", kind=FLAG, help="as JSON"),
    arguments=[Argument("action", "?"), Argument("phase", "?")],
)

MEANINGS = {
    flavors.COEXIST: "clear, runv and unified work side by side",
    flavors.MERGED: "clear and runv work, and say in the log what they would be in unified",
    flavors.RETIRED: "clear and runv make no new containers; existing ones can be driven to their end",
}


def run(context: Context, args: Namespace) -> int:
    if args["action"] == "set":
        return change(context, args["phase"])
    if args["action"] not in ("", "show") or args["phase"]:
        raise UsageError(f"unknown action {args['action']!r}", "it is show, or set PHASE")
    found = survey(context)
    if args["json"]:
        import json

        print(json.dumps(found, indent=2))
    else:
        show(found)
    return 0


def change(context: Context, text: str) -> int:
    """Set the phase; from the second one on, unified is the default."""
    by_name = {name: phase for phase, name in flavors.PHASE_NAMES.items()}
    phase = by_name.get(text) or (int(text) if text.isdecimal() else 0)
    if phase not in flavors.PHASES:
        known = ", ".join(f"{p} ({n})" for p, n in flavors.PHASE_NAMES.items())
        raise UsageError(f"there is no phase {text!r}", f"it is one of {known}")
    path = flavors.host_file(os.environ)
    changes: dict[tuple[str, str], Any] = {("roadmap", "phase"): phase}
    if phase >= flavors.MERGED and flavors.host(path).default_flavor in flavors.RETIRING:
        changes["runtime", "default_flavor"] = flavors.DEFAULT
    hostfile.write(path, changes)
    print(f"phase {phase} ({flavors.PHASE_NAMES[phase]}): {MEANINGS[phase]}")
    return 0


def survey(context: Context, sysroot: str = "") -> dict[str, Any]:
    """The phase, and of every flavor its status here and what still uses it."""
    settings = flavors.host(flavors.host_file(os.environ))
    made = flavor_verb.containers(context)
    by_engines, problems = engine_entries(settings.default_flavor, sysroot)
    found = []
    for name in sorted({*loader.available(), *made}):
        found.append({
            "flavor": name, "status": flavor_verb.status(name, settings), "containers": made.get(name, []),
            "engines": by_engines.get(name, []), "configuration": configuration(context, name),
            "templates": templates(context, name),
        })
    return {"phase": settings.phase, "name": flavors.PHASE_NAMES[settings.phase], "flavors": found,
            "problems": problems, "next": next_steps(settings.phase, found)}


def engine_entries(default: str, sysroot: str) -> tuple[dict[str, list[str]], list[str]]:
    """Flavor -> ``file:line`` of every runtime of an engine that asks for it, and what is wrong with engines' files."""
    found: dict[str, list[str]] = {}
    problems = []
    for engine in engines.ENGINES:
        try:
            for entry in engines.entries(sysroot, [engine], default):
                found.setdefault(entry.flavor, []).append(f"{entry.file}:{entry.line}")
        except ConfigError as e:
            problems.append(str(e))
    return found, problems


def configuration(context: Context, name: str) -> list[str]:
    """Configuration files of a flavor that exist."""
    try:
        return [p for p in loader.load(name).config_paths(context.invocation()) if os.path.exists(p)]
    except KataError:
        return []


def templates(context: Context, name: str) -> list[str]:
    """Folders of templates that a flavor's machines start from."""
    from kata import template

    try:
        config = loader.load(name).load_config(context.invocation(), {})
    except KataError:
        return []
    if not config.template:
        return []
    return [f"{config.template_path}/{key}" for key in template.list_templates(config.template_path)]


def next_steps(phase: int, found: list[dict[str, Any]]) -> list[str]:
    """What to do to come to the next phase, or that there is nothing left."""
    steps = []
    for entry in found:
        name = entry["flavor"]
        if name not in flavors.RETIRING:
            continue
        if entry["engines"]:
            steps.append(f"kata migrate apply --from {name}: {', '.join(entry['engines'])} ask for it")
        if entry["containers"]:
            steps.append(f"kata migrate adopt {' '.join(entry['containers'])}: they are {name}'s; or end them")
        if phase >= flavors.RETIRED and not entry["engines"] and not entry["containers"]:
            steps.append(f"nothing uses {name}: its plugin can be uninstalled")
    if phase < flavors.RETIRED:
        after = phase + 1
        steps.append(f"kata roadmap set {after}: {MEANINGS[after]}")
    return steps


def show(found: dict[str, Any]) -> None:
    print(f"phase {found['phase']} ({found['name']}): {MEANINGS[found['phase']]}")
    for entry in found["flavors"]:
        print(f"\n{entry['flavor']}: {entry['status']}")
        for what in ("containers", "engines", "configuration", "templates"):
            if entry[what]:
                print(f"  {what + ':':<15}{', '.join(entry[what])}")
    for problem in found["problems"]:
        print(f"\n{problem}")
    print("\nnext:")
    for step in found["next"]:
        print(f"  - {step}")
