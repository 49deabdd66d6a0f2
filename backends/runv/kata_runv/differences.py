"""What differs in this flavor from an OCI runtime as the specification has it, and why (see kata/conformance).

``(pattern of cases, key): (the value that is seen, or ... for any, the reason)``; the key ``*``: the case cannot be
carried out.
"""

from __future__ import annotations

from typing import Any

DIFFERENCES: dict[tuple[str, str], tuple[Any, str]] = {
    ("oci/state-keys", "keys"): (
        ["annotations", "bundle", "bundlePath", "created", "id", "ociVersion", "owner", "pid", "rootfs", "rootfsPath",
         "status"], "state prints what runV printed, and what the specification asks for"),
    ("oci/list-json", "keys"): (
        ["bundle", "created", "id", "ociVersion", "owner", "pid", "rootfs", "status"], "list prints what runV printed"),
    ("oci/life-unknown-code", "start"): (255, "runV ended with 255"),
    ("oci/life-unknown-code", "kill"): (255, "runV ended with 255"),
    ("oci/bad-program-when", "at"): (["start", "start"], "the process is made at start, as in runV"),
    ("oci/exec-created", "output"): ("", "the first process is made at start: before there is none to join"),
    ("podman/program-missing", "code"): (126, "the process is made at start, whose words podman does not read"),
    ("oci/update-*", "*"): (..., "runV had no update; `kata update` does it"),
    ("oci/events-*", "*"): (..., "runV had no events; `kata events` does it"),
    ("docker/update", "*"): (..., "runV had no update; the flavor unified has it"),
    ("cri/memory-update", "*"): (..., "runV had no update; the flavor unified has it"),
}
