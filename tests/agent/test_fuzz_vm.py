"""Every rpc with random messages, in a machine that may lose its clock and its network."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.agent.client import METHODS
from tests.agent.conftest import Box
from tests.agent.machine import Machine

pytestmark = pytest.mark.vm

WORDS = ("", "c", "live", "..", "../../etc", "/", "/dev/null", "/run/kata/x", "x" * 300, "a\0b", "ä", "0", "-1",
         "99999999999", "pid", "network", "tmpfs", "9p", "blk", "eth0", "127.0.0.1", "::1", "02:00:00:00:00:01",
         "CAP_KILL", "memory.max", "table", "json", "sh", "SCMP_ACT_ALLOW", "RLIMIT_CPU")
NUMBERS = (0, 1, 2, 9, 255, 65536, (1 << 31) - 1)
#: They switch the guest's world off, or wait by nature.
LEFT_OUT = {"DestroySandbox", "GetEvent", "GetOOMEvent"}


def fill(message: object, rng: random.Random, depth: int = 0) -> None:
    """Set about half of the fields to something."""
    for field in message.DESCRIPTOR.fields:  # type: ignore[attr-defined]
        if rng.random() < 0.4:
            continue
        target = getattr(message, field.name)
        inner = field.message_type
        if inner is not None and inner.GetOptions().map_entry:
            if inner.fields_by_name["value"].message_type is None:
                value = rng.choice(WORDS) if inner.fields_by_name["value"].type == 9 else rng.choice(NUMBERS)
                target[rng.choice(WORDS)] = value
        elif inner is not None:
            if depth < 4:
                for _ in range(rng.randrange(3) if field.is_repeated else 1):
                    fill(target.add() if field.is_repeated else target, rng, depth + 1)
        elif field.is_repeated:
            target.extend(scalar(field, rng) for _ in range(rng.randrange(4)))
        else:
            setattr(message, field.name, scalar(field, rng))


def scalar(field: object, rng: random.Random) -> object:
    kind = field.type  # type: ignore[attr-defined]
    if kind == 9:
        return rng.choice(WORDS)
    if kind == 12:
        return rng.randbytes(rng.choice((0, 1, 16, 5000)))
    if kind == 8:
        return rng.random() < 0.5
    if kind == 14:
        return 0
    value = rng.choice(NUMBERS)
    return -value if kind in (3, 5) and rng.random() < 0.2 else value


def test_random_requests(tmp_path, busybox_root):
    machine = Machine(tmp_path, level="info")
    try:
        client = machine.connect()
        machine.mount_share(client)
        root = Path(machine.copy_root(busybox_root, "base"))
        live = Box(client, root, ["sleep", "10000"])
        live.id = "live"
        live.extras.container_id = "live"
        live.create().start()
        rng = random.Random(20)
        for round_number in range(12):
            for (service, name), method in METHODS.items():
                if name in LEFT_OUT:
                    continue
                message = method.request()
                fill(message, rng)
                client.start(service, name, message).ready(0.02)
            assert client.Check().status == 1, round_number
        # Whatever is left can be removed, and the guest is as good as new.
        client.close()
        client = machine.connect()
        for info in client.guest.ListAll().containers:
            client.RemoveContainer(container_id=info.container_id)
        after = Box(client, root, ["echo", "well"])
        assert after.run() == (0, "well\n", "")
    except BaseException:
        print(machine.log())
        raise
    finally:
        machine.close()
