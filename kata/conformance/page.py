"""One HTML page that holds everything and asks nobody for anything: filters, values side by side, times, plans.

Everything is in the page when it is loaded, also without scripts; the script only hides.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from kata.conformance import compare
from kata.conformance.compare import (
    DEVIATES,
    DIFFERS,
    DOCUMENTED,
    FAILS,
    FINDINGS,
    SAME,
    SKIPPED,
    Document,
    Verdict,
)
from kata.conformance.samples import ratio, summary

KINDS = (DIFFERS, FAILS, DOCUMENTED, DEVIATES, SKIPPED, SAME)
WORDS = {SAME: "same", DOCUMENTED: "as documented", DIFFERS: "differs", FAILS: "fails", SKIPPED: "skipped",
         DEVIATES: "deviates"}  # fmt: skip
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'"


def render(document: Document) -> str:
    here = Path(__file__).parent
    style, script = (here / "page.css").read_text("utf-8"), (here / "page.js").read_text("utf-8")
    verdicts = compare.judge(document)
    body = "\n".join([*_head(document, verdicts), *_filters(document, verdicts), *_cases(document, verdicts),
                      *_measures(document), *_plans(document)])
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>Conformance of {escape(", ".join(_names(document)))}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
<script>
{script}</script>
</body>
</html>
"""


def _names(document: Document) -> list[str]:
    return [s["name"] for s in document["subjects"]]


def _head(document: Document, verdicts: Mapping[str, Mapping[str, Verdict]]) -> Iterator[str]:
    meta = document["meta"]
    yield "<h1>Conformance</h1>"
    machine = f"{meta['host']}, Linux {meta['kernel']}, {meta['cpus']} CPUs, {'KVM' if meta['kvm'] else 'no KVM'}"
    facts = [meta["time"], f"kata {meta['kata']}", machine, meta["qemu"], f"{len(document['cases'])} cases"]
    yield f'<p class="meta">{escape(" · ".join(filter(None, map(str, facts))))}</p>'
    found, left = len(compare.findings(verdicts)), meta.get("left", ())
    state = "bad" if found or left else "good"
    yield (f'<p class="outcome {state}">{found or "No"} finding{"s" * (found != 1)}'
           f'{"; the run was interrupted" if meta.get("interrupted") else ""}'
           f'{"".join(f"; left behind: {escape(text)}" for text in left)}</p>')
    yield '<div class="cards">'
    counted = compare.counts(verdicts)
    for subject in document["subjects"]:
        name = subject["name"]
        of = counted.get(name, Counter())
        bars = "".join(f'<i class="{k}" style="flex:{of[k]}"></i>' for k in reversed(KINDS) if of[k])
        numbers = "".join(f'<span class="{k}">{of[k]} {WORDS[k]}</span>' for k in reversed(KINDS) if of[k])
        label = " <span class=soft>reference</span>" if name == document["reference"] else ""
        yield (f'<section class="card"><h3>{escape(name)}{label}</h3><p class="meta">{escape(subject["version"])}</p>'
               f'<div class="bar">{bars}</div><div class="counts">{numbers}</div></section>')
    yield "</div>"


def _filters(document: Document, verdicts: Mapping[str, Mapping[str, Verdict]]) -> Iterator[str]:
    present = {v.verdict for of in verdicts.values() for v in of.values()}
    suites = dict.fromkeys(case["suite"] for case in document["cases"])
    yield '<h2 id="cases">Cases</h2><div class="filters">'
    yield _chips("verdict", "Verdicts", [(k, WORDS[k]) for k in KINDS if k in present])
    yield _chips("suite", "Suites", [(s, s) for s in suites])
    yield ('<input id="words" type="search" placeholder="Words in name, promise or values" aria-label="Search">'
           f'<span class="soft" id="shown" role="status">{len(document["cases"])} cases</span></div>')


def _chips(name: str, title: str, values: Iterable[tuple[str, str]]) -> str:
    boxes = "".join(f'<label class="chip"><input type="checkbox" name="{name}" value="{escape(value)}" checked>'
                    f"<span>{escape(text)}</span></label>" for value, text in values)
    return f"<fieldset><legend>{title}</legend>{boxes}</fieldset>"


def _cases(document: Document, verdicts: Mapping[str, Mapping[str, Verdict]]) -> Iterator[str]:
    by_id = {case["id"]: case for case in document["cases"]}

    def worst(of: Mapping[str, Verdict]) -> int:
        return max((compare.ORDER.index(v.verdict) for v in of.values()), default=0)

    for id, of in sorted(verdicts.items(), key=lambda item: -worst(item[1])):
        case, results = by_id[id], document["results"][id]
        badges = "".join(f'<span class="badge {v.verdict}" title="{escape(WORDS[v.verdict])}">{escape(name)}'
                         f"{'' if v.verdict == SAME else ': ' + WORDS[v.verdict]}</span>" for name, v in of.items())
        text = escape(f"{id} {case['promise']} {json.dumps({n: r['seen'] for n, r in results.items()})}".lower())
        opened = " open" if any(v.verdict in FINDINGS for v in of.values()) else ""
        kinds = " ".join(dict.fromkeys(v.verdict for v in of.values()))
        yield (f'<details class="case" data-suite="{escape(case["suite"])}" data-verdicts="{kinds}" '
               f'data-text="{text}"{opened}><summary><span class="name">{escape(id)}</span>'
               f'<span class="badges">{badges}</span><span class="promise">{escape(case["promise"])}</span></summary>'
               f'<div class="inside">{"".join(_inside(case, of, results))}</div></details>')


