"""``features``: what this runtime can do (runtime-spec, "Features Structure")."""

from __future__ import annotations

import json

from kata import OCI_VERSION, __version__
from kata.cli.context import Context
from kata.table import Namespace, Verb

VERB = Verb("Print what this runtime can do, as JSON.")


def run(context: Context, args: Namespace) -> int:
    print(json.dumps(features(), indent=2))
    return 0


def features() -> dict[str, object]:
    """The structure; every name in it is accepted in a config.json and carried out in the guest."""
    from kata.build import COMMIT
    from kata.guestspec.mounts import OPTIONS as MOUNT_OPTIONS
    from kata.oci import HOOKS, schema
    from kata_agent.linux.capability import NAMES as CAPABILITIES

    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": OCI_VERSION,
        "hooks": list(HOOKS),
        "mountOptions": sorted(MOUNT_OPTIONS),
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": list(CAPABILITIES),
            "cgroup": {"v1": True, "v2": True, "systemd": False, "systemdUser": False, "rdma": False},
            "seccomp": {
                "enabled": True,
                "actions": sorted(schema.SECCOMP_ACTIONS),
                "operators": sorted(schema.SECCOMP_OPERATORS),
                "archs": sorted(schema.SECCOMP_ARCHES),
                "knownFlags": sorted(schema.SECCOMP_FLAGS),
                "supportedFlags": sorted(schema.SECCOMP_FLAGS),
            },
            "apparmor": {"enabled": False},
            "selinux": {"enabled": False},
            "intelRdt": {"enabled": False},
            "mountExtensions": {"idmap": {"enabled": False}},
        },
        "annotations": {
            "io.github.seccomp.libseccomp.version": _libseccomp(),
            "org.katacontainers.version": __version__,
            "org.katacontainers.commit": COMMIT,
        },
        "potentiallyUnsafeConfigAnnotations": ["io.katacontainers.config."],
    }


def _libseccomp() -> str:
    from kata import seccomp

    return seccomp.library_version()
