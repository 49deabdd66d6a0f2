"""HOME of a process that names none, told by the host."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from kata.contract import ContainerPlan
from kata.proxy.home import home_of, with_home
from kata.storage.share import ShareRoot

PASSWD = b"# root:x:0:0::/no:\nroot:x:0:0:root:/root:/bin/sh\nshort:x:5\nuser:x:1000:1000::/home/user:\nnone:x:7:7:::\n"


@pytest.mark.parametrize(("uid", "home"), [(0, "/root"), (1000, "/home/user"), (7, "/"), (5, "/"), (99, "/")])
def test_home_of(uid: int, home: str) -> None:
    assert home_of(PASSWD, uid) == home


def env(process: dict[str, Any], mounts: list[str] | None = None, data: bytes | Exception = PASSWD) -> list[str]:
    def read(container: str, path: str, limit: int) -> bytes:
        assert (container, path) == ("c", "rootfs/etc/passwd") and limit > 0
        if isinstance(data, Exception):
            raise data
        return data

    plan = SimpleNamespace(id="c", spec={"mounts": [{"destination": d} for d in mounts or []]})
    given = with_home(cast(ShareRoot, SimpleNamespace(read=read)), cast(ContainerPlan, plan), process)
    return list(given.get("env", []))


def test_who_has_none_gets_one() -> None:
    assert env({"env": ["A=b"], "user": {"uid": 1000}}, ["/proc", "/etc/hosts"]) == ["A=b", "HOME=/home/user"]
    assert env({}) == ["HOME=/root"]
    assert env({}, data=FileNotFoundError()) == ["HOME=/"]


@pytest.mark.parametrize("process", [{"env": ["HOME="]}, {"env": ["HOME=/x"], "user": {"uid": 1}}])
def test_who_has_one_keeps_it(process: dict[str, Any]) -> None:
    assert env(process) == process["env"]


@pytest.mark.parametrize("mount", ["/", "/etc", "/etc/", "/etc/passwd"])
def test_the_agent_looks_where_the_host_cannot_see(mount: str) -> None:
    assert env({}, [mount]) == []


@pytest.mark.parametrize("data", [PermissionError(), OSError(40, "a link"), ValueError("too large"), b"\xff",
                                  b"r:x:0:0:r:/a\0b:"])
def test_the_agent_says_what_is_wrong(data: bytes | Exception) -> None:
    assert env({"user": {"uid": 0}}, data=data) == []


def test_names_are_the_agents() -> None:
    assert env({"user": {"username": "user", "uid": 0}}) == []
