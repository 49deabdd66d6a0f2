"""The state object of the runtime specification (runtime.md, "State")."""

from __future__ import annotations

import re
from typing import Any

STATUSES = ("creating", "created", "running", "stopped", "paused")  #: paused: every runtime's extension


def check_state(state: dict[str, Any]) -> None:
    """Fail unless this satisfies schema/state-schema.json.

    Property names beyond the specification's are allowed there.
    """
    wrong = []
    for key in ("ociVersion", "id", "status", "bundle"):
        if not isinstance(state.get(key), str):
            wrong.append(f"{key}: a string is required, got {state.get(key)!r}")
    if not re.fullmatch(r"\d+\.\d+\.\d+(-[0-9A-Za-z.+-]+)?", str(state.get("ociVersion"))):
        wrong.append(f"ociVersion: not SemVer 2.0: {state.get('ociVersion')!r}")
    status = state.get("status")
    if status not in STATUSES:
        wrong.append(f"status: {status!r} is none of {STATUSES}")
    pid = state.get("pid")
    if status in ("created", "running", "paused") and not (isinstance(pid, int) and pid > 0):
        wrong.append(f"pid: required while {status}, got {pid!r}")
    if pid is not None and not isinstance(pid, int):
        wrong.append(f"pid: an integer is required, got {pid!r}")
    if not str(state.get("bundle", "")).startswith("/"):
        wrong.append(f"bundle: not an absolute path: {state.get('bundle')!r}")
    annotations = state.get("annotations", {})
    if not isinstance(annotations, dict) or not all(isinstance(v, str) for v in annotations.values()):
        wrong.append(f"annotations: a map of strings is required, got {annotations!r}")
    assert not wrong, "state: " + "; ".join(wrong) + f"\nin {state}"
