"""``conformance``: the same cases with each flavor and other runtimes, compared."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import click

from kata.errors import KataError, UsageError

if TYPE_CHECKING:
    from kata.conformance.case import Case
    from kata.conformance.subject import Subject

FINDING, CANNOT = 1, 2  #: exit codes
#: Option -> module that renders a record.
REPORTS = {"junit": "kata.conformance.junit", "tap": "kata.conformance.tap", "html": "kata.conformance.page"}


@click.group()
def command() -> None:
    """Compare flavors and other OCI runtimes: the same cases, on real machines, by real engines.

    Exit code 1: something differs that nobody declares, or fails. 2: the run or the report could not be made.
    """


def _reports(function: Callable[..., Any]) -> Callable[..., Any]:
    for name, text in (("html", "one page that needs nothing else"), ("tap", "TAP 14"), ("junit", "JUnit's XML"),
                       ("json", "the record, for `report` and `compare`")):  # fmt: skip
        function = click.option(f"--{name}", metavar="FILE", default="", help=f"Write {text}.")(function)
    return click.option("--all", "everything", is_flag=True, help="Show also the cases that are the same.")(function)


def _selection(function: Callable[..., Any]) -> Callable[..., Any]:
    function = click.option("--case", "patterns", metavar="GLOB", multiple=True,
                            help="Only these cases, by SUITE/NAME or NAME; may be given again.")(function)
    return click.option("--suite", "suite", metavar="LIST", default="",
                        help="Only these suites: oci,docker,podman,containerd,cri.")(function)


@command.command()
@click.option("--flavors", default="clear,runv,unified", show_default=True, metavar="LIST", help="Flavors to compare.")
@click.option("--runtime", "runtimes", metavar="[NAME=]PATH", multiple=True,
              help="Another OCI runtime to compare; may be given again.")
@click.option("--reference", metavar="[NAME=]PATH", default="", help="The runtime that the others are compared with.")
@click.option("--jobs", type=click.IntRange(1, 32), default=1, show_default=True, help="Subjects that run at once.")
@_selection
@_reports
def run(flavors: str, runtimes: Sequence[str], reference: str, jobs: int, suite: str, patterns: Sequence[str],
        everything: bool, json: str, junit: str, tap: str, html: str) -> int:
    """Run the cases and compare what was seen."""
    return _guarded(lambda: _run(flavors, runtimes, reference, jobs, suite, patterns, everything,
                                 {"json": json, "junit": junit, "tap": tap, "html": html}))


def _run(flavors: str, runtimes: Sequence[str], reference: str, jobs: int, suite: str, patterns: Sequence[str],
         everything: bool, files: dict[str, str]) -> int:
    from kata.conformance.runner import Runner
    from kata.conformance.terminal import Progress

    subjects, base = _subjects(flavors, runtimes, reference)
    cases = _cases(suite, patterns)
    progress = Progress(len(cases) * len(subjects))
    runner = Runner(subjects, base, cases, jobs, progress)

    def interrupt(number: int, frame: object) -> None:
        runner.stop.set()
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):  # engines and machines are ended by both
        signal.signal(number, interrupt)
    try:
        record = runner.run()
    finally:
        progress.end()
    return _show(record, everything, files)


def _subjects(flavors: str, runtimes: Sequence[str], reference: str) -> tuple[list[Subject], str]:
    from kata.conformance import subject

    found = [subject.runtime(reference)] if reference else []
    base = found[0].name if found else ""
    found += [subject.flavor(name) for name in _words(flavors)] + [subject.runtime(text) for text in runtimes]
    names = [s.name for s in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UsageError(f"{', '.join(sorted(twice))} named twice", "give the runtime a name of its own: NAME=PATH")
    if not found:
        raise UsageError("nothing to run", "name flavors, or a runtime")
    return found, base


def _cases(suite: str, patterns: Sequence[str]) -> list[Case]:
    """The cases that are asked for, in the order of suites.

    :raise UsageError: an unknown suite, or a pattern that no case has.
    """
    from kata.conformance import suites
    from kata.conformance.case import CASES, SUITES

    wanted = _words(suite) or list(SUITES)
    if unknown := [name for name in wanted if name not in SUITES]:
        raise UsageError(f"unknown suite {', '.join(unknown)}", f"it is one of {', '.join(SUITES)}")
    suites.load_cases()
    found = [c for c in CASES if c.suite in wanted]
    for pattern in patterns:
        if not any(_matches(c, pattern) for c in found):
            raise UsageError(f"no case is named {pattern!r}", "`kata conformance list` shows all")
    chosen = [c for c in found if not patterns or any(_matches(c, p) for p in patterns)]
    return sorted(chosen, key=lambda c: SUITES.index(c.suite))


def _matches(case: Case, pattern: str) -> bool:
    return fnmatchcase(case.id, pattern) or fnmatchcase(case.name, pattern)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _show(record: dict[str, Any], everything: bool, files: dict[str, str]) -> int:
    """Print the report and write the others; the exit code."""
    import importlib

    from kata.conformance import compare, document, terminal

    print("\n".join(terminal.report(record, everything)))
    if files["json"]:
        document.save(record, files["json"])
    for kind, module in REPORTS.items():
        if files[kind]:
            document.write(files[kind], importlib.import_module(module).render(record))
    if record["meta"].get("interrupted"):
        raise KataError("the run was interrupted", "the reports hold what was seen until then")
    found = compare.findings(compare.judge(record)) or record["meta"].get("left")
    return FINDING if found else 0


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@_selection
def list_cases(as_json: bool, suite: str, patterns: Sequence[str]) -> int:
    """List the cases: name, and the promise that they hold."""

    def show() -> int:
        found = _cases(suite, patterns)
        if as_json:
            print(json.dumps([{"id": c.id, "promise": c.promise, "needs": list(c.needs)} for c in found], indent=2))
            return 0
        width = max((len(c.id) for c in found), default=0)
        for case in found:
            print(f"{case.id:<{width}}  {case.promise}")
        print(f"{len(found)} cases", file=sys.stderr)
        return 0

    return _guarded(show)


@command.command()
@click.argument("record")
@_reports
def report(record: str, everything: bool, json: str, junit: str, tap: str, html: str) -> int:
    """Make reports of a run's JSON record."""
    from kata.conformance import document

    files = {"json": json, "junit": junit, "tap": tap, "html": html}
    return _guarded(lambda: _show(document.load(record), everything, files))


@command.command("compare")
@click.argument("before")
@click.argument("after")
def compare_runs(before: str, after: str) -> int:
    """Compare two runs: versions, machines, flavors. Exit code 1: something was seen otherwise."""

    def show() -> int:
        from kata.conformance import compare, document, terminal

        first, second = document.load(before), document.load(after)
        print("\n".join(terminal.difference(first, second)) or "nothing differs")
        return FINDING if any(compare.changes(first, second, compare.pairs_of(first, second))) else 0

    return _guarded(show)


def _guarded(act: Callable[[], int]) -> int:
    """2 for what could not be done, so that it is not taken for a finding."""
    try:
        return act()
    except (KataError, OSError) as e:
        print(f"kata: {e}", file=sys.stderr)
        return CANNOT
