"""Networks of docker: bridge, published ports, networks of one's own, names, none, host, joined namespaces."""

from __future__ import annotations

from functools import partial

from kata.conformance.case import Seen, case
from kata.conformance.cases.docker_fixtures import DockerSubject, fetch, until
from kata.conformance.engines.docker import IMAGE

docker = partial(case, "docker")

REACHED = "1 packets received"


@docker("bridge-interface", "one interface beside the loopback, with docker's address, MAC, MTU and route",
        links="eth0 lo 1500", address=True, mac=True, route="eth0")
def interface(d: DockerSubject) -> Seen:
    found = d.plain
    return {"links": " ".join(found["links"].split()), "route": found["route"].split()[-1],
            "address": found["address"].startswith("172.17.") and found["address"].endswith("/16"),
            "mac": found["mac"] == d.mac}


@docker("bridge-gateway", "the gateway answers", gateway=REACHED)
def gateway(d: DockerSubject) -> Seen:
    return {"gateway": d.plain["gateway"]}


@docker("loopback", "the loopback is up", loopback=f"{REACHED}\n127.0.0.1/8")
def loopback(d: DockerSubject) -> Seen:
    return {"loopback": d.plain["loopback"]}


@docker("network-none", "--network none: the loopback alone", links="lo", loopback=REACHED)
def none(d: DockerSubject) -> Seen:
    got = d.once("ls /sys/class/net; ping -c 1 127.0.0.1 | grep -o '1 packets received'", "--network", "none").ok()
    links, _, reached = got.out.partition("\n")
    return {"links": links, "loopback": reached}


@docker("network-host", "--network host gives the host's interfaces, or is refused by name", result="the host's")
def host_network(d: DockerSubject) -> Seen:
    got = d.once("ls /sys/class/net", "--network", "host")
    if got.code == 0:
        return {"result": "the host's" if "docker0" in got.out.split() else f"silently others: {got.out}"}
    named = "network" in got.stderr and "host" in got.stderr
    return {"result": "refused by name" if named else f"failed without a reason: {got.stderr}"}


@docker("publish-port", "-p: reached from the host by its addresses, at a fixed and at a free port", fixed="served",
        local="served", free="served", told=True)
def publish(d: DockerSubject) -> Seen:
    d.logged(d.server, "up")
    bridge = f"10.66.{d.number}.1"
    ports = d.inspect(d.server)["NetworkSettings"]["Ports"]["80/tcp"]
    free = next(int(p["HostPort"]) for p in ports if int(p["HostPort"]) != d.port)
    return {"fixed": d.host(fetch(bridge, d.port)), "local": d.host(fetch("127.0.0.1", d.port)),
            "free": d.host(fetch("127.0.0.1", free)),
            "told": f":{d.port}" in d("port", d.server, "80/tcp").ok().out}


@docker("network-address", "--ip and the network's MTU, subnet and gateway hold inside", address=True, mtu="1400",
        route=True)
def address(d: DockerSubject) -> Seen:
    got = d.sh(d.server, "ip -o -4 addr show eth0 | awk '{ print $4 }'; cat /sys/class/net/eth0/mtu;"
               " ip route | awk '/^default/ { print $3 }'").ok().out.split()
    return {"address": got[0] == f"10.66.{d.number}.50/24", "mtu": got[1], "route": got[2] == f"10.66.{d.number}.1"}


@docker("network-names", "on a network of one's own names and aliases are found, through 127.0.0.11, both ways",
        resolver="nameserver 127.0.0.11", name=True, alias="served", absent=True, back=True)
def names(d: DockerSubject) -> Seen:
    server, peer = d.server, d.peer
    got = d.sh(peer, f"grep nameserver /etc/resolv.conf; nslookup {server} 127.0.0.11 | grep -c '10.66.{d.number}.50';"
               f" {fetch('friend')}; nslookup no-such-name 127.0.0.11 > /dev/null 2>&1; echo $?").out.splitlines()
    back = d.sh(server, fetch(peer)).out
    return {"resolver": got[0], "name": got[1] != "0", "alias": got[2], "absent": got[3] != "0",
            "back": bool(back) and d.inspect(peer)["Id"].startswith(back)}


@docker("network-several", "a container made with two networks has both, with address and MAC; one default route",
        both=True, gateways=f"{REACHED}\n{REACHED}", routes="1")
