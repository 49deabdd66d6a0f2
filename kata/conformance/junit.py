"""JUnit's XML: a suite for each subject, a test case for each case, so that any CI shows it."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree as ET

from kata.conformance import compare
from kata.conformance.compare import DEVIATES, DOCUMENTED, FAILS, SKIPPED, Document, Verdict

#: What XML 1.0 cannot hold.
_FORBIDDEN = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render(document: Document) -> str:
    verdicts = compare.judge(document)
    root = ET.Element("testsuites", name="kata conformance")
    for subject in document["subjects"]:
        name = subject["name"]
        suite = ET.SubElement(root, "testsuite", name=name, timestamp=document["meta"]["time"].rstrip("Z"),
                              hostname=_clean(document["meta"]["host"]))
        seconds, counted = 0.0, {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
        for case in document["cases"]:
            if name not in verdicts[case["id"]]:
                continue
            verdict = verdicts[case["id"]][name]
            took = float(document["results"][case["id"]][name]["seconds"])
            seconds += took
            entry = ET.SubElement(suite, "testcase", classname=f"{name}.{case['suite']}", name=case["name"],
                                  time=f"{took:.3f}")
            counted["tests"] += 1
            for counter in _outcome(entry, verdict, case["promise"]):
                counted[counter] += 1
        suite.attrib.update({key: str(number) for key, number in counted.items()}, time=f"{seconds:.3f}")
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _outcome(entry: ET.Element, verdict: Verdict, promise: str) -> list[str]:
    """Write it, and name what it counts as."""
    told = "\n".join(f"{v.key}: {json.dumps(v.seen)}, {v.by}: {json.dumps(v.wanted)} ({v.verdict}) {v.why}".rstrip()
                     for v in verdict.values if v.verdict != compare.SAME)
    if verdict.verdict == SKIPPED:
        ET.SubElement(entry, "skipped", message=_clean(verdict.why))
        return ["skipped"]
    if verdict.verdict == FAILS:
        ET.SubElement(entry, "error", message=_clean(verdict.why), type="fails").text = _clean(promise)
        return ["errors"]
    if verdict.verdict == compare.DIFFERS:
        ET.SubElement(entry, "failure", message=_clean(promise), type="differs").text = _clean(told)
        return ["failures"]
    if verdict.verdict in (DOCUMENTED, DEVIATES):
        ET.SubElement(entry, "system-out").text = _clean(f"{verdict.verdict}: {verdict.why}\n{told}".strip())
    return []


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)
