"""What differs in this flavor from an OCI runtime as the specification has it, and why (see kata/conformance).

``(pattern of cases, key): (the value that is seen, or ... for any, the reason)``; the key ``*``: the case cannot be
carried out.
"""

from __future__ import annotations

from typing import Any

DIFFERENCES: dict[tuple[str, str], tuple[Any, str]] = {
    ("oci/state-keys", "keys"): (
        ["annotations", "bundle", "id", "ociVersion", "pid", "status"], "state prints what cc-runtime printed"),
    ("oci/delete-force-unknown", "code"): (1, "cc-runtime refused an unknown id, by force too"),
    ("oci/bad-program-when", "at"): (["start", "start"], "the process is made at start, as in Clear Containers"),
    ("oci/exec-created", "output"): ("", "the first process is made at start: before there is none to join"),
    ("podman/program-missing", "code"): (126, "the process is made at start, whose words podman does not read"),
    ("oci/update-*", "*"): (..., "cc-runtime had no update; `kata update` does it"),
    ("oci/events-*", "*"): (..., "cc-runtime had no events; `kata events` does it"),
    ("oci/verb-spec", "*"): (..., "cc-runtime had no spec; `kata spec` does it"),
    ("docker/join-network", "result"): (
        "refused by name", "Clear Containers joined a machine by pod annotations only, never by its network"),
    ("docker/update", "*"): (..., "cc-runtime had no update; the flavor unified has it"),
    ("cri/memory-update", "*"): (..., "cc-runtime had no update; the flavor unified has it"),
}
