"""config.json's `linux`: namespaces, user mappings, sysctl, seccomp, cgroups; and host and domain name."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kata.conformance.case import Seen
from kata.conformance.cases.look import Look, attempt, oci
from kata.conformance.engines import host
from kata.conformance.engines.oci import Container, OciRuntime
from kata.conformance.engines.sections import cgroup, script, sections, status

MIB = 1 << 20

# --- namespaces -----------------------------------------------------------------

OWN = Look("namespaces", {
    "pids": "ls /proc | grep -c '^[0-9]*$' | awk '{ print ($1 < 8) }'; tr '\\0' ' ' < /proc/1/cmdline | head -c 7",
    "net": "ls /sys/class/net | tr '\\n' ' '; ip -o addr show lo | awk '{ print $4 }' | head -n 1",
    "routes": "ip route | wc -l", "loopback": "ping -c 1 -W 5 127.0.0.1 | grep -o '1 packets received'",
    "hostname": "hostname; cat /proc/sys/kernel/hostname",
    "kinds": "for n in pid mnt net ipc uts; do readlink /proc/self/ns/$n | cut -d: -f1; done | tr '\\n' ' '",
    "ipc": "ipcs -q 2>/dev/null | grep -c '^0x'; ls /dev/mqueue | wc -l", "kill": attempt("kill -0 2"),
    "domain": "cat /proc/sys/kernel/domainname",
    "kernel": "cat /proc/sys/kernel/random/boot_id",
}, {"hostname": "my-name", "domainname": "example.org"})
OWN.case("linux-namespace-pid", "linux.namespaces: pids are the container's alone", pids="1\n/bin/sh")
OWN.case("linux-namespace-network", "linux.namespaces: a new network has a loopback interface that is up and no route",
         net="lo 127.0.0.1/8", routes="0", loopback="1 packets received")
OWN.case("linux-namespace-kinds", "linux.namespaces: each kind is there", kinds="pid mnt net ipc uts")
OWN.case("linux-namespace-ipc", "linux.namespaces: no queue of anybody else", ipc="0\n0")
OWN.case("domainname", "domainname (runtime-spec 1.1) reaches the kernel", domain="example.org")
OWN.case("hostname", "hostname, also as the kernel's sysctl", hostname="my-name\nmy-name")


@oci("linux-namespace-kernel", "which kernel the container has: the host's or its own")
def kernel(o: OciRuntime) -> Seen:
    own = OWN.seen(o)["kernel"] != Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return {"kernel": "its own" if own else "the host's"}


@contextmanager
def joined(o: OciRuntime) -> Iterator[tuple[str, str]]:
    """Two network namespaces with a link between them; the container gets the first."""
    tag = f"{o.tag[-8:]}{o.runtime[:6]}"
    inside, outside = f"{tag}i", f"{tag}o"
    try:
        for name in (inside, outside):
            host.run(["ip", "netns", "add", name]).ok()
        host.run(["nsenter", f"--net=/run/netns/{inside}", "--", "sh", "-ec", (
            "ip link set lo up; "
            f"ip link add eth7 address 02:42:0a:00:00:07 mtu 1400 type veth peer name out7 netns {outside}; "
            "ip link set eth7 up; ip addr add 10.77.0.2/24 dev eth7; ip -6 addr add fd77::2/64 dev eth7 nodad; "
            f"ip -n {outside} addr add 10.77.0.1/24 dev out7; ip -n {outside} link set out7 up; "
            f"ip -n {outside} -6 addr add fd77::1/64 dev out7 nodad; "
            "ip route add default via 10.77.0.1; ip route add 10.88.0.0/16 via 10.77.0.9 dev eth7")]).ok()
        yield inside, outside
    finally:
        for name in (inside, outside):
            host.run(["ip", "netns", "delete", name])


def _in_network(config: dict[str, Any], path: str) -> None:
    next(n for n in config["linux"]["namespaces"] if n["type"] == "network")["path"] = path


def _network(o: OciRuntime) -> dict[str, str]:
    def make() -> dict[str, str]:
        with joined(o) as (inside, _outside):
            seen = dict(Look("joined network", {
                "link": "cat /sys/class/net/eth7/address /sys/class/net/eth7/mtu",
                "addresses": "ip -o -4 addr show eth7 | awk '{ print $4 }';"
                             " ip -o -6 addr show eth7 | grep -o 'fd77::2/64'",
                "routes": "ip route | awk '/^default/ { print $3, $5 }';"
                          " ip route | grep -c '10.88.0.0/16 via 10.77.0.9'",
                "ping": "ping -c 1 -W 10 10.77.0.1 | grep -o '1 packets received'",
                "ping6": "ping -c 1 -W 10 fd77::1 | grep -o '1 packets received'",
                "large": "ping -c 1 -W 10 -s 1300 10.77.0.1 | grep -o '1 packets received'",
            }, lambda config: _in_network(config, f"/run/netns/{inside}")).seen(o))  # fmt: skip
            links = host.run(["ip", "-n", inside, "-o", "link"]).ok().stdout
            seen["left"] = " ".join(sorted(line.split()[1].partition("@")[0].strip(":") for line in links.splitlines()))
            return seen

    found: dict[str, str] = o.shared("joined", make)
    return found


@oci("linux-network-joined", "a network namespace by path: its interfaces with MAC and MTU, addresses and routes",
     link="02:42:0a:00:00:07\n1400", addresses="10.77.0.2/24\nfd77::2/64", routes="10.77.0.1 eth7\n1")
def network_joined(o: OciRuntime) -> Seen:
    return {key: _network(o)[key] for key in ("link", "addresses", "routes")}


@oci("linux-network-works", "a joined network carries packets of both families, also large ones",
     ping="1 packets received", ping6="1 packets received", large="1 packets received")
def network_works(o: OciRuntime) -> Seen:
    return {key: _network(o)[key] for key in ("ping", "ping6", "large")}


@oci("linux-network-left", "a joined network is left as it was found", left="eth7 lo")
def network_left(o: OciRuntime) -> Seen:
    return {"left": _network(o)["left"]}


@oci("linux-network-host", "the host's network namespace: shared, or refused by name", silent=False)
def network_host(o: OciRuntime) -> Seen:
    def change(config: dict[str, Any]) -> None:
        config["linux"]["namespaces"] = [n for n in config["linux"]["namespaces"] if n["type"] != "network"]
        config["mounts"] = [m for m in config["mounts"] if m["destination"] != "/sys"]

    done = o.run("readlink /proc/self/ns/net", change)
    shared = done.code == 0 and done.out == os.readlink("/proc/self/ns/net")
    refused = done.code != 0 and "network" in done.stderr
    return {"how": "shared" if shared else "refused" if refused else done.all[-200:], "silent": not (shared or refused)}


@oci("linux-namespace-path-wrong", "a path that is no namespace is refused", codes=[True, True], left=0)
def namespace_path_wrong(o: OciRuntime) -> Seen:
    before = len(o("list", "-q").out.split())
    done = [o.run("true", lambda config, path=path: _in_network(config, path))  # type: ignore[misc]
            for path in ("/run/netns/no-such-namespace", "/etc/passwd")]
    return {"codes": [d.code != 0 for d in done], "left": len(o("list", "-q").out.split()) - before}


def _user_namespace(o: OciRuntime) -> dict[str, str]:
    base = 200000

    def change(config: dict[str, Any]) -> None:
        config["linux"]["namespaces"].append({"type": "user"})
        config["linux"]["uidMappings"] = config["linux"]["gidMappings"] = [
            {"containerID": 0, "hostID": base, "size": 65536}]
        del config["mounts"][-1]  # a mapped root cannot mount cgroups of version 1

    def prepare(root: Path) -> None:
        for top, folders, files in os.walk(root):
            for name in (*folders, *files):
                os.lchown(os.path.join(top, name), base, base)
        os.chown(root, base, base)
        (root / "etc/foreign").write_text("")
        (root / "etc/secret").write_text("host root only")
        (root / "etc/secret").chmod(0o600)
        for path in (o.folder.parent.parent, o.folder.parent, o.folder, o.root):  # the mapped root passes through
            if path.exists():
                path.chmod(path.stat().st_mode | 0o011)

    return Look("user namespace", {
        "map": "awk '{ print $1, $2, $3 }' /proc/self/uid_map /proc/self/gid_map", "id": "id -u; id -g",
        "own": "touch /new; stat -c '%u %g' /new /bin/busybox", "foreign": "stat -c '%u' /etc/foreign",
        "secret": attempt("cat /etc/secret", "read"), "chown": attempt("chown 5:5 /new") + "; stat -c %u /new",
        "sets": status("CapEff"),
    }, change, prepare).seen(o)  # fmt: skip


@oci("linux-user-namespace", "linux.uidMappings and gidMappings: root inside is somebody else on the files",
     map="0 200000 65536\n0 200000 65536", id="0\n0", own="0 0\n0 0", chown="done\n5")
def user_namespace(o: OciRuntime) -> Seen:
    return {key: _user_namespace(o)[key] for key in ("map", "id", "own", "chown")}


@oci("linux-user-namespace-foreign", "files of users that are not mapped belong to nobody and stay closed",
     foreign="65534", secret="refused")
def user_namespace_foreign(o: OciRuntime) -> Seen:
    return {key: _user_namespace(o)[key] for key in ("foreign", "secret")}


# --- sysctl -----------------------------------------------------------------------


@oci("linux-sysctl", "linux.sysctl of the network and ipc namespaces", values="777 1 9999 0 1000")
def sysctl(o: OciRuntime) -> Seen:
    wanted = {"net.core.somaxconn": "777", "net.ipv4.ip_forward": "1", "kernel.msgmax": "9999",
              "net.ipv4.ping_group_range": "0 1000"}
    files = " ".join(f"/proc/sys/{key.replace('.', '/')}" for key in wanted)
    return {"values": " ".join(o.run(f"cat {files}", {"linux": {"sysctl": wanted}}).ok().out.split())}


@oci("linux-sysctl-unknown", "a sysctl that there is not is refused, by name", refused=[True, True], named=[True, True])
def sysctl_unknown(o: OciRuntime) -> Seen:
    done = [o.run("true", {"linux": {"sysctl": {key: "1"}}}) for key in ("no.such.key", "net.no_such")]
    return {"refused": [d.code != 0 for d in done],
            "named": [word in d.stderr for d, word in zip(done, ("key", "no_such"), strict=True)]}


# --- seccomp ----------------------------------------------------------------------

ERRNO: dict[str, Any] = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
    "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"},
        {"names": ["sethostname"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
        {"names": ["chmod", "fchmod", "fchmodat"], "action": "SCMP_ACT_KILL_PROCESS"},
        {"names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 1, "value": 12, "op": "SCMP_CMP_EQ"}]},
    ],
}  # fmt: skip
FILTERED = {
    "mode": status("Seccomp"), "mkdir": "mkdir /tmp/d 2>&1 | grep -o 'not permitted'",
    "hostname": "hostname x 2>&1 | grep -o 'not implemented'",
    "kill": f"{attempt('kill -URG $$')}; {attempt('kill -12 $$')}",
    "chmod": "sh -c 'chmod 600 /etc/passwd' 2>/dev/null; echo $? | tail -n 1",
}
WITH_ADMIN = {"capabilities": {s: ["CAP_SYS_ADMIN", "CAP_FOWNER", "CAP_KILL"]
                               for s in ("bounding", "effective", "permitted")}}
SECCOMP = Look("seccomp", FILTERED, {"process": WITH_ADMIN, "linux": {"seccomp": ERRNO}})
SECCOMP.case("linux-seccomp-errno", "linux.seccomp: SCMP_ACT_ERRNO with EPERM, and with the errno given", mode="2",
             mkdir="not permitted", hostname="not implemented")
SECCOMP.case("linux-seccomp-arguments", "linux.seccomp: arguments are compared", kill="done\nrefused")
SECCOMP.case("linux-seccomp-kill", "linux.seccomp: SCMP_ACT_KILL_PROCESS ends the process by SIGSYS", chmod="159")


@oci("linux-seccomp-exec", "linux.seccomp holds for exec, too", mode="2", mkdir="not permitted")
def seccomp_exec(o: OciRuntime) -> Seen:
    with o.running(changes={"linux": {"seccomp": ERRNO}}) as c:
        return sections(c.sh(script(**{k: FILTERED[k] for k in ("mode", "mkdir")})).ok().stdout)


ALLOWED = (
    "access arch_prctl brk capget capset chdir clone clone3 close close_range dup dup2 dup3 epoll_create1 epoll_ctl"
    " epoll_pwait execve execveat exit exit_group faccessat faccessat2 fchdir fcntl fork fstat fstatfs futex getcwd"
    " getdents64 getegid geteuid getgid getpeername getpgrp getpid getppid getrandom getsockname gettid getuid ioctl"
    " kill lseek lstat madvise mmap mprotect mremap munmap nanosleep newfstatat open openat openat2 pipe pipe2 poll"
    " prctl pread64 prlimit64 read readlink readlinkat rseq rt_sigaction rt_sigprocmask rt_sigreturn rt_sigsuspend"
    " sched_getaffinity sched_yield sendfile set_robust_list set_tid_address setgid setgroups setpgid setresgid"
    " setresuid setsid setuid sigaltstack stat statfs statx tgkill umask uname vfork wait4 write writev"
).split()


@oci("linux-seccomp-allow-list", "linux.seccomp: what a list of allowed calls lacks is refused, with noNewPrivileges"
     " and without", outputs=["Linux\nrefused"] * 2)
def seccomp_allow_list(o: OciRuntime) -> Seen:
    profile = {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "architectures": ["SCMP_ARCH_X86_64"],
               "syscalls": [{"names": [*ALLOWED, "from_the_future"], "action": "SCMP_ACT_ALLOW"}]}
    return {"outputs": [o.run(f"uname -s; {attempt('mkdir /tmp/d')}", {
        "process": {"noNewPrivileges": nnp}, "linux": {"seccomp": profile}}).ok().out for nnp in (True, False)]}


# --- cgroups -------------------------------------------------------------------------

LIMITS = {
    "memory": cgroup("memory/memory.limit_in_bytes", "memory.max"),
    "reservation": cgroup("memory/memory.soft_limit_in_bytes", "memory.low"),
    "pids": cgroup("pids/pids.max", "pids.max"), "cpus": cgroup("cpuset/cpuset.cpus", "cpuset.cpus"),
    "quota": "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu/cpu.cfs_period_us 2>/dev/null | tr '\\n' ' '"
             " | grep . || cat /sys/fs/cgroup/cpu.max",
    # Version 2 has weights, which OCI runtimes make of shares: 1 + (shares - 2) * 9999 / 262142.
    "shares": "cat /sys/fs/cgroup/cpu/cpu.shares 2>/dev/null || awk '{ print int(($1 - 1) * 262142 / 9999) + 2 }'"
              " /sys/fs/cgroup/cpu.weight",
}
RESOURCES = {"memory": {"limit": 128 * MIB, "reservation": 64 * MIB},
             "cpu": {"shares": 512, "quota": 50000, "period": 100000, "cpus": "0"}, "pids": {"limit": 50}}
WANTED = {"memory": str(128 * MIB), "reservation": str(64 * MIB), "pids": "50", "cpus": "0", "quota": "50000 100000"}


def limits(c: Container) -> dict[str, Any]:
    """The limits of a container's own cgroup, as it sees them."""
    got: dict[str, Any] = sections(c.sh(script(**LIMITS)).ok().stdout)
    got["shares"] = round(int(got["shares"]) / 64) * 64  # a weight is coarser than shares
    got["quota"] = "none" if got["quota"][:2] in ("-1", "ma") else got["quota"]
    return got


