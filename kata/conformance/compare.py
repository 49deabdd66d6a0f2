"""The verdicts: what was seen, against the specification, the reference and each other.  No I/O.

Of every observed value, in this order:

1. it is what the case's promise demands, or, where that demands nothing, what the
   reference showed (without a reference: the first subject): *same*;
2. the flavor declares that it differs, and has this very value: *documented*;
3. it is what the reference showed, though not what is demanded: *same*, with a note;
4. else it is *differs*, a finding.

A case that could not be carried out *fails*, which is a finding, too, unless the
flavor declares that it has no such thing (``"*"`` in place of a key).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

#: What `kata conformance run` makes and all reports are made of; see :mod:`kata.conformance.document`.
Document = Mapping[str, Any]

SAME, DOCUMENTED, DIFFERS, FAILS, SKIPPED = "same", "documented", "differs", "fails", "skipped"
#: Of the reference only: it is not what the promise demands.
DEVIATES = "deviates"
FINDINGS = (DIFFERS, FAILS)
#: From good to bad: the verdict of a case is that of its worst value.
ORDER = (SKIPPED, SAME, DOCUMENTED, DEVIATES, DIFFERS, FAILS)
WHOLE = "*"


@dataclass(frozen=True, slots=True)
class Value:
    """The verdict of one observed value; ``by`` says against what: ``specification``, or a subject's name."""

    key: str
    verdict: str
    seen: object
    wanted: object
    by: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one case with one subject; ``why``: the reason of a skip, the error of a failure."""

    verdict: str
    values: tuple[Value, ...] = ()
    why: str = ""


def declared(document: Document, subject: str, case: str, key: str) -> tuple[bool, object, str] | None:
    """(whether any value will do, the value, the reason) of a difference that the subject declares."""
    for entry in document["declared"].get(subject, ()):
        if fnmatchcase(case, entry["case"]) and entry["key"] == key:
            return "value" not in entry, entry.get("value"), entry["reason"]
    return None


def judge(document: Document) -> dict[str, dict[str, Verdict]]:
    """Case -> subject -> verdict."""
    return {case["id"]: {subject["name"]: verdict(document, case, subject["name"])
                         for subject in document["subjects"] if subject["name"] in document["results"][case["id"]]}
            for case in document["cases"]}


def verdict(document: Document, case: Mapping[str, Any], subject: str) -> Verdict:
    results = document["results"][case["id"]]
    result, reference = results[subject], document["reference"]
    if result["status"] == "skipped":
        return Verdict(SKIPPED, why=result["why"])
    if result["status"] == "failed":
        told = declared(document, subject, case["id"], WHOLE)
        if told:
            return Verdict(DOCUMENTED, why=f"{told[2]} ({result['why']})")
        return Verdict(DEVIATES if subject == reference else FAILS, why=result["why"])
    shown = results.get(reference, {}).get("seen", {})
    keys = dict.fromkeys((*case["expected"], *result["seen"], *shown))
    values = [_value(document, case, subject, key) for key in keys]
    worst = max((v.verdict for v in values), key=ORDER.index, default=SAME)
    return Verdict(worst, tuple(values))


def _value(document: Document, case: Mapping[str, Any], subject: str, key: str) -> Value:
    reference, observed = document["reference"], document["results"][case["id"]][subject]["seen"]
    seen, why = observed.get(key), "" if key in observed else "not observed"
    other, by = _other(document, case, key)
    demanded = key in case["expected"]
    wanted, against = (case["expected"][key], "specification") if demanded else (other, by)
    if not why and (seen == wanted or (subject == by and not demanded)):
        return Value(key, SAME, seen, wanted, against)
    if subject == reference:
        return Value(key, DEVIATES, seen, wanted, against, why)
    told = declared(document, subject, case["id"], key)
    if told and (told[0] or told[1] == seen):
        return Value(key, DOCUMENTED, seen, wanted, against, told[2])
    if demanded and by == reference and reference and seen == other and not why:
        return Value(key, SAME, seen, wanted, against, f"as {by}, not as the specification")
    return Value(key, DIFFERS, seen, wanted, against, why)


def _other(document: Document, case: Mapping[str, Any], key: str) -> tuple[object, str]:
    """What the reference showed, or the first subject that showed anything; and whose it is."""
    results = document["results"][case["id"]]
    names = [s["name"] for s in document["subjects"]]
    for name in sorted(names, key=lambda name: name != document["reference"]):
        if key in results.get(name, {}).get("seen", {}):
            return results[name]["seen"][key], name
    return None, ""


def counts(verdicts: Mapping[str, Mapping[str, Verdict]]) -> dict[str, Counter[str]]:
    """Subject -> verdict -> how many."""
    found: dict[str, Counter[str]] = {}
    for of in verdicts.values():
        for subject, verdict in of.items():
            found.setdefault(subject, Counter())[verdict.verdict] += 1
    return found


def findings(verdicts: Mapping[str, Mapping[str, Verdict]]) -> list[tuple[str, str, Verdict]]:
    """(case, subject, verdict) of every finding."""
    return [(case, subject, verdict) for case, of in verdicts.items() for subject, verdict in of.items()
            if verdict.verdict in FINDINGS]


def stale(document: Document, verdicts: Mapping[str, Mapping[str, Verdict]]) -> list[tuple[str, str, str]]:
    """(subject, case, key) of differences that are declared of cases that ran, and were not met in any of them."""
    left = []
    for subject, entries in document["declared"].items():
        for entry in entries:
            ran = [of[subject] for case, of in verdicts.items()
                   if subject in of and fnmatchcase(case, entry["case"]) and of[subject].verdict != SKIPPED
                   # A value that was compared with nothing but itself tells nothing.
                   and not any(v.key == entry["key"] and v.by == subject for v in of[subject].values)]
            met = any(v.verdict == DOCUMENTED and (entry["key"] == WHOLE or any(
                value.key == entry["key"] and value.verdict == DOCUMENTED for value in v.values)) for v in ran)
            if ran and not met:
                left.append((subject, entry["case"], entry["key"]))
    return left


# --- two runs ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Change:
    """What is not the same in two runs; ``key`` "" : the case's verdict or presence."""

    case: str
    subject: str
    key: str
    before: object
    after: object


def changes(before: Document, after: Document, pairs: Sequence[tuple[str, str]]) -> Iterator[Change]:
    """What the second run saw otherwise, for pairs of (subject of the first, subject of the second)."""
    old, new = judge(before), judge(after)
    for case in sorted({*old, *new}):
        for first, second in pairs:
            a, b = old.get(case, {}).get(first), new.get(case, {}).get(second)
            name = first if first == second else f"{first} -> {second}"
            if a is None and b is None:
                continue
            if a is None or b is None or a.verdict != b.verdict:
                yield Change(case, name, "", a.verdict if a else "absent", b.verdict if b else "absent")
            if a is None or b is None:
                continue
            was, now = {v.key: v.seen for v in a.values}, {v.key: v.seen for v in b.values}
            for key in sorted({*was, *now}):
                if was.get(key) != now.get(key):
                    yield Change(case, name, key, was.get(key), now.get(key))


def pairs_of(before: Document, after: Document) -> list[tuple[str, str]]:
    """Subjects of the same name; if no name is in both, the first of each that is not a reference."""
    old, new = ([s["name"] for s in document["subjects"]] for document in (before, after))
    both = [(name, name) for name in old if name in new]
    if both or not old or not new:
        return both
    return [(next((n for n in old if n != before["reference"]), old[0]),
             next((n for n in new if n != after["reference"]), new[0]))]
