"""Namespaces, hostname, sysctl, user mappings."""

from __future__ import annotations

import os

import pytest

from harness.oci import Oci
from harness.proc import run
from harness.text import compare, script, sections


def test_own_namespaces(oci: Oci) -> None:
    """Pid, mount, network, ipc, uts are the container's own: nothing of the host is in them."""
    bundle = oci.bundle(
        script(
            pids="ls /proc | grep '^[0-9]' | wc -l; cat /proc/1/cmdline | tr '\\0' ' ' | cut -c1-7",
            net="ls /sys/class/net; ip -o addr show lo | awk '{ print $4 }' | head -1",
            routes="ip route | wc -l",
            hostname="hostname; cat /proc/sys/kernel/hostname",
            mounts=f"grep -c {oci.work_dir} /proc/self/mountinfo",
            set="hostname changed 2>&1",
            **{ns: f"readlink /proc/self/ns/{ns}" for ns in ("ns_pid", "ns_mnt", "ns_net", "ns_ipc", "ns_uts")},
        ).replace("/ns/ns_", "/ns/")
    )
    bundle.config["hostname"] = "my-name"
    result = oci.run(bundle).ok()
    got = sections(result.stdout)
    compare(
        got,
        {
            "pids": lambda v: int(v.split()[0]) <= 6 and v.split()[1] == "/bin/sh",
            "net": "lo\n127.0.0.1/8", "routes": "0",
            "hostname": "my-name\nmy-name", "set": lambda v: "not permitted" in v,
        },
    )  # fmt: skip
    for ns in ("pid", "mnt", "net", "ipc", "uts"):
        assert got[f"ns_{ns}"].startswith(f"{ns}:["), got
        if not oci.runtime.is_vm:  # numbers of two kernels may be equal by chance
            assert got[f"ns_{ns}"] != os.readlink(f"/proc/self/ns/{ns}"), ns


def test_joined_network_namespace(oci: Oci) -> None:
    """A network namespace by path: its interfaces, addresses, MTU, MAC and routes are the container's."""
    name, outside = f"{oci.tag}-joined", f"{oci.tag}-out"
    for each in (name, outside):
        run("ip", "netns", "add", each).ok()
    try:
        setup = (
            "ip link set lo up; "
            f"ip link add eth7 address 02:42:0a:00:00:07 mtu 1400 type veth peer name out7 netns {outside}; "
            "ip link set eth7 up; ip addr add 10.77.0.2/24 dev eth7; ip -6 addr add fd77::2/64 dev eth7 nodad; "
            f"ip -n {outside} addr add 10.77.0.1/24 dev out7; ip -n {outside} link set out7 up; "
            "ip route add default via 10.77.0.1; ip route add 10.88.0.0/16 via 10.77.0.9 dev eth7"
        )
        run("nsenter", f"--net=/run/netns/{name}", "sh", "-ec", setup).ok()
        bundle = oci.bundle(
            script(
                link="cat /sys/class/net/eth7/address /sys/class/net/eth7/mtu",
                addr="ip -o -4 addr show eth7 | awk '{ print $4 }'; ip -o -6 addr show eth7 | grep -o 'fd77::2/64'",
                route="ip route | awk '/^default/ { print $3, $5 }'; ip route | grep -c '10.88.0.0/16 via 10.77.0.9'",
                ping="ping -c 1 -W 10 10.77.0.1 | grep -c ' 0% packet loss'",
            )
        )
        for ns in bundle.linux["namespaces"]:
            if ns["type"] == "network":
                ns["path"] = f"/run/netns/{name}"
        got = sections(oci.run(bundle).ok().stdout)
        compare(
            got,
            {
                "link": "02:42:0a:00:00:07\n1400", "addr": "10.77.0.2/24\nfd77::2/64",
                "route": "10.77.0.1 eth7\n1", "ping": "1",
            },
        )  # fmt: skip
        left = run("ip", "-n", name, "-o", "link").ok().stdout
        assert "tap" not in left, f"a tap was left in the namespace: {left}"
    finally:
        for each in (name, outside):
            run("ip", "netns", "delete", each).ok()