def _inside(case: Mapping[str, Any], of: Mapping[str, Verdict], results: Mapping[str, Any]) -> Iterator[str]:
    keys = list(dict.fromkeys([*case["expected"], *(v.key for verdict in of.values() for v in verdict.values)]))
    heads = "".join(f"<th>{escape(name)}</th>" for name in of)
    yield f'<div class="scroll"><table><thead><tr><th></th><th>demanded</th>{heads}</tr></thead><tbody>'
    for key in keys:
        wanted = _code(case["expected"][key]) if key in case["expected"] else '<span class="soft">-</span>'
        cells = "".join(_cell(verdict, key) for verdict in of.values())
        yield f"<tr><th>{escape(key)}</th><td>{wanted}</td>{cells}</tr>"
    times = "".join(f'<td class="number soft">{results[name]["seconds"]:.1f} s</td>' for name in of)
    yield f"<tr><th>time</th><td></td>{times}</tr></tbody></table></div>"
    for name, verdict in of.items():
        if verdict.why:
            yield f'<p class="why {verdict.verdict}"><b>{escape(name)}</b> {escape(verdict.why)}</p>'
    for name in of:
        for log, text in results[name].get("evidence", {}).items():
            yield (f'<details class="evidence"><summary>{escape(name)}: {escape(log)}</summary>'
                   f"<pre>{escape(text)}</pre></details>")


def _cell(verdict: Verdict, key: str) -> str:
    value = next((v for v in verdict.values if v.key == key), None)
    if value is None:
        return '<td class="soft">-</td>'
    note = f"<small>{escape(value.why)}</small>" if value.why else ""
    if value.verdict == DIFFERS and not value.why:
        note = f"<small>differs from {'the specification' if value.by == 'specification' else escape(value.by)}</small>"
    return f'<td class="{value.verdict}">{_code(value.seen)}{note}</td>'


def _code(value: object) -> str:
    text = value if isinstance(value, str) and value else json.dumps(value)
    return f"<code>{escape(text)}</code>"


def _measures(document: Document) -> Iterator[str]:
    samples = document["samples"]
    names = [name for name in _names(document) if name in samples]
    if not names:
        return
    base = document["reference"] if document["reference"] in names else names[0]
    yield (f'<h2>Times and memory</h2><p class="soft">Medians, and the quartiles around them. Ratios are to '
           f"{escape(base)}, with what the quartiles allow.</p>"
           '<div class="scroll"><table><thead><tr><th></th>')
    yield "".join(f"<th>{escape(name)}</th>" for name in names) + "</tr></thead><tbody>"
    for what in sorted({w for name in names for w in samples[name]}):
        yield f"<tr><th>{escape(what)}</th>"
        for name in names:
            values = samples[name].get(what)
            if not values:
                yield '<td class="soft">-</td>'
                continue
            found = summary(values)
            unit, scale = ("MiB", 2**-20) if what == "memory" else ("ms", 1000.0)
            text = f"{found['median'] * scale:.0f} {unit}"
            spread = f"{found['low'] * scale:.0f} to {found['high'] * scale:.0f}, n={found['count']:.0f}"
            if name != base and samples[base].get(what):
                middle, low, high = ratio(found, summary(samples[base][what]))
                spread += f"; ×{middle:.3g} ({low:.2g} to {high:.2g})"
            yield f'<td class="number">{text}<small>{spread}</small></td>'
        yield "</tr>"
    yield "</tbody></table></div>"


def _plans(document: Document) -> Iterator[str]:
    """Only what differs between any two of them."""
    plans: Mapping[str, Any] = document["plans"]
    if len(plans) < 2:
        return
    columns = {name: dict(flat("", plan)) for name, plan in plans.items()}
    names = list(columns)
    yield ('<h2>Plans</h2><p class="soft">What two flavors plan for the same bundle, where that differs.</p>'
           '<div class="choose">')
    for place, label in ((0, "Between"), (1, "and")):
        options = "".join(f'<option value="{i}"{" selected" * (i == place)}>{escape(name)}</option>'
                          for i, name in enumerate(names))
        yield f"<label>{label} <select>{options}</select></label>"
    heads = "".join(f"<th>{escape(name)}</th>" for name in names)
    yield f'</div><div class="scroll"><table id="plans"><thead><tr><th>field</th>{heads}</tr></thead><tbody>'
    for field in dict.fromkeys(f for column in columns.values() for f in column):
        cells = [column.get(field) for column in columns.values()]
        if any(cell != cells[0] for cell in cells):
            shown = "".join(f"<td>{_code(c) if c is not None else '-'}</td>" for c in cells)
            yield f"<tr><th>{escape(field)}</th>{shown}</tr>"
    yield "</tbody></table></div>"


def flat(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of everything that is no dict."""
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from flat(f"{place}.{name}" if place else name, item)
    else:
        yield place, value