def several(d: DockerSubject) -> Seen:
    nets = d.inspect(d.peer)["NetworkSettings"]["Networks"]
    inside = d.sh(d.peer, "for i in /sys/class/net/eth*; do echo $(cat $i/address)"
                  " $(ip -o -4 addr show $(basename $i) | awk '{ print $4 }'); done").ok().out.splitlines()
    told = sorted(f"{n['MacAddress']} {n['IPAddress']}/{n['IPPrefixLen']}" for n in nets.values())
    pings = d.sh(d.peer, f"for g in 10.66.{d.number}.1 10.67.{d.number}.1; do ping -c 1 -W 10 $g |"
                 " grep -o '1 packets received'; done; ip route | grep -c ^default").out
    reached, _, routes = pings.rpartition("\n")
    return {"both": sorted(inside) == told, "gateways": reached, "routes": routes}


@docker("network-connect-running", "connect and disconnect while running: the interface comes, works, goes",
        came="here", mac=True, reached=REACHED, gone="gone", rest=REACHED)
def connect(d: DockerSubject) -> Seen:
    net = d.network("late", 68)
    ip = f"10.68.{d.number}.77"
    d("network", "connect", "--ip", ip, net, d.box).ok()
    came = d.sh(d.box, f"{until(f'ip -o addr | grep -q {ip}/24')}; ip -o addr | grep -q {ip}/24 && echo here").out
    mac = d.inspect(d.box)["NetworkSettings"]["Networks"][net]["MacAddress"]
    got = d.sh(d.box, f"cat /sys/class/net/*/address; ping -c 1 -W 10 10.68.{d.number}.1 | grep -o '{REACHED}'").out
    d("network", "disconnect", net, d.box).ok()
    gone = d.sh(d.box, f"{until(f'! ip -o addr | grep -q {ip}')}; ip -o addr | grep -q {ip} || echo gone").out
    rest = d.sh(d.box, "ping -c 1 -W 10 172.17.0.1 | grep -o '1 packets received'").out
    return {"came": came, "mac": mac in got, "reached": got.splitlines()[-1], "gone": gone, "rest": rest}


@docker("network-isolation", "containers of two networks do not reach each other", reached="no", gateway=REACHED)
def isolation(d: DockerSubject) -> Seen:
    got = d.sh(d.box, f"ping -c 1 -W 2 10.66.{d.number}.50 > /dev/null 2>&1 && echo yes || echo no;"
               " ping -c 1 -W 10 172.17.0.1 | grep -o '1 packets received'").out
    assert d.server
    first, _, second = got.partition("\n")
    return {"reached": first, "gateway": second}


def _join(d: DockerSubject, option: str, script: str) -> tuple[int, str, str]:
    """Run a script in a container that joins a namespace of the server: exit code, output, errors."""
    got = d("run", "--rm", "--runtime", d.entry, option, f"container:{d.server}", IMAGE, "sh", "-c", script)
    return got.code, got.out, got.stderr


@docker("join-network", "--network container:NAME shares its interfaces and its loopback, or is refused by name",
        result="shared")
def join_network(d: DockerSubject) -> Seen:
    d.logged(d.server, "up")
    mac = d.inspect(d.server)["NetworkSettings"]["Networks"][d.network("net", 66)]["MacAddress"]
    code, out, err = _join(d, "--network", f"cat /sys/class/net/eth0/address; {fetch('127.0.0.1')}")
    if code:
        return {"result": "refused by name" if "network" in err else f"failed without a reason: {err}"}
    return {"result": "shared" if out.split() == [mac, "served"] else f"silently others: {out}"}


@docker("join-pid", "--pid container:NAME sees its processes, or is refused by name", result="shared")
def join_pid(d: DockerSubject) -> Seen:
    code, out, err = _join(d, "--pid", "tr '\\0' ' ' < /proc/1/cmdline | grep -c httpd; echo $$")
    if code:
        return {"result": "refused by name" if "pid" in err else f"failed without a reason: {err}"}
    seen, _, own = out.partition("\n")
    return {"result": "shared" if seen == "1" and own != "1" else f"silently others: {out}"}


@docker("join-ipc", "--ipc container:NAME shares /dev/shm, or is refused by name", result="shared")
def join_ipc(d: DockerSubject) -> Seen:
    assert d.server
    code, out, err = _join(d, "--ipc", "echo here > /dev/shm/joined")
    if code:
        return {"result": "refused by name" if "ipc" in err else f"failed without a reason: {err}"}
    found = d.sh(d.server, "cat /dev/shm/joined").out
    return {"result": "shared" if found == "here" else f"silently others: {out}"}