def _limited(o: OciRuntime) -> Container:
    """A running container with limits."""
    def make() -> Container:
        return o.keep(o.running(changes={"linux": {"resources": RESOURCES}}))

    made: Container = o.shared("limited", make)
    return made


def _start(o: OciRuntime) -> dict[str, Any]:
    """Its limits before anybody changes them."""
    found: dict[str, Any] = o.shared("limits", lambda: limits(_limited(o)))
    return found


def _updated(o: OciRuntime) -> Mapping[str, Mapping[str, Any]]:
    """Its limits after updates of each kind."""
    def make() -> dict[str, dict[str, Any]]:
        found = {}
        _start(o)
        c = _limited(o)
        o("update", "--memory", str(160 * MIB), "--memory-reservation", str(80 * MIB), "--cpu-quota", "80000",
          "--cpu-period", "200000", "--cpu-share", "256", "--pids-limit", "60", c.id).ok()
        found["options"] = limits(c)
        text = json.dumps({"memory": {"limit": 96 * MIB}, "cpu": {"quota": -1}, "pids": {"limit": 70}})
        o("update", "--resources", "-", c.id, input=text).ok()
        found["file"] = limits(c)
        wrong = (["--memory", "many"], ["--cpu-quota", "x"], ["--resources", "/nosuch"], ["--pids-limit", "1.5"])
        found["refused"] = {" ".join(bad): o("update", *bad, c.id).code != 0 for bad in wrong}
        found["after"] = limits(c)
        return found

    found: Mapping[str, Mapping[str, Any]] = o.shared("updates", make)
    return found


