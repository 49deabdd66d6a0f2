"""Networks of docker: the bridge, published ports, user-defined networks, names, IPv6, interfaces that come and go."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from harness.dockerd import IMAGE, Docker
from harness.proc import Result
from harness.text import compare, script, sections
from harness.wait import eventually

from .conftest import Start, new_name

Once = Callable[..., Result]

#: A web server whose answer tells who it is.
SERVE = "mkdir -p /www; hostname > /www/name; {extra} exec httpd -f -p 80 -h /www"


#: Shell: fetch a path over HTTP and print the body (busybox-static's wget crashes).
FETCH = "fetch() {{ printf 'GET %s HTTP/1.0\\r\\n\\r\\n' $2 | nc -w 10 $1 80 | sed '1,/^\\r$/d'; }}; fetch {} {}"


def get(docker: Docker, url: str, timeout: int = 60) -> bytes:
    """Fetch a URL on the docker host's network."""
    code = f"import sys, urllib.request as u; sys.stdout.buffer.write(u.urlopen(sys.argv[1], timeout={timeout}).read())"
    argv = docker.netns.argv(sys.executable, "-I", "-c", code, url)
    return subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, timeout=100).stdout


def answers(docker: Docker, url: str) -> bytes:
    """Wait until a URL is served."""

    def served() -> bytes:
        try:
            return get(docker, url, 4)
        except subprocess.CalledProcessError:
            return b""

    return eventually(f"an answer from {url}", served, 60)


def address(docker: Docker, name: str, network: str, key: str = "IPAddress") -> str:
    found: str = docker.inspect(name)["NetworkSettings"]["Networks"][network][key]
    return found


@pytest.fixture
def network(docker: Docker) -> Iterator[Callable[..., str]]:
    """Make networks that are gone after the test."""
    made: list[str] = []

    def make(*options: str) -> str:
        name = new_name("net")
        docker("network", "create", *options, name).ok()
        made.append(name)
        return name

    yield make
    mine = docker("ps", "-aq", "--filter", "label=test=this").ok().out.split()
    if mine:
        docker("rm", "-f", *mine, timeout=120).ok()
    for name in made:
        docker("network", "rm", name).ok()


def test_default_bridge(docker: Docker, once: Once) -> None:
    """Address, route, MTU and MAC as docker set them; the gateway answers; nothing of the host's interfaces."""
    checks = script(
        links="ls /sys/class/net | tr '\\n' ' '",
        address="ip -o -4 addr show eth0 | awk '{ print $4 }'",
        route="ip route | awk '/^default/ { print $3, $5 }'",
        mtu="cat /sys/class/net/eth0/mtu /sys/class/net/eth0/address",
        gateway="ping -c 2 -W 10 172.17.0.1 | grep -c ' 0% packet loss'",
        six="ip -o -6 addr show eth0 | grep -c 'fd00:d0c:'; ping -6 -c 2 -W 10 fd00:d0c::1 | grep -c ' 0% packet loss'",
        lo="ping -c 1 127.0.0.1 | grep -c ' 0% packet loss'; cat /sys/class/net/lo/flags",
        resolve="getent hosts $(hostname) | awk '{ print $1 }' || nslookup $(hostname)",
    )
    options = ["--mac-address", "02:42:ac:11:00:77"]
    got = sections(once(checks, *options).ok().stdout)
    compare(
        got,
        {
            "links": "eth0 lo", "address": lambda v: v.startswith("172.17.0.") and v.endswith("/16"),
            "route": "172.17.0.1 eth0", "mtu": "1500\n02:42:ac:11:00:77", "gateway": "1", "six": "1\n1", "lo": "1\n0x9",
        },
    )  # fmt: skip


def test_published_ports(docker: Docker, start: Start) -> None:
    """-p: reached from the host over IPv4 and IPv6, at fixed and free ports; closed when it ends."""
    serve = SERVE.format(extra="")
    name = start("-p", "8080:80", "-p", "127.0.0.1::80", "--hostname", "served", script=serve)

    host = docker.outside("sh", "-c", "ip -o -4 addr show docker0 | awk '{ print $4 }' | cut -d/ -f1").ok().out
    assert answers(docker, f"http://{host}:8080/name") == b"served\n"
    assert get(docker, "http://127.0.0.1:8080/name") == b"served\n"
    assert answers(docker, "http://[::1]:8080/name") == b"served\n"
    ports = docker.inspect(name)["NetworkSettings"]["Ports"]["80/tcp"]
    free = next(p["HostPort"] for p in ports if p["HostIp"] == "127.0.0.1")
    assert get(docker, f"http://127.0.0.1:{free}/name") == b"served\n"
    assert docker("port", name, "80/tcp").ok().out.count(":8080") >= 1
    docker("stop", "-t", "1", name).ok()
    with pytest.raises(subprocess.CalledProcessError):
        get(docker, "http://127.0.0.1:8080/name")


