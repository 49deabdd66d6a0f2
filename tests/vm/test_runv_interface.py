"""runV's ``interface``: what it adds, changes and removes is so in the guest, whichever flavor made the container."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.oci import Oci
from harness.proc import Result, run
from harness.wait import eventually

pytestmark = pytest.mark.vm_only


@pytest.fixture
def bridge(tag: str) -> Iterator[str]:
    """A bridge of the host with an address, in the namespace of this test run's processes."""
    name = f"{tag[-9:]}br"
    run("ip", "link", "add", name, "type", "bridge").ok()
    run("ip", "address", "add", "10.214.9.1/24", "dev", name).ok()
    run("ip", "link", "set", name, "up").ok()
    yield name
    run("ip", "link", "delete", name).ok()


def test_add_change_remove(oci: Oci, bridge: str) -> None:
    def interface(*words: str) -> Result:
        return oci.verb("--flavor", "runv", "interface", *words)

    with oci.running(oci.bundle()) as c:
        made = interface("add", "--host-device", bridge, "--ip", "10.214.9.2/24", "--mac", "02:00:00:00:09:02",
                         "--mtu", "1400", c.id).ok()
        assert made.out == "eth0"
        show = "ip -o -4 address show eth0; cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu"
        eventually("the interface in the guest", lambda: "10.214.9.2/24" in c.sh(show).stdout, 30)
        seen = c.sh(show).ok().stdout
        assert "02:00:00:00:09:02" in seen and "\n1400" in seen
        c.exec("ping", "-c", "1", "-W", "10", "10.214.9.1").ok()
        listed = interface("ls", c.id).ok().stdout
        assert "eth0" in listed and "10.214.9.2/24" in listed and "kata_" not in listed
        interface("update", "--add-ip", "10.214.9.3/24", "--delete-ip", "10.214.9.2/24", "--mtu", "1300", c.id,
                  "eth0").ok()
        eventually("the new address in the guest",
                   lambda: "10.214.9.3/24" in (s := c.sh(show).stdout) and "10.214.9.2/" not in s, 30)
        eventually("the new MTU in the guest", lambda: "\n1300" in c.sh(show).stdout, 30)
        for words, what in ((["rm", c.id, "eth7"], "eth7"), (["update", c.id, "eth0"], "--add-ip"),
                            (["add", "--host-device", "nosuch", c.id], "nosuch"), (["add", "--ip", "x", c.id], "x"),
                            (["rm", c.id, "lo"], "lo")):
            assert what in interface(*words).fails(255).stderr
        assert interface("ls", c.id).ok().stdout == listed.replace("10.214.9.2", "10.214.9.3").replace("1400", "1300")
        interface("rm", c.id, "eth0").ok()
        eventually("the interface's end in the guest", lambda: c.sh("test -e /sys/class/net/eth0").rc == 1, 30)
