"""docker run: what a container finds, with every option that shapes it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable

import pytest

from harness.dockerd import IMAGE, Docker
from harness.proc import Result
from harness.text import compare, mask, script, sections, status

Once = Callable[..., Result]


def test_defaults(once: Once, docker: Docker) -> None:
    """A plain container: identity, capabilities, seccomp, mounts, environment, names."""
    checks = script(
        id="id -u; id -g; pwd",
        eff=status("CapEff"),
        bnd=status("CapBnd"),
        amb=status("CapAmb"),
        seccomp=status("Seccomp"),
        env="echo $IMAGE_WORD $HOSTNAME $HOME",
        pid="echo $$",
        hosts="cat /etc/hosts | grep $(hostname)",
        hostname="hostname; cat /etc/hostname",
        files='for f in hosts hostname resolv.conf; do grep -c " /etc/$f " /proc/self/mountinfo; done',
        shm="df -k /dev/shm | awk 'END { print $2 }'",
        sysro="echo x > /sys/kernel/mm/ksm/run 2>&1; mkdir /sys/fs/cgroup/x 2>&1",
        masked="head -c 1 /proc/kcore | wc -c; ls /proc/scsi 2>/dev/null | wc -l; cat /proc/timer_list | wc -c",
        unshare="unshare -m true 2>&1 || echo refused",
        mount="mount -t tmpfs x /mnt 2>&1 || echo refused",
        keyctl="cat /proc/keys | wc -c",
        devices="ls /dev | sort | tr '\\n' ' '",
        root="touch /x && ls /x",
    )
    got = sections(once(checks, "--name", "defaults").ok().stdout)
    compare(
        got,
        {
            "id": "0\n0\n/", "eff": "00000000a80425fb", "bnd": "00000000a80425fb", "amb": mask(0), "seccomp": "2",
            "env": lambda v: v.split()[0] == "image" and v.split()[2] == "/root",
            "pid": "1", "hosts": lambda v: v.startswith("172.17."),
            "hostname": lambda v: len(set(v.split())) == 1 and len(v.split()[0]) == 12,
            "files": "1\n1\n1", "shm": "65536",
            "masked": lambda v: [line for line in v.splitlines() if line.isdigit()] == ["0", "0", "0"],
            "unshare": lambda v: v.endswith("refused"), "mount": lambda v: v.endswith("refused"), "keyctl": "0",
            "sysro": lambda v: "Read-only" in v,
            "devices": lambda v: v.removeprefix("core ")
            == "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero",
            "root": "/x",
        },
    )  # fmt: skip


def test_many_options(once: Once) -> None:
    """Identity, limits, names, sysctls, tmpfs: many options of one container."""
    checks = script(
        id="id -u; id -g; id -G",
        cwd="pwd",
        env="echo $A $B",
        hostname="hostname; cat /etc/hostname; cat /proc/sys/kernel/domainname",
        hosts="grep -E 'friend|six' /etc/hosts",
        resolv="cat /etc/resolv.conf",
        ulimit="ulimit -Sn; ulimit -Hn; ulimit -Sc",
        sysctl="cat /proc/sys/net/core/somaxconn /proc/sys/net/ipv4/ip_unprivileged_port_start",
        tmpfs="stat -c %a /t; df -k /t | awk 'END { print $2 }'; touch /t/x && ls /t",
        shm="df -k /dev/shm | awk 'END { print $2 }'",
        readonly="touch /x 2>&1; touch /t/y && echo ok",
        nnp=status("NoNewPrivs"),
        caps=status("CapBnd"),
        oom="cat /proc/self/oom_score_adj",
        cgroup="cat /sys/fs/cgroup/pids/pids.max 2>/dev/null || cat /sys/fs/cgroup/pids.max",
        memory="cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max",
        cpu="cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null || cut -d' ' -f1 /sys/fs/cgroup/cpu.max",
        cpuset="cat /sys/fs/cgroup/cpuset/cpuset.cpus 2>/dev/null || cat /sys/fs/cgroup/cpuset.cpus",
        init="tr '\\0' ' ' < /proc/1/cmdline",
    )
    options = [
        "--user", "1000:100", "--group-add", "44", "--group-add", "audio", "--workdir", "/made/here",
        "-e", "A=1", "-e", "B=two words", "--hostname", "named", "--domainname", "example.org",
        "--add-host", "friend:10.9.8.7", "--add-host", "six:fd00::6", "--dns", "10.1.1.1", "--dns-search", "lan.test",
        "--dns-option", "ndots:3", "--ulimit", "nofile=500:600", "--ulimit", "core=0",
        "--sysctl", "net.core.somaxconn=999", "--sysctl", "net.ipv4.ip_unprivileged_port_start=80",
        "--tmpfs", "/t:size=1m,mode=1777", "--shm-size", "8m", "--read-only",
        "--security-opt", "no-new-privileges", "--cap-drop", "ALL", "--cap-add", "NET_ADMIN", "--cap-add", "SYS_TIME",
        "--oom-score-adj", "123", "--pids-limit", "77", "--memory", "128m", "--cpus", "0.5",
        "--cpuset-cpus", "0", "--init",
    ]  # fmt: skip
    got = sections(once(checks, *options).ok().stdout)
    compare(
        got,
        {
            "id": lambda v: v.split()[:3] == ["1000", "100", "100"] and set(v.split()[2:]) == {"100", "44", "29"},
            "cwd": "/made/here", "env": "1 two words", "hostname": lambda v: v.startswith("named\nnamed"),
            "hosts": lambda v: "10.9.8.7\tfriend" in v and "fd00::6\tsix" in v,
            "resolv": lambda v: "nameserver 10.1.1.1" in v and "search lan.test" in v and "options ndots:3" in v,
            "ulimit": "500\n600\n0", "sysctl": "999\n80", "tmpfs": "1777\n1024\nx", "shm": "8192",
            "readonly": lambda v: "Read-only" in v and v.endswith("ok"), "nnp": "1", "caps": mask(1 << 12 | 1 << 25),
            "oom": "123", "cgroup": "77", "memory": str(128 << 20), "cpu": "50000", "cpuset": "0",
            "init": lambda v: "docker-init" in v.split()[0],
        },
    )  # fmt: skip


@pytest.mark.vm_only
def test_domainname(once: Once) -> None:
    """--domainname reaches the kernel (docker passes it as a sysctl)."""
    assert once("cat /proc/sys/kernel/domainname", "--domainname", "example.org").ok().out == "example.org"


def test_exit_codes(once: Once, docker: Docker) -> None:
    """The process's own code; 127 and 126 when it cannot run, with the reason in docker's error."""
    for code in (0, 42, 255):
        assert once(f"exit {code}").rc == code
    missing = docker("run", "--rm", IMAGE, "/nosuch/program")
    assert missing.rc == 127 and "/nosuch/program" in missing.stderr and "no such file" in missing.stderr, missing
    denied = docker("run", "--rm", IMAGE, "/etc/passwd")
    assert denied.rc == 126 and "permission denied" in denied.stderr, denied
    assert docker("ps", "-aq", "--filter", "status=created").ok().out.count("\n") <= 1


def test_input_and_output(docker: Docker) -> None:
    """-i: input to its end through docker, its sum; stdout and stderr apart."""
    data = os.urandom(1 << 20).hex()
    result = docker(
        "run", "--rm", "-i", IMAGE, "sh", "-c", "sha256sum; echo errors >&2; exit 5", input=data, timeout=120
    )
    assert result.rc == 5
    assert result.stdout.split()[0] == hashlib.sha256(data.encode()).hexdigest()
    assert result.stderr == "errors\n"


def test_large_output(docker: Docker) -> None:
    """50 MB out of a container through containerd's shim and dockerd: every byte."""
    result = docker(
        "run", "--rm", "--log-driver", "none", IMAGE, "sh", "-c",
        "head -c 50000000 /dev/zero | tr '\\0' 'z'; echo end >&2", timeout=240,
    )  # fmt: skip
    assert result.rc == 0 and result.stderr == "end\n"
    assert len(result.stdout) == 50000000 and result.stdout.count("z") == 50000000


