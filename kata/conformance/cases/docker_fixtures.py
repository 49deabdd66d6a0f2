"""Containers that docker's cases share: each is started once per subject, by the first case that asks for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from kata.conformance.case import Skip
from kata.conformance.engines import host
from kata.conformance.engines.docker import IMAGE, Docker, DockerRuntime
from kata.conformance.engines.host import SLEEP
from kata.conformance.engines.sections import cgroup, script, sections, status
from kata.conformance.shared import shared

T = TypeVar("T")

#: Shell: a web server whose answer is the host name.
SERVE = "mkdir -p /www; hostname > /www/name; httpd -p 80 -h /www;"
MEMORY = cgroup("memory/memory.limit_in_bytes", "memory.max")
CPU = cgroup("cpu/cpu.cfs_quota_us", "cpu.max")
PIDS = cgroup("pids/pids.max", "pids.max")


def fetch(address: str, port: int = 80, path: str = "/name") -> str:
    """Shell: get a page over HTTP and print its body."""
    return (f"printf 'GET {path} HTTP/1.0\\r\\n\\r\\n' | nc -w 10 {address} {port} | sed '1,/^\\r$/d'")


def needs_all_capabilities(said: str) -> None:
    """Skip a case that failed because this host has not all capabilities to give.

    :param said: the error.
    :raise Skip: that is why.
    """
    if "operation not permitted" in said.lower() and "cap" in said:
        raise Skip("this machine has not all capabilities to give to a privileged container")


def until(command: str) -> str:
    """Shell: try until a command succeeds, for 20 s."""
    return f"i=0; until {command}; do i=$((i+1)); test $i -lt 100 || break; usleep 200000; done"


PLAIN = script(
    identity="id -u; id -g; id -G; pwd",
    capabilities=f"{status('CapEff')}; {status('CapPrm')}; {status('CapBnd')}; {status('CapAmb')}",
    seccomp=status("Seccomp"), nnp=status("NoNewPrivs"),
    env="echo $IMAGE_WORD $HOME; test $HOSTNAME = $(hostname) && echo same",
    first="echo $$",
    names="test $(hostname) = $(cat /etc/hostname) && grep -c $(hostname) /etc/hosts; hostname | wc -c",
    files='for f in hosts hostname resolv.conf; do grep -c " /etc/$f " /proc/self/mountinfo; done',
    shm="df -k /dev/shm | awk 'END { print $2 }'; stat -c %a /dev/shm",
    masked="for f in kcore timer_list keys; do head -c 1 /proc/$f 2>/dev/null | wc -c; done; "
    " ls /proc/scsi 2>/dev/null | wc -l; ls /sys/firmware | wc -l",
    readonly="(echo 0 > /proc/sys/kernel/panic) 2>&1 | grep -o 'Read-only file system';"
    " grep -o ' /sys r[ow]' /proc/self/mountinfo;"
    " d=/sys/fs/cgroup; test -d $d/pids && d=$d/pids; mkdir $d/x 2>/dev/null && echo made || echo refused",
    mount="mount -t tmpfs x /mnt 2>/dev/null && echo mounted || echo refused;"
    " unshare -m true 2>/dev/null && echo unshared || echo refused",
    devices="ls /dev | grep -v core | sort | tr '\\n' ' '; for d in null zero full random urandom tty; do"
    " stat -c '%n %F %a %t,%T' /dev/$d; done",
    mknod="mknod /tmp/disk b 8 0 2>/dev/null; head -c 1 /tmp/disk > /dev/null 2>&1 && echo read || echo refused",
    root="touch /x && stat -c '%u %a' /x; stat -c '%a %n' / /tmp /root /home/user; ls /home",
    tmp="touch /tmp/t && ls /tmp/t",
    links="ls /sys/class/net | sort | tr '\\n' ' '; cat /sys/class/net/eth0/mtu",
    mac="cat /sys/class/net/eth0/address",
    address="ip -o -4 addr show eth0 | awk '{ print $4 }'", route="ip route | awk '/^default/ { print $3, $5 }'",
    gateway="ping -c 1 -W 10 $(ip route | awk '/^default/ { print $3 }') | grep -o '1 packets received'",
    loopback="ping -c 1 127.0.0.1 | grep -o '1 packets received'; ip -o addr show lo | grep -o '127.0.0.1/8'",
    resolver="grep -c . /etc/resolv.conf",
    namespaces="for n in pid mnt net ipc uts; do readlink /proc/self/ns/$n | cut -d: -f1; done",
    processes="ls /proc | grep -c '^[0-9]*$'",
    oom="cat /proc/self/oom_score_adj", kernel="cat /proc/sys/kernel/random/boot_id", arch="uname -m; uname -s",
    stdin="read x; echo $?", tty="test -t 0 || echo no; test -t 1 || echo no",
)
DRESSED = script(
    user="id -u; id -g; id -G | tr ' ' '\\n' | sort -n | tr '\\n' ' '", cwd="pwd", env="echo $A / $B / $IMAGE_WORD",
    hostname="hostname; cut -d. -f1 /etc/hostname", domain="cat /proc/sys/kernel/domainname",
    hosts="grep -E 'friend|six' /etc/hosts | tr -s '\\t ' ' '", resolver="grep -v '^#' /etc/resolv.conf",
    ulimits="ulimit -Sn; ulimit -Hn; ulimit -Sc",
    sysctls="cat /proc/sys/net/core/somaxconn /proc/sys/net/ipv4/ip_unprivileged_port_start",
    tmpfs="stat -c %a /t; df -k /t | awk 'END { print $2 }'; touch /t/x && ls /t",
    tmpflags="grep ' /t ' /proc/self/mountinfo | cut -d' ' -f6 | tr ',' '\\n' | grep -E 'noexec|nosuid|nodev' | sort",
    mounted="df -k /tm | awk 'END { print $2 }'; stat -c %a /tm; stat -f -c %T /tm",
    shm="df -k /dev/shm | awk 'END { print $2 }'",
    readonly="touch /x 2>&1 | grep -o 'Read-only file system'; touch /t/y && echo ok",
    nnp=status("NoNewPrivs"), bounding=status("CapBnd"), effective=status("CapEff"),
    oom="cat /proc/self/oom_score_adj", pids=PIDS, memory=MEMORY, cpu=CPU,
    cpuset="nproc; grep Cpus_allowed_list /proc/self/status | cut -f2",
    init="tr '\\0' '\\n' < /proc/1/cmdline | head -n 1 | xargs basename; test $$ = 1 || echo child",
    orphans="sh -c '(usleep 100000; exit 3) & exit'; usleep 500000; grep -l '^State:.Z' /proc/[0-9]*/status | wc -l",
    labels="env | grep -c '^kind='",
)
OPTIONS = (
    "--user", "1000:100", "--group-add", "44", "--group-add", "audio", "--workdir", "/made/here",
    "-e", "A=1", "-e", "B=two words", "--hostname", "named", "--domainname", "example.org",
    "--add-host", "friend:10.9.8.7", "--add-host", "six:fd00::6", "--dns", "10.1.1.1", "--dns-search", "lan.test",
    "--dns-option", "ndots:3", "--ulimit", "nofile=500:600", "--ulimit", "core=0",
    "--sysctl", "net.core.somaxconn=999", "--sysctl", "net.ipv4.ip_unprivileged_port_start=80",
    "--tmpfs", "/t:size=1m,mode=1777", "--mount", "type=tmpfs,dst=/tm,tmpfs-size=1m,tmpfs-mode=700",
    "--shm-size", "8m", "--read-only",
    "--security-opt", "no-new-privileges", "--cap-drop", "ALL", "--cap-add", "NET_ADMIN", "--cap-add", "SYS_TIME",
    "--oom-score-adj", "123", "--pids-limit", "77", "--memory", "128m", "--memory-swap", "128m", "--cpus", "0.5",
    "--cpuset-cpus", "0", "--init", "--label", "dressed=yes", "--network", "none",
)  # fmt: skip


class DockerSubject(DockerRuntime):
    """One subject under docker, with the containers that its cases share."""

    def __init__(self, docker: Docker, runtime: str, number: int) -> None:
        """:param number: tells the subjects of a run apart, in subnets and ports."""
        super().__init__(docker, runtime)
        self.number = number

    def shared(self, key: str, make: Callable[[], T]) -> T:
        """What ``make`` returned the first time; if it failed then, the same error again."""
        return shared(self, key, make)

    # --- a plain container, with what it found -------------------------------

    @property
    def box(self) -> str:
        """A running container with docker's defaults."""
        return self.shared("box", lambda: self.start(
            f"{PLAIN}\necho '@@end'; echo to stderr >&2; {SLEEP}", "--mac-address", self.mac,
            name=f"box-{self.runtime}"))

    @property
    def mac(self) -> str:
        return f"02:42:ac:11:77:{self.number:02x}"

    @property
    def plain(self) -> dict[str, str]:
        """What the box found when it started."""
        return self.shared("plain", lambda: sections(self.logged(self.box, "@@end").replace("to stderr\n", "")))

    # --- one with every option -------------------------------------------------

    @property
    def dressed_box(self) -> str:
        return self.shared("dressed box", lambda: self.start(
            f"{DRESSED}\necho '@@end'; {SLEEP}", *OPTIONS, name=f"dressed-{self.runtime}"))

    @property
    def dressed(self) -> dict[str, str]:
        """What a container with :data:`OPTIONS` found when it started."""
        return self.shared("dressed", lambda: sections(self.logged(self.dressed_box, "@@end")))

    # --- volumes -----------------------------------------------------------------

    @cached_property
    def folder(self) -> Path:
        """A folder of the host that :attr:`storage_box` has."""
        folder = self.docker.data / f"shared {self.runtime}"
        folder.mkdir()
        (folder / "file").write_text("host\n")
        host.run(["chown", "1000:100", str(folder / "file")]).ok()
        return folder

    @property
    def storage_box(self) -> str:
        """A container with a mount of every kind."""
        f = self.folder
        return self.shared("storage", lambda: self.start(
            SLEEP, "-v", f"{f}:/rw", "-v", f"{f}:/ro:ro", "-v", f"{f}/file:/etc/single:ro",
            "--mount", f"type=bind,src={f},dst=/mnt/deep/er",
            "-v", f"named-{self.runtime}:/home", "-v", "/anonymous", "--device", "/dev/zero:/dev/mine:r",
            name=f"storage-{self.runtime}",
        ))  # fmt: skip

    # --- networks --------------------------------------------------------------------

    @property
    def port(self) -> int:
        """A port of docker's host that is published to :attr:`server`."""
        return 18080 + self.number

    def network(self, key: str, block: int, *options: str) -> str:
        """A network of the subject's own, 10.``block``.N.0/24."""
        name = f"{key}-{self.runtime}"
        return self.shared(name, lambda: (
            self("network", "create", "--subnet", f"10.{block}.{self.number}.0/24", *options, name).ok(), name)[1])

    @property
    def server(self) -> str:
        """A web server on a network of its own, with a fixed address, an alias and published ports."""
        net = self.network("net", 66, "--opt", "com.docker.network.driver.mtu=1400")
        return self.shared("server", lambda: self.start(
            f"{SERVE} echo up; {SLEEP}", "--network", net, "--ipc", "shareable",
            "--network-alias", "friend", "--ip", f"10.66.{self.number}.50", "-p", f"{self.port}:80",
            "-p", "127.0.0.1::80", "--hostname", "served", name=f"server-{self.runtime}",
        ))  # fmt: skip

    @property
    def peer(self) -> str:
        """A second container on the server's network and on another."""

        def make() -> str:
            name = f"peer-{self.runtime}"
            net, other = self.network("net", 66), self.network("other", 67)
            self("create", "--runtime", self.entry, "--name", name, "--network", net, IMAGE, "sh", "-c",
                 f"{SERVE} {SLEEP}").ok()
            self("network", "connect", "--ip", f"10.67.{self.number}.99", other, name).ok()
            self("start", name).ok()
            self.logged(self.server, "up")
            return name

        return self.shared("peer", make)

    def host(self, script: str) -> str:
        """A shell script on the network of docker's host; what it printed."""
        return host.run(self.docker.netns.argv("busybox", "sh", "-c", script)).out