@oci("linux-resources-memory", "linux.resources.memory: limit and reservation", needs=("cgroup-memory",),
     limit=WANTED["memory"], reservation=WANTED["reservation"])
def resources_memory(o: OciRuntime) -> Seen:
    start = _start(o)
    return {"limit": start["memory"], "reservation": start["reservation"]}


@oci("linux-resources-cpu", "linux.resources.cpu: shares, quota, period and cpuset", needs=("cgroup-memory",),
     quota=WANTED["quota"], cpus="0", shares=512)
def resources_cpu(o: OciRuntime) -> Seen:
    start = _start(o)
    return {key: start[key] for key in ("quota", "cpus", "shares")}


@oci("linux-resources-pids", "linux.resources.pids", needs=("cgroup-memory",), pids="50")
def resources_pids(o: OciRuntime) -> Seen:
    return {"pids": _start(o)["pids"]}


@oci("update-options", "update by options changes a running container's limits", needs=("cgroup-memory",), limits={
    "memory": str(160 * MIB), "reservation": str(80 * MIB), "pids": "60", "cpus": "0", "quota": "80000 200000",
    "shares": 256})
def update_options(o: OciRuntime) -> Seen:
    return {"limits": _updated(o)["options"]}


@oci("update-resources", "update --resources: what it names changes, the rest stays", needs=("cgroup-memory",),
     memory=str(96 * MIB), pids="70", quota="none")
