"""What the plans of clear and runv say holds in a machine: size, what boots, network, the first process, pause."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.netns import NetworkNamespace
from harness.oci import Container, Oci
from harness.proc import run
from harness.wait import eventually

pytestmark = pytest.mark.vm_only

MIB = 1 << 20
LIMIT = 320  #: MiB
COUNTER = "i=0; while :; do i=$((i+1)); echo $i; usleep 20000; done"
#: Flavor -> vCPUs with a quota of one, what is on the namespace's interface.
EXPECTED = {"clear": ("2", "macvtap"), "runv": ("1", "mirred")}


@pytest.fixture
def network(tag: str) -> Iterator[NetworkNamespace]:
    """A network namespace with an interface whose other end is the host's."""
    namespace = NetworkNamespace(f"{tag[-9:]}fl").create()
    end = f"{tag[-9:]}ve"
    run("ip", "link", "add", end, "type", "veth", "peer", "name", "eth0", "netns", namespace.name).ok()
    run("ip", "address", "add", "10.214.8.1/24", "dev", end).ok()
    run("ip", "link", "set", end, "up").ok()
    namespace.run("ip", "address", "add", "10.214.8.2/24", "dev", "eth0").ok()
    namespace.run("ip", "link", "set", "eth0", "up").ok()
    yield namespace
    run("ip", "link", "delete", end)
    namespace.delete()


@pytest.mark.parametrize("flavor", EXPECTED)
def test_a_machine_as_planned(oci: Oci, network: NetworkNamespace, flavor: str) -> None:
    vcpus, joined = EXPECTED[flavor]
    bundle = oci.bundle(COUNTER)
    bundle.linux["resources"].update({"memory": {"limit": LIMIT * MIB}, "cpu": {"quota": 100000, "period": 100000}})
    bundle.in_network(network.path)
    with oci.container(bundle) as c:
        c.launch_verb("create", globals=("--flavor", flavor)).ok()
        c.start().ok()
        memory, seen, device = c.sh("awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo; nproc; "
                                    "cat /sys/class/dmi/id/product_name").ok().stdout.splitlines()
        assert LIMIT - 100 < int(memory) < LIMIT and seen == vcpus and "i440FX" in device
        c.exec("ping", "-c", "1", "-W", "10", "10.214.8.1").ok()
        wiring = network.run("ip", "-d", "link").stdout + network.run("tc", "filter", "show", "dev", "eth0",
                                                                      "ingress").stdout
        assert joined in wiring
        pauses(oci, c)
    assert network.run("ip", "-o", "link").ok().stdout.count("\n") == 2, "lo and eth0 are left"


def pauses(oci: Oci, c: Container) -> None:
    """Nothing moves while it is paused, and questions are answered at once; it goes on; it can be killed so."""
    eventually("output", lambda: len(c.stdout) > 6)
    oci.verb("pause", c.id).ok()
    assert c.status == "paused"
    assert "paused" in c.sh("true").fails().stderr
    assert oci.verb("delete", c.id).rc != 0
    before = c.stdout
    oci.verb("resume", c.id).ok()
    eventually("output after resume", lambda: len(c.stdout) > len(before) + 20)
    numbers = [int(n) for n in c.stdout.splitlines()[:-1]]
    assert numbers == list(range(1, len(numbers) + 1)), "output was lost"
    oci.verb("pause", c.id).ok()
    c.kill("KILL").ok()
    assert c.wait(20) == 137


@pytest.mark.parametrize("flavor", EXPECTED)
def test_the_first_process_is_made_at_start(oci: Oci, flavor: str) -> None:
    """A program that is not there fails at start, not at create."""
    bundle = oci.bundle()
    bundle.process["args"] = ["/nonexistent"]
    with oci.container(bundle) as c:
        c.launch_verb("create", globals=("--flavor", flavor)).ok()
        assert "nonexistent" in c.start().fails().stderr
        assert c.wait(0) != 0 and c.status == "stopped"
        c.delete().ok()
