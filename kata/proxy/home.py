"""HOME of a process that was given none: its user's in the container's passwd(5), as runc sets it.

The agent does that itself when it has to, at the price of a dozen messages from
an emulated machine to its host, which has the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kata.contract import ContainerPlan
from kata.storage.share import ShareRoot

PASSWD = "rootfs/etc/passwd"
MAX_PASSWD = 1 << 20  #: bytes; a larger one is left to the agent


def with_home(share: ShareRoot, plan: ContainerPlan, process: Mapping[str, Any]) -> Mapping[str, Any]:
    """``process``, with HOME where it can be told from here."""
    env = process.get("env") or []
    user = process.get("user") or {}
    if any(entry.startswith("HOME=") for entry in env) or user.get("username") or _covered(plan.spec):
        return process
    try:
        home = home_of(share.read(plan.id, PASSWD, MAX_PASSWD), user.get("uid", 0))
    except FileNotFoundError:
        home = "/"
    except (OSError, ValueError):
        return process
    return {**process, "env": [*env, f"HOME={home}"]}


def home_of(passwd: bytes, uid: int) -> str:
    """Home directory of a uid, "/" when it has none.

    :raise ValueError: it is no text.
    """
    for line in passwd.decode().splitlines():
        fields = line.strip().split(":")
        if len(fields) >= 6 and fields[2] == str(uid) and not line.startswith("#"):
            if "\0" in fields[5]:
                raise ValueError("a zero byte")
            return fields[5] or "/"
    return "/"


def _covered(spec: Mapping[str, Any]) -> bool:
    """Whether the container may see another file there than its root file system has."""
    return any(mount["destination"].rstrip("/") in ("", "/etc", "/etc/passwd") for mount in spec.get("mounts", ()))