def update_resources(o: OciRuntime) -> Seen:
    return {key: _updated(o)["file"][key] for key in ("memory", "pids", "quota")}


@oci("update-refused", "update refuses what is no limit, and changes nothing", needs=("cgroup-memory",),
     refused=[True] * 4, memory=str(96 * MIB))
def update_refused(o: OciRuntime) -> Seen:
    return {"refused": list(_updated(o)["refused"].values()), "memory": _updated(o)["after"]["memory"]}


@oci("events-stats", "events --stats: numbers that are true of the container", needs=("cgroup-memory",),
     type="stats", own=True, cpu=True, memory=True, limit=True, pids=True)
def events_stats(o: OciRuntime) -> Seen:
    c = _limited(o)
    first = json.loads(o("events", "--stats", c.id).ok().stdout)
    c.sh("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done").ok()
    data, later = first["data"], json.loads(o("events", "--stats", c.id).ok().stdout)["data"]
    return {"type": first["type"], "own": first["id"] == c.id,
            "cpu": 0 < data["cpu"]["usage"]["total"] < later["cpu"]["usage"]["total"],
            "memory": 50_000 < data["memory"]["usage"]["usage"] <= 160 * MIB,
            "limit": data["memory"]["usage"]["limit"] in (96 * MIB, 128 * MIB), "pids": data["pids"]["current"] >= 1}