ECHO = '$s = IO::Socket::INET->new(LocalPort => 53, Proto => "udp"); while ($s->recv($d, 1500)) { $s->send($d) }'


def test_published_udp_port(docker: Docker, start: Start) -> None:
    """-p /udp: a datagram goes in, its answer comes out."""
    programs = [word for folder in ("/usr", "/lib", "/lib64") for word in ("-v", f"{folder}:{folder}:ro")]
    start("-p", "127.0.0.1:5353:53/udp", *programs, script=f"exec perl -MIO::Socket::INET -e '{ECHO}'")
    code = ("import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(2)\n"
            "s.connect(('127.0.0.1', 5353)); s.send(b'datagram'); print(s.recv(100).decode())")

    def answer() -> str:
        return docker.outside(sys.executable, "-I", "-c", code).out

    assert eventually("an answer over UDP", answer, 60) == "datagram"


def test_large_transfer(docker: Docker, start: Start) -> None:
    """30 MB from container to host: the sum is right."""
    extra = "i=0; while [ $i -lt 30 ]; do head -c 1000000 /dev/urandom; i=$((i+1)); done > /www/big;"
    name = start(script=SERVE.format(extra=extra))
    ip = address(docker, name, "bridge")
    answers(docker, f"http://{ip}/name")
    inside = docker("exec", name, "sha256sum", "/www/big").ok().out.split()[0]
    data = get(docker, f"http://{ip}/big")
    assert len(data) == 30_000_000
    assert hashlib.sha256(data).hexdigest() == inside


def test_names_on_a_network_of_ones_own(docker: Docker, start: Start, network: Callable[..., str]) -> None:
    """A user-defined network: DNS by name and alias both ways, also from a container without the host's resolvers."""
    net = network("--subnet", "10.66.0.0/24", "--opt", "com.docker.network.driver.mtu=1400")
    one, two = new_name("one"), new_name("two")
    start("--network", net, "--network-alias", "friend", "--ip", "10.66.0.50", script=SERVE.format(extra=""), name=one)
    start("--network", net, script=SERVE.format(extra=""), name=two)
    resolver = docker("exec", two, "cat", "/etc/resolv.conf").ok().stdout
    assert "nameserver 127.0.0.11" in resolver, resolver
    got = sections(
        docker.sh(
            two,
            script(
                name=f"nslookup {one} 127.0.0.11 | grep -A1 '^Name' | tail -1 | grep -o '10.66.0.50'",
                ping=f"ping -c 1 -W 10 {one} | grep -c ' 0% packet loss'",
                alias=FETCH.format("friend", "/name"),
                absent="nslookup no-such-name-here 127.0.0.11 > /dev/null 2>&1; echo $?",
                mtu="cat /sys/class/net/eth0/mtu",
                big=f"ping -c 1 -W 10 -s 4000 {one} | grep -c ' 0% packet loss'",
            ),
        ).ok().stdout
    )  # fmt: skip
    compare(
        got,
        {
            "name": "10.66.0.50", "ping": "1", "alias": lambda v: len(v) == 12, "absent": lambda v: v != "0",
            "mtu": "1400", "big": "1",
        },
    )  # fmt: skip
    back = docker.sh(one, FETCH.format(two, "/name")).ok().out
    assert docker.inspect(two)["Id"].startswith(back)


def test_several_networks(docker: Docker, network: Callable[..., str]) -> None:
    """A container created with one network and connected to another before start has both, each its own."""
    first, second = network("--subnet", "10.67.1.0/24"), network("--subnet", "10.67.2.0/24")
    name = new_name()
    command = ["sh", "-c", "trap exit TERM; while :; do sleep 1; done"]
    docker("create", "--name", name, "--label", "test=this", "--network", first, IMAGE, *command).ok()
    docker("network", "connect", "--ip", "10.67.2.99", second, name).ok()
    docker("start", name).ok()
    for net, gateway in ((first, "10.67.1.1"), (second, "10.67.2.1")):
        mac = address(docker, name, net, "MacAddress")
        ip = address(docker, name, net)
        links = (
            docker.sh(name, "for i in /sys/class/net/eth*; do echo $(basename $i) $(cat $i/address); done").ok().stdout
        )
        link = next((line.split()[0] for line in links.splitlines() if line.endswith(mac)), "")
        assert link, f"no interface with MAC {mac} inside: {links}"
        assert f"{ip}/24" in docker.sh(name, f"ip -o -4 addr show {link}").ok().stdout
        assert docker.sh(name, f"ping -c 1 -W 10 {gateway}").rc == 0
    assert docker.sh(name, "ip route | grep -c ^default").out == "1"


