"""The record of a run, as JSON: all that any report or comparison needs, and nothing computed.

``version`` 1 has: ``meta`` (when, host, versions), ``reference`` (a subject's name or ""), ``subjects``, ``cases``
(id, suite, name, promise, expected), ``results`` (case -> subject -> status, seen, why, seconds), ``declared``
(subject -> differences), ``samples`` (subject -> what -> numbers), ``plans`` (flavor -> plans of one bundle).
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kata import __version__, hostfacts, process
from kata.config.document import text_of
from kata.conformance.case import Case
from kata.conformance.subject import Subject
from kata.errors import ConfigError, KataError

VERSION = 1
MAX_SIZE = 64 << 20  #: bytes; a full run has far less
RAN, FAILED, SKIPPED = "ran", "failed", "skipped"


def new(subjects: Sequence[Subject], reference: str, cases: Sequence[Case]) -> dict[str, Any]:
    """The record of a run that begins."""
    return {
        "version": VERSION,
        "meta": {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "kata": __version__,
            "host": platform.node(), "kernel": platform.release(), "machine": platform.machine(),
            "cpus": os.cpu_count() or 0, "kvm": hostfacts.collect().kvm_usable, "python": platform.python_version(),
            "qemu": _first_line("qemu-system-x86_64", "--version"),
        },
        "reference": reference,
        "subjects": [{"name": s.name, "flavor": s.flavor, "command": list(s.command), "version": s.version}
                     for s in subjects],
        "cases": [{"id": c.id, "suite": c.suite, "name": c.name, "promise": c.promise, "expected": dict(c.expected)}
                  for c in cases],
        "results": {c.id: {} for c in cases},
        "declared": {s.name: [dict(d) for d in s.differences] for s in subjects},
        "samples": {},
        "plans": {},
    }  # fmt: skip


def _first_line(*argv: str) -> str:
    try:
        return process.run(argv, timeout=30).text.splitlines()[0]
    except (KataError, IndexError):
        return ""


def load(path: str | Path) -> dict[str, Any]:
    """Read a record.

    :raise ConfigError: it cannot be read, or is none of this version.
    """
    hint = "name the JSON file of a conformance run"
    try:
        found = json.loads(text_of(str(path), limit=MAX_SIZE))
    except FileNotFoundError as e:
        raise ConfigError(f"cannot read {path}: {e.strerror}", hint) from e
    except ConfigError as e:
        raise ConfigError(e.text, hint) from e
    except ValueError as e:
        raise ConfigError(f"{path} is not JSON: {e}", hint) from e
    if not isinstance(found, dict) or found.get("version") != VERSION:
        said = found.get("version") if isinstance(found, dict) else None
        raise ConfigError(f"{path} is no conformance run of version {VERSION}, but of {said!r}",
                          "use the kata that made it")
    needed = ("meta", "reference", "subjects", "cases", "results", "declared", "samples", "plans")
    if missing := [key for key in needed if key not in found]:
        raise ConfigError(f"{path} lacks {', '.join(missing)}", "it is not a whole conformance run")
    return found


def save(document: dict[str, Any], path: str | Path) -> None:
    """Write a record.

    :raise ConfigError: the file cannot be written.
    """
    write(path, json.dumps(document, indent=1, sort_keys=True, default=str) + "\n")


def write(path: str | Path, text: str) -> None:
    """Write a report.

    :raise ConfigError: the file cannot be written.
    """
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as e:
        raise ConfigError(f"cannot write {path}: {e.strerror}", "name a file in a folder that exists") from e