def _tight(o: OciRuntime) -> dict[str, object]:
    """What becomes of a process beyond the memory limit and of a fork bomb, one after the other."""
    # More than the limit, and less than the smallest machine has: one that is refused memory does not die.
    resources = {"memory": {"limit": 48 * MIB, "swap": 48 * MIB}, "pids": {"limit": 20}}

    def make() -> dict[str, object]:
        with o.running(changes={"linux": {"resources": resources}}) as c:
            found: dict[str, object] = {"code": c.sh("dd if=/dev/zero of=/dev/null bs=64M count=1").code}
            found["status"] = c.status
            bomb = "i=0; while [ $i -lt 40 ]; do sleep 300 >/dev/null 2>&1 & i=$((i+1)); done; echo forked all"
            # The last shell ends them all but the first process, for which it needs none more.
            found["all"] = "forked all" in c.sh(f"sh -c '{bomb}'; kill -KILL -1; true").stdout
            found["after"] = c.sh("echo alive").out
        return found

    found: dict[str, object] = o.shared("tight", make)
    return found


@oci("linux-memory-limit-holds", "a process beyond the memory limit dies by KILL, and the container lives",
     needs=("cgroup-memory",), code=137, status="running")
def memory_limit_holds(o: OciRuntime) -> Seen:
    return {key: _tight(o)[key] for key in ("code", "status")}