def test_connect_and_disconnect_while_running(docker: Docker, start: Start, network: Callable[..., str]) -> None:
    """network connect: an interface appears in the running container, works, and vanishes with disconnect."""
    net = network("--subnet", "10.68.0.0/24")
    name, peer = start(), start("--network", net, script=SERVE.format(extra=""))
    docker("network", "connect", "--ip", "10.68.0.77", "--alias", "joined", net, name).ok()
    eventually("the address inside", lambda: "10.68.0.77/24" in docker.sh(name, "ip -o addr").ok().stdout, 30)
    mac = address(docker, name, net, "MacAddress")
    assert mac in docker.sh(name, "cat /sys/class/net/*/address").ok().stdout
    assert docker.sh(name, FETCH.format(address(docker, peer, net), "/name")).ok().out
    assert docker.sh(peer, "ping -c 1 -W 10 joined").rc == 0
    docker("network", "disconnect", net, name).ok()
    eventually("the interface to vanish", lambda: "10.68.0.77" not in docker.sh(name, "ip -o addr").ok().stdout, 30)
    assert docker.sh(name, "ping -c 1 -W 10 172.17.0.1").rc == 0
    docker("network", "connect", net, name).ok()
    eventually("a second time", lambda: "10.68.0." in docker.sh(name, "ip -o addr").ok().stdout, 30)


def test_ipv6_network(docker: Docker, start: Start, network: Callable[..., str]) -> None:
    """A network with IPv6: addresses, default route, names, between two containers."""
    net = network("--ipv6", "--subnet", "fd00:beef::/64", "--subnet", "10.69.0.0/24")
    name, peer = start("--network", net), start("--network", net, "--ip6", "fd00:beef::99")
    got = sections(
        docker.sh(
            name,
            script(
                own="ip -o -6 addr show eth0 scope global | grep -o 'fd00:beef::[0-9a-f:]*/64'",
                route="ip -6 route | awk '/^default/ { print $3 }'",
                ping="ping -6 -c 1 -W 10 fd00:beef::99 | grep -c ' 0% packet loss'",
                by_name=f"ping -6 -c 1 -W 10 {peer} | grep -c ' 0% packet loss'",
            ),
        ).ok().stdout
    )  # fmt: skip
    compare(got, {"own": lambda v: v.startswith("fd00:beef::"), "route": "fd00:beef::1", "ping": "1", "by_name": "1"})


def test_none(once: Once) -> None:
    """--network none: the loopback alone."""
    checks = "ls /sys/class/net; ip -o addr show lo | grep -c 127.0.0.1; ping -c 1 127.0.0.1 | grep -c ' 0%'"
    got = once(checks, "--network", "none")
    assert got.ok().stdout.split() == ["lo", "1", "1"]


def test_internal_and_isolated(docker: Docker, start: Start, network: Callable[..., str]) -> None:
    """Containers of two networks do not reach each other: docker's rules hold for machines too."""
    one, two = network("--subnet", "10.70.1.0/24"), network("--subnet", "10.70.2.0/24")
    first, second = start("--network", one), start("--network", two)
    assert docker.sh(first, f"ping -c 1 -W 2 {address(docker, second, two)}").rc != 0
    assert docker.sh(first, "ping -c 1 -W 10 10.70.1.1").rc == 0


def test_network_of_another_container(docker: Docker, start: Start) -> None:
    """--network container:NAME shares its interfaces, or is refused by name; never a network of its own silently."""
    name = start()
    result = docker(
        "run", "--rm", "--label", "test=this", "--network", f"container:{name}", IMAGE, "sh", "-c",
        "cat /sys/class/net/eth0/address",
    )  # fmt: skip
    if result.rc == 0:
        assert result.out == address(docker, name, "bridge", "MacAddress")
    else:
        assert docker.runtime.is_vm and "network" in result.stderr, result
    assert docker.sh(name, "ping -c 1 -W 10 172.17.0.1").rc == 0, "the first container lost its network"


def test_inspect_tells_the_truth(docker: Docker, start: Start) -> None:
    """What inspect says is what is inside: address, prefix, gateway, MAC."""
    name = start()
    told = docker.inspect(name)["NetworkSettings"]
    inside = json.dumps(docker.sh(name, "ip -o addr show eth0; ip route; cat /sys/class/net/eth0/address").ok().stdout)
    for value in (f"{told['IPAddress']}/{told['IPPrefixLen']}", f"default via {told['Gateway']}", told["MacAddress"]):
        assert value in inside, f"{value} is not in {inside}"
