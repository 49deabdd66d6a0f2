"""The reports of `kata conformance`: what they say, and that no value breaks their form."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata.conformance import compare, document, junit, page, tap, terminal
from kata.errors import ConfigError

GOLDEN = Path(__file__).with_name("golden")


def ran(**seen: object) -> dict[str, Any]:
    return {"status": "ran", "seen": seen, "why": "", "seconds": 0.25}


def record() -> dict[str, Any]:
    """Two flavors beside a reference, with one case of each verdict."""
    cases = {
        "oci/equal": ({"code": 0}, ran(code=0), ran(code=0), ran(code=0)),
        "oci/told": ({}, ran(made="create"), ran(made="start"), ran(made="create")),
        "oci/wrong": ({"umask": "0022"}, ran(umask="0022"), ran(umask="0022"), ran(umask="0000")),
        "docker/broken": ({}, ran(code=0), ran(code=0),
                          {"status": "failed", "seen": {}, "why": "no <machine>", "seconds": 2.0,
                           "evidence": {"key/console.log": "panic & more"}}),
        "docker/left-out": ({}, *[{"status": "skipped", "seen": {}, "why": "needs # a disk", "seconds": 0.0}] * 3),
        "oci/old": ({"new": True}, ran(new=False), ran(new=False), ran(new=True)),
    }
    names = ("runc", "clear", "unified")
    return {
        "version": 1,
        "meta": {"time": "2026-01-02T03:04:05Z", "kata": "0.1.0", "host": "host", "kernel": "6.1", "machine": "x86_64",
                 "cpus": 2, "kvm": False, "python": "3.11", "qemu": "QEMU 7.2"},
        "reference": "runc",
        "subjects": [{"name": n, "flavor": "" if n == "runc" else n, "command": [n], "version": f"{n} 1"}
                     for n in names],
        "cases": [{"id": id, "suite": id.partition("/")[0], "name": id.partition("/")[2], "promise": f"promise of {id}",
                   "expected": expected} for id, (expected, *_) in cases.items()],
        "results": {id: dict(zip(names, results, strict=True)) for id, (_, *results) in cases.items()},
        "declared": {"runc": [], "unified": [], "clear": [
            {"case": "oci/to*", "key": "made", "value": "start", "reason": "the process is made at start"},
            {"case": "oci/equal", "key": "code", "value": 7, "reason": "no more"}]},
        "samples": {"runc": {"run": [0.1, 0.2, 0.3], "memory": [2**20]}, "unified": {"run": [1.0, 2.0, 3.0]}},
        "plans": {"clear": {"sandbox": {"memory": 2048, "machine": {"type": "pc"}}},
                  "unified": {"sandbox": {"memory": 2048, "machine": {"type": "q35"}}}},
    }  # fmt: skip


def test_terminal() -> None:
    lines = "\n".join(terminal.report(record()))
    assert lines == (GOLDEN / "conformance.txt").read_text().rstrip("\n")


def test_junit() -> None:
    root = ET.fromstring(junit.render(record()))
    counted = {s.get("name"): tuple(int(s.get(k, "")) for k in ("tests", "failures", "errors", "skipped"))
               for s in root}
    assert counted == {"runc": (6, 0, 0, 1), "clear": (6, 0, 0, 1), "unified": (6, 1, 1, 1)}
    failure = root.find("testsuite[@name='unified']/testcase[@name='wrong']/failure")
    assert failure is not None and failure.text == 'umask: "0000", specification: "0022" (differs)'


def test_tap() -> None:
    lines = tap.render(record()).splitlines()
    assert lines[:2] == ["TAP version 14", "1..18"]
    assert [line for line in lines if line.startswith("not ok")] == [
        "not ok 9 - oci/wrong with unified", "not ok 12 - docker/broken with unified"]
    assert sum(bool(re.match(r"ok \d+ - .* # SKIP needs \\# a disk$", line)) for line in lines) == 3


class Reader(HTMLParser):
    """Checks that tags are closed in order, and gathers what would be fetched."""

    VOID = ("meta", "input")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.fetched += [str(v) for k, v in attrs if k in ("src", "href", "action", "data")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert not reader.open and not reader.fetched
    return reader


def test_page() -> None:
    text = page.render(record())
    found = read(text)
    assert "2 findings" in found.text and "no <machine>" in found.text and "panic & more" in found.text
    assert "the process is made at start" in found.text and "sandbox.machine.type" in found.text
    assert "sandbox.memory" not in found.text  # it is the same
    assert "url(" not in text and "@import" not in text and "fetch(" not in text


@given(st.text(), st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=4))
def test_no_value_breaks_a_report(text: str, value: object) -> None:
    made = record()
    made["results"]["oci/wrong"]["unified"] = ran(**{"umask": value, text: value})
    made["results"]["docker/broken"]["unified"]["why"] = text
    made["cases"][2]["promise"] = text
    ET.fromstring(junit.render(made))
    lines = tap.render(made).splitlines()
    assert lines[1] == "1..18"
    read(page.render(made))
    assert terminal.report(made)


def test_two_runs() -> None:
    before, after = record(), record()
    assert terminal.difference(before, before)[0].startswith("after / before")  # times alone
    after["meta"]["kernel"] = "6.2"
    after["results"]["oci/wrong"]["unified"] = ran(umask="0022")
    del after["results"]["oci/told"]["clear"]
    said = terminal.difference(before, after)
    assert said[:4] == [
        "kernel: 6.1 -> 6.2",
        "oci/told with clear: documented -> absent",
        "oci/wrong with unified: differs -> same",
        "oci/wrong with unified, umask: 0000 -> 0022",
    ]


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    document.save(record(), tmp_path / "run.json")
    assert document.load(tmp_path / "run.json") == record()
    assert compare.judge(document.load(tmp_path / "run.json")) == compare.judge(record())


@pytest.mark.parametrize(("text", "said"), [
    ("{", "is not JSON"), ("[]", "no conformance run of version 1"), ('{"version": 2}', "but of 2"),
    (json.dumps({"version": 1, "meta": {}}), "lacks reference, subjects"),
])
def test_what_is_no_record_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ConfigError, match=said):
        document.load(tmp_path / "run.json")
    with pytest.raises(ConfigError, match="cannot read"):
        document.load(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="cannot read /dev/zero: it is not a regular file"):
        document.load("/dev/zero")
    with pytest.raises(ConfigError, match="cannot write"):
        document.save({}, tmp_path / "none/run.json")