def test_init_reaps(once: Once) -> None:
    """--init: pid 1 is docker's, the command is its child, orphans are reaped, signals are passed on."""
    got = sections(
        once(
            script(
                first="tr '\\0' ' ' < /proc/1/cmdline", own="echo $$",
                orphans="sh -c '(sleep 0.2; exit 3) & exit' ; sleep 1; grep -l '^State:.Z' /proc/[0-9]*/status | wc -l",
            ), "--init",
        ).ok().stdout
    )  # fmt: skip
    compare(got, {"first": lambda v: "init" in v, "own": lambda v: v != "1", "orphans": "0"})


def test_default_seccomp_profile(once: Once) -> None:
    """docker's default profile filters for real: what it refuses is refused, and not without it."""
    probe = script(
        userns="unshare -U true 2>&1 && echo allowed || echo refused",
        keyctl="unshare -m true 2>&1 && echo allowed || echo refused",
        mode=status("Seccomp"),
    )
    filtered = sections(once(probe).ok().stdout)
    compare(filtered, {"userns": lambda v: v.endswith("refused"), "mode": "2"})
    options = ["--security-opt", "seccomp=unconfined"]
    free = sections(once(probe, *options).ok().stdout)
    compare(free, {"userns": "allowed", "keyctl": lambda v: v.endswith("refused"), "mode": "0"})
    admin = sections(once(probe, *options, "--cap-add", "SYS_ADMIN").ok().stdout)
    compare(admin, {"keyctl": "allowed"})


