"""What a terminal shows of a run: progress, the matrix, findings, times; and of two runs what changed."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from kata.conformance import compare
from kata.conformance.case import Case
from kata.conformance.compare import DEVIATES, DIFFERS, DOCUMENTED, FAILS, SAME, SKIPPED, Document, Verdict
from kata.conformance.samples import ratio, summary

MARKS = {SAME: "same", DOCUMENTED: "as documented", DIFFERS: "DIFFERS", FAILS: "FAILS", SKIPPED: "skipped",
         DEVIATES: "deviates"}  # fmt: skip
WIDTH = 100  #: characters of a value


class Progress:
    """A line for each result; on a terminal one line that is written over, and those that failed stay."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._tty = sys.stderr.isatty()

    def __call__(self, case: Case, subject: str, result: Mapping[str, Any]) -> None:
        self._done += 1
        status = result["status"]
        why = f": {_cut(result['why'])}" if result["why"] else ""
        line = f"[{self._done:>4}/{self._total}] {subject:<10} {case.id:<44} {status} {result['seconds']:.1f} s{why}"
        if not self._tty:
            print(line, file=sys.stderr, flush=True)
        else:
            sys.stderr.write(f"\r\x1b[K{line[:118]}" + ("\n" if status == "failed" else ""))
            sys.stderr.flush()

    def end(self) -> None:
        if self._tty:
            sys.stderr.write("\r\x1b[K")


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns, aligned; the first row is the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def matrix(document: Document, verdicts: Mapping[str, Mapping[str, Verdict]], everything: bool) -> list[str]:
    """A row for each case, a column for each subject; without ``everything`` only rows that are not all the same."""
    names = [s["name"] for s in document["subjects"]]
    rows = [["case", *names]]
    for case, of in verdicts.items():
        cells = [MARKS[of[name].verdict] if name in of else "-" for name in names]
        if everything or any(cell not in (MARKS[SAME], "-") for cell in cells):
            rows.append([case, *cells])
    return table(rows) if len(rows) > 1 else []


def details(document: Document, verdicts: Mapping[str, Mapping[str, Verdict]], wanted: Sequence[str]) -> list[str]:
    """What was seen and what was wanted, of every verdict of these kinds."""
    promises = {case["id"]: case["promise"] for case in document["cases"]}
    lines = []
    for case, of in verdicts.items():
        for subject, verdict in of.items():
            if verdict.verdict not in wanted:
                continue
            lines.append(f"{MARKS[verdict.verdict]}: {case} with {subject}: {promises[case]}")
            if verdict.why:
                lines.append(f"    {verdict.why}")
            for value in verdict.values:
                if value.verdict in wanted:
                    lines.append(f"    {value.key}: {shown(value.seen)}, {value.by}: {shown(value.wanted)}"
                                 + (f"; {value.why}" if value.why else ""))
    return lines


def totals(document: Document, verdicts: Mapping[str, Mapping[str, Verdict]]) -> list[str]:
    counted = compare.counts(verdicts)
    kinds = [k for k in (SAME, DOCUMENTED, DIFFERS, FAILS, SKIPPED, DEVIATES) if any(c[k] for c in counted.values())]
    rows = [["", *(MARKS[k] for k in kinds)]]
    for subject in document["subjects"]:
        name = subject["name"]
        label = f"{name} (reference)" if name == document["reference"] else name
        rows.append([label, *(str(counted[name][k] if name in counted else 0) for k in kinds)])
    return table(rows)


def measures(document: Document) -> list[str]:
    """Medians by subject, and ratios to the reference (or the first subject), with what the quartiles allow."""
    samples = document["samples"]
    names = [s["name"] for s in document["subjects"] if s["name"] in samples]
    if not names:
        return []
    base = document["reference"] if document["reference"] in names else names[0]
    rows = [["median (quartiles)", *names]]
    for what in sorted({w for name in names for w in samples[name]}):
        row = [what]
        for name in names:
            values = samples[name].get(what)
            if not values:
                row.append("-")
                continue
            found = summary(values)
            text = _quantity(what, found)
            if name != base and samples[base].get(what):
                middle, low, high = ratio(found, summary(samples[base][what]))
                text += f"  x{middle:.3g} ({low:.2g}-{high:.2g})"
            row.append(text)
        rows.append(row)
    return table(rows)


def _quantity(what: str, found: Mapping[str, float]) -> str:
    if what == "memory":
        return f"{found['median'] / 2**20:.0f} MiB"
    return f"{found['median'] * 1000:.0f} ms ({found['low'] * 1000:.0f}-{found['high'] * 1000:.0f})"


def report(document: Document, everything: bool = False) -> list[str]:
    """The whole report."""
    verdicts = compare.judge(document)
    lines = matrix(document, verdicts, everything)
    told = details(document, verdicts, (*compare.FINDINGS, DEVIATES))
    for part in (told, totals(document, verdicts), measures(document)):
        if part:
            lines += ["", *part]
    stale = compare.stale(document, verdicts)
    if stale:
        lines += ["", "declared, but not met in this run:", *(f"    {s}: {case} {key}" for s, case, key in stale)]
    lines += ["", *(f"LEFT BEHIND: {left}" for left in document["meta"].get("left", ()))]
    found = len(compare.findings(verdicts)) + len(document["meta"].get("left", ()))
    lines.append(f"{found} findings" if found != 1 else "1 finding")
    return lines


# --- two runs --------------------------------------------------------------------


def difference(before: Document, after: Document) -> list[str]:
    """What the second run saw otherwise; of hosts, versions, verdicts, values and times."""
    pairs = compare.pairs_of(before, after)
    lines = []
    for key in sorted({*before["meta"], *after["meta"]} - {"time", "left"}):
        if before["meta"].get(key) != after["meta"].get(key):
            lines.append(f"{key}: {before['meta'].get(key)} -> {after['meta'].get(key)}")
    versions = [{s["name"]: s["version"] for s in document["subjects"]} for document in (before, after)]
    for first, second in pairs:
        if versions[0][first] != versions[1][second]:
            lines.append(f"version of {second}: {versions[0][first]} -> {versions[1][second]}")
    for change in compare.changes(before, after, pairs):
        what = f"{change.case} with {change.subject}" + (f", {change.key}" if change.key else "")
        lines.append(f"{what}: {shown(change.before)} -> {shown(change.after)}")
    rows = [["after / before", "median", "by the quartiles"]]
    for first, second in pairs:
        old, new = before["samples"].get(first, {}), after["samples"].get(second, {})
        for what in sorted({*old} & {*new}):
            middle, low, high = ratio(summary(new[what]), summary(old[what]))
            rows.append([f"{second} {what}", f"x{middle:.3g}", f"{low:.2g}-{high:.2g}"])
    return lines + ([""] * bool(lines) + table(rows) if len(rows) > 1 else [])


def shown(value: object) -> str:
    return _cut(value if isinstance(value, str) and value and "\n" not in value else json.dumps(value))


def _cut(text: str) -> str:
    return text if len(text) <= WIDTH else text[: WIDTH - 3] + "..."