@oci("linux-pids-limit-holds", "a fork bomb meets the pids limit, and the container lives", needs=("cgroup-memory",),
     all=False, after="alive")
def pids_limit_holds(o: OciRuntime) -> Seen:
    return {key: _tight(o)[key] for key in ("all", "after")}


@oci("linux-cgroups-path", "linux.cgroupsPath: the container's process on the host is in it, and it goes with it",
     there=True, left=[])
def cgroups_path(o: OciRuntime) -> Seen:
    parent = f"{o.new_id()}-parent"
    with o.running(changes={"linux": {"cgroupsPath": f"/{parent}/inner"}}) as c:
        there = f"/{parent}/inner" in Path(f"/proc/{c.pid}/cgroup").read_text()
        c.end()
        c.delete().ok()
    left = [group for group in host.cgroups("inner") if parent in group]
    for group in reversed(host.cgroups(parent)):
        os.rmdir(group)
    return {"there": there, "left": left}


@oci("linux-resources-wrong", "limits that are none are refused", refused=[True] * 4)
def resources_wrong(o: OciRuntime) -> Seen:
    wrong: list[dict[str, Any]] = [{"memory": {"limit": "much"}}, {"cpu": {"cpus": "0-x"}}, {"pids": {"limit": "9"}},
                                   {"cpu": {"cpus": "999"}}]
    return {"refused": [o.run("true", {"linux": {"resources": r}}).code != 0 for r in wrong]}


@oci("linux-rdt", "linux.intelRdt where the machine has none: refused, not dropped in silence", refused=True)
def rdt(o: OciRuntime) -> Seen:
    return {"refused": o.run("true", {"linux": {"intelRdt": {"l3CacheSchema": "L3:0=f"}}}).code != 0}
