"""The Test Anything Protocol, version 14: a line for each case with each subject, details as YAML."""

from __future__ import annotations

import json

from kata.conformance import compare
from kata.conformance.compare import DEVIATES, DOCUMENTED, FINDINGS, SAME, SKIPPED, Document


def render(document: Document) -> str:
    verdicts = compare.judge(document)
    promises = {case["id"]: case["promise"] for case in document["cases"]}
    all_of_them = [(case, subject, v) for case, of in verdicts.items() for subject, v in of.items()]
    lines = ["TAP version 14", f"1..{len(all_of_them)}"]
    for number, (case, subject, verdict) in enumerate(all_of_them, 1):
        line = f"{'not ok' if verdict.verdict in FINDINGS else 'ok'} {number} - {_words(case)} with {_words(subject)}"
        if verdict.verdict == SKIPPED:
            line += f" # SKIP {_words(verdict.why)}"
        lines.append(line)
        if verdict.verdict in (*FINDINGS, DOCUMENTED, DEVIATES):
            # JSON is YAML: nothing in a value can break out of it.
            lines += ["  ---", f"  verdict: {verdict.verdict}", f"  promise: {json.dumps(promises[case])}"]
            if verdict.why:
                lines.append(f"  why: {json.dumps(verdict.why)}")
            for v in verdict.values:
                if v.verdict != SAME:
                    fields = {"seen": v.seen, "wanted": v.wanted, "by": v.by, "verdict": v.verdict, "why": v.why}
                    lines.append(f"  {json.dumps(v.key)}: {json.dumps(fields)}")
            lines.append("  ...")
    return "\n".join(lines) + "\n"


def _words(text: str) -> str:
    """One line in which nothing is a directive."""
    return " ".join(text.replace("\\", "\\\\").replace("#", "\\#").split())