def test_own_seccomp_profile(once: Once, docker: Docker) -> None:
    """--security-opt seccomp=FILE: a user's own filter."""
    profile = docker.run_dir / "profile.json"
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    result = once("mkdir /tmp/d 2>&1 || echo refused", "--security-opt", f"seccomp={profile}").ok()
    assert result.out.endswith("refused"), result


@pytest.mark.control_cannot("--privileged asks for capabilities that this host does not have (CAP_SYS_RESOURCE)")
def test_privileged(once: Once) -> None:
    """--privileged: all capabilities, no filter, mounts and sysctls of its kernel."""
    got = sections(
        once(
            script(eff=status("CapEff"), seccomp=status("Seccomp"), mount="mount -t tmpfs x /mnt && echo ok",
                   sysctl="echo 1 > /proc/sys/net/ipv4/ip_forward && cat /proc/sys/net/ipv4/ip_forward",
                   cgroup="(mkdir /sys/fs/cgroup/pids/own 2>/dev/null || mkdir /sys/fs/cgroup/own) && echo ok"),
            "--privileged",
        ).ok().stdout
    )  # fmt: skip
    compare(
        got,
        {
            "eff": lambda v: bin(int(v, 16)).count("1") >= 37, "seccomp": "0", "mount": "ok", "sysctl": "1",
            "cgroup": "ok",
        },
    )  # fmt: skip


def test_bad_options(docker: Docker, once: Once) -> None:
    """What the runtime refuses, docker shows: the runtime's own words, and no container left behind."""
    if docker.runtime.is_vm:
        refused = once("true", "--net=host").fails()
        assert "host" in refused.stderr and "network" in refused.stderr, refused
    refused = once("true", "--sysctl", "net.nosuch.key=1").fails()
    assert "nosuch" in refused.stderr, refused
    assert not docker("ps", "-aq", "--filter", "label=test=this").ok().out


@pytest.mark.vm_only
def test_other_kernel(once: Once) -> None:
    """The kernel is not the host's."""
    with open("/proc/sys/kernel/random/boot_id") as f:
        assert once("cat /proc/sys/kernel/random/boot_id").ok().out != f.read().strip()
