"""The verdicts of `kata conformance`: every combination of demand, reference, subject and declaration."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata.conformance import compare, needs, suites
from kata.conformance.case import CASES, SUITES
from kata.conformance.compare import DEVIATES, DIFFERS, DOCUMENTED, FAILS, SAME, SKIPPED
from kata.conformance.samples import ratio, summary

NOTHING = object()
VALUES = st.integers(0, 3)


def document(expected: object, reference: object, subject: object, declared: object = NOTHING,
             base: str = "runc") -> dict[str, Any]:
    """One case with one value; NOTHING: no demand, not observed, not declared; ...: any value is declared."""
    def result(value: object) -> dict[str, Any]:
        return {"status": "ran", "seen": {} if value is NOTHING else {"key": value}, "why": "", "seconds": 0.0}

    entry: dict[str, Any] = {"case": "oci/*", "key": "key", "reason": "so it is"}
    if declared is not ...:
        entry["value"] = declared
    return {
        "reference": base, "subjects": [{"name": "runc"}, {"name": "mine"}],
        "cases": [{"id": "oci/case", "expected": {} if expected is NOTHING else {"key": expected}}],
        "results": {"oci/case": {"runc": result(reference), "mine": result(subject)}},
        "declared": {"mine": [] if declared is NOTHING else [entry]},
    }  # fmt: skip


def verdicts(*args: object, **more: Any) -> tuple[str, str]:
    of = compare.judge(document(*args, **more))["oci/case"]
    return of["runc"].verdict, of["mine"].verdict


@pytest.mark.parametrize(("expected", "reference", "subject", "declared", "result"), [
    (1, 1, 1, NOTHING, (SAME, SAME)),
    (1, 1, 2, NOTHING, (SAME, DIFFERS)),
    (1, 1, 2, 2, (SAME, DOCUMENTED)),
    (1, 1, 3, 2, (SAME, DIFFERS)),  # it differs otherwise than is declared
    (1, 1, 3, ..., (SAME, DOCUMENTED)),
    (1, 2, 1, NOTHING, (DEVIATES, SAME)),
    (1, 2, 2, NOTHING, (DEVIATES, SAME)),  # as the reference, with a note
    (1, 2, 3, NOTHING, (DEVIATES, DIFFERS)),
    (NOTHING, 1, 1, NOTHING, (SAME, SAME)),
    (NOTHING, 1, 2, NOTHING, (SAME, DIFFERS)),
    (NOTHING, 1, 2, 2, (SAME, DOCUMENTED)),
    (1, 1, NOTHING, NOTHING, (SAME, DIFFERS)),  # what is demanded was not observed
    (1, NOTHING, 1, NOTHING, (DEVIATES, SAME)),
    (NOTHING, 1, NOTHING, NOTHING, (SAME, DIFFERS)),  # what the reference showed was not observed
])
def test_verdicts(expected: object, reference: object, subject: object, declared: object,
                  result: tuple[str, str]) -> None:
    assert verdicts(expected, reference, subject, declared) == result


def test_without_a_reference_the_first_subject_stands_for_it() -> None:
    assert verdicts(NOTHING, 1, 2, base="") == (SAME, DIFFERS)
    assert verdicts(1, 2, 1, base="") == (DIFFERS, SAME)
    assert verdicts(1, 2, 2, base="") == (DIFFERS, DIFFERS)  # two that are wrong alike are wrong


@given(VALUES | st.just(NOTHING), VALUES, VALUES, VALUES | st.just(NOTHING) | st.just(...))
def test_what_holds_for_all(expected: object, reference: object, subject: object, declared: object) -> None:
    base, mine = verdicts(expected, reference, subject, declared)
    assert base in (SAME, DEVIATES)  # the reference is never a finding
    if subject in (expected, reference):
        assert mine in (SAME, DOCUMENTED)
    if mine == DOCUMENTED:
        assert declared in (..., subject) and subject != expected
    if declared is NOTHING:
        assert (mine == SAME) == (subject in (expected, reference))
    if subject == reference and expected in (NOTHING, reference):
        assert mine == SAME


def test_failures_and_skips() -> None:
    made = document(1, 1, 1)
    made["results"]["oci/case"]["mine"] = {"status": "failed", "seen": {}, "why": "no machine", "seconds": 0.0}
    assert compare.judge(made)["oci/case"]["mine"].verdict == FAILS
    assert compare.findings(compare.judge(made)) == [("oci/case", "mine", compare.Verdict(FAILS, (), "no machine"))]
    made["declared"]["mine"] = [{"case": "oci/case", "key": "*", "reason": "there are none"}]
    found = compare.judge(made)["oci/case"]["mine"]
    assert (found.verdict, found.why) == (DOCUMENTED, "there are none (no machine)")
    made["results"]["oci/case"]["mine"].update(status="skipped", why="no disk")
    assert compare.judge(made)["oci/case"]["mine"] == compare.Verdict(SKIPPED, (), "no disk")


def test_a_declaration_that_nothing_meets_is_told() -> None:
    for subject, left in ((1, [("mine", "oci/*", "key")]), (2, [])):
        made = document(1, 1, subject, 2)
        assert compare.stale(made, compare.judge(made)) == left
    alone = document(NOTHING, 1, 1, 2, base="")
    alone["subjects"] = [{"name": "mine"}]
    assert compare.stale(alone, compare.judge(alone)) == []


def test_subjects_of_two_runs_are_paired() -> None:
    first, second = document(1, 1, 1), document(1, 1, 1)
    assert compare.pairs_of(first, second) == [("runc", "runc"), ("mine", "mine")]
    second["subjects"] = [{"name": "crun"}, {"name": "other"}]
    second["reference"] = "crun"
    assert compare.pairs_of(first, second) == [("mine", "other")]


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20), st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20))
def test_ratios_keep_their_spread(mine: list[float], other: list[float]) -> None:
    a, b = summary(mine), summary(other)
    assert min(mine) <= a["low"] <= a["median"] <= a["high"] <= max(mine)
    middle, low, high = ratio(a, b)
    assert low <= middle * 1.000001 and middle <= high * 1.000001
    assert ratio(a, a)[0] == 1


def test_all_cases_are_well_formed() -> None:
    suites.load_cases()
    assert len(CASES) >= 150 and {c.suite for c in CASES} <= set(SUITES)
    for case in CASES:
        assert " " not in case.name and case.promise.strip(), case.id
        assert all(need.startswith("program:") or need in needs.NEEDS for need in case.needs), case.id


def test_declarations_name_cases_that_there_are() -> None:
    from fnmatch import fnmatchcase

    from kata.conformance.subject import differences

    suites.load_cases()
    for flavor in ("clear", "runv", "unified"):
        for entry in differences(f"kata_{flavor}.backend"):
            assert any(fnmatchcase(case.id, entry["case"]) for case in CASES), entry
            assert len(entry["reason"]) > 10, entry
