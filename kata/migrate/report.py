"""A plan for people and programs: terminal table, JSON, Markdown."""

from __future__ import annotations

import json

from kata.migrate import CLASSES, UNKNOWN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from kata.migrate import Row
    from kata.migrate.plan import Plan

WIDTH = 46  #: characters of a cell; longer ones are cut in the table, never in JSON or Markdown
HEADERS = ("CLASS", "WHERE", "KEY", "OLD", "NEW")

MEANINGS = {
    "same": "means in the target what it meant",
    "renamed": "says the same under another name, in another type or place",
    "changed": "changed in meaning",
    "dropped": "has no equivalent",
    "unknown": "nothing is known of it: nothing is applied until it is corrected or named with --accept",
}


def value(found: Any) -> str:
    """A value as a file would have it; "-" for none."""
    return "-" if found is None else found if isinstance(found, str) and found else json.dumps(found)


def target(row: Row) -> str:
    """What is written: the value, and its key where it has another."""
    if not row.new_key or row.new_key == row.key:
        return value(row.new)
    return f"{row.new_key} = {value(row.new)}"


def where(row: Row) -> str:
    """Where the key is written, or what it is if it is nowhere."""
    return row.place or ("(default)" if row.key.startswith(("[", "-")) else "(its way)")


def table(plan: Plan) -> Iterator[str]:
    """Lines for a terminal: a block for each source, what it loses last."""
    for source in dict.fromkeys(row.source for row in plan.rows):
        rows = sorted((r for r in plan.rows if r.source == source), key=lambda r: CLASSES.index(r.kind))
        cells = [HEADERS, *((r.kind, where(r), r.key, value(r.old), target(r)) for r in rows)]
        cut = [[_cut(cell, from_left=number == 1) for number, cell in enumerate(line)] for line in cells]
        widths = [max(len(line[i]) for line in cut) for i in range(len(HEADERS))]
        yield f"{source}:"
        for number, line in enumerate(cut):
            yield "  " + "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
            row = rows[number - 1] if number else None
            if row and row.why:
                yield f"  {'':{widths[0]}}  {row.why}" + (f"; instead: {row.instead}" if row.instead else "")
        yield ""
    yield from _files(plan)
    yield ", ".join(f"{sum(r.kind == kind for r in plan.rows)} {kind}" for kind in CLASSES if kind != UNKNOWN or
                    any(r.kind == UNKNOWN for r in plan.rows))
    yield from (f"note: {note}" for note in plan.notes)
    yield f"plan {plan.id}"


def _cut(text: str, *, from_left: bool) -> str:
    """As long as a cell may be; of a path its end is what counts."""
    if len(text) <= WIDTH:
        return text
    return f"...{text[3 - WIDTH:]}" if from_left else f"{text[: WIDTH - 3]}..."


def _files(plan: Plan) -> Iterator[str]:
    for change in plan.changes:
        how = "made" if change.before.data is None else "removed" if change.after is None else "changed"
        yield f"{change.path}: {how}"
    if not plan.changes:
        yield "no file changes"


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan, for programs."""
    return {
        "plan": plan.id, "to": plan.to,
        "rows": [{**row.__dict__, "fields": list(row.fields)} for row in plan.rows],
        "files": [{"path": c.path, "before": _text(c.before.data), "after": _text(c.after)} for c in plan.changes],
        "reload": [{"engine": a.engine, "how": a.how, "why": a.why} for a in plan.actions],
        "unknown": [row.key for row in plan.unknown], "notes": list(plan.notes),
    }


def _text(data: bytes | None) -> str | None:
    return None if data is None else data.decode(errors="replace")


def markdown(plan: Plan) -> str:
    """The report: a section for each class, then the files as they will be."""
    lines = [f"# Migration to {plan.to}", "", f"Plan `{plan.id}`.", ""]
    lines += ["| class | keys | |", "|---|---|---|"]
    lines += [f"| {kind} | {sum(r.kind == kind for r in plan.rows)} | {MEANINGS[kind]} |" for kind in CLASSES]
    for kind in CLASSES:
        rows = [r for r in plan.rows if r.kind == kind]
        if not rows:
            continue
        lines += ["", f"## {kind.capitalize()}", ""]
        lines += _section(rows)
    if plan.changes:
        lines += ["", "## Files"]
    for change in plan.changes:
        how = "made" if change.before.data is None else "removed" if change.after is None else "changed"
        lines += ["", f"`{change.path}` ({how}):", ""]
        lines += ["```", *(_text(change.after) or "").rstrip("\n").splitlines(), "```"]
    if plan.actions:
        lines += ["", "## Engines", "", *(f"- {a.engine}: {a.how} ({a.why})" for a in plan.actions)]
    if plan.notes:
        lines += ["", "## Notes", "", *(f"- {note}" for note in plan.notes)]
    return "\n".join(lines) + "\n"


def _section(rows: Sequence[Row]) -> Iterator[str]:
    yield "| source | where | key | old | new | why | instead |"
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        cells = (row.source, where(row), row.key, value(row.old), target(row), row.why, row.instead)
        yield "| " + " | ".join(_cell(c) for c in cells) + " |"


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