def test_sysctl(oci: Oci) -> None:
    """linux.sysctl of the network and ipc namespaces; a host-wide one is refused by name."""
    bundle = oci.bundle(
        "cat /proc/sys/net/core/somaxconn /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax "
        "/proc/sys/net/ipv4/ping_group_range"
    )
    bundle.linux["sysctl"] = {
        "net.core.somaxconn": "777", "net.ipv4.ip_forward": "1", "kernel.msgmax": "9999",
        "net.ipv4.ping_group_range": "0 1000",
    }  # fmt: skip
    assert oci.run(bundle).ok().stdout.split() == ["777", "1", "9999", "0", "1000"]
    for bad in ("no.such.key", "net.no_such"):
        bundle = oci.bundle("true")
        bundle.linux["sysctl"] = {bad: "1"}
        assert bad.split(".")[-1] in oci.run(bundle, timeout=30).fails(1).stderr.replace("/", ".")


@pytest.mark.control_cannot("runc 1.1 does not know domainname (runtime-spec 1.1)")
def test_domainname(oci: Oci) -> None:
    bundle = oci.bundle("cat /proc/sys/kernel/domainname")
    bundle.config["domainname"] = "example.org"
    assert oci.run(bundle).ok().out == "example.org"


def test_user_namespace(oci: Oci) -> None:
    """uidMappings and gidMappings: root inside is somebody else on the files."""
    base = 200000
    bundle = oci.bundle(
        script(
            map="awk '{ print $1, $2, $3 }' /proc/self/uid_map /proc/self/gid_map",
            id="id -u; id -g",
            own="touch /new; stat -c '%u %g' /new /bin/busybox",
            foreign="stat -c '%u' /etc/foreign",
            refused="cat /etc/secret || echo refused",
        )
    )
    for top, folders, files in os.walk(bundle.rootfs):
        for name in (*folders, *files):
            os.lchown(os.path.join(top, name), base, base)
    os.chown(bundle.rootfs, base, base)
    (bundle.rootfs / "etc/foreign").write_text("")
    (bundle.rootfs / "etc/secret").write_text("host root only")
    (bundle.rootfs / "etc/secret").chmod(0o600)
    bundle.linux["namespaces"].append({"type": "user"})
    mapping = [{"containerID": 0, "hostID": base, "size": 65536}]
    bundle.linux["uidMappings"] = bundle.linux["gidMappings"] = mapping
    del bundle.mounts[-1]  # cgroup: cannot be mounted by a mapped root on v1
    for path in (oci.run_dir, oci.root):
        if path.exists():
            path.chmod(0o711)
    got = sections(oci.run(bundle).ok().stdout)
    compare(
        got,
        {
            "map": f"0 {base} 65536\n0 {base} 65536", "id": "0\n0", "own": "0 0\n0 0",
            "foreign": "65534", "refused": lambda v: v.endswith("refused"),
        },
    )  # fmt: skip
    new = (bundle.rootfs / "new").stat()
    assert (new.st_uid, new.st_gid) == (base, base)


@pytest.mark.vm_only
def test_host_namespaces_are_refused(oci: Oci) -> None:
    """What cannot hold in a machine of its own is refused by name: the host's network namespace."""
    bundle = oci.bundle("true")
    bundle.linux["namespaces"] = [n for n in bundle.linux["namespaces"] if n["type"] != "network"]
    refused = oci.run(bundle, timeout=30).fails(1)
    assert "network" in refused.stderr and "host" in refused.stderr, refused
    bundle = oci.bundle("true")
    for ns in bundle.linux["namespaces"]:
        if ns["type"] == "network":
            ns["path"] = "/proc/self/ns/net"
    assert "network" in oci.run(bundle, timeout=30).fails(1).stderr


def test_namespace_path_that_is_none(oci: Oci) -> None:
    """A path that is absent or no namespace is refused by name."""
    for path in ("/run/netns/no-such-namespace", "/etc/passwd"):
        bundle = oci.bundle("true")
        for ns in bundle.linux["namespaces"]:
            if ns["type"] == "network":
                ns["path"] = path
        refused = oci.run(bundle, timeout=30).fails(1)
        assert path in refused.stderr or not oci.runtime.is_vm, refused
