"""What a container's process finds: identity, limits, environment, capabilities, seccomp."""

from __future__ import annotations

import pytest

from harness.bundle import PATH
from harness.oci import Container, Oci
from harness.text import compare, mask, script, sections, status

#: Hexadecimal masks of capability sets (capability.h): CAP_CHOWN 0, CAP_KILL 5, CAP_NET_BIND_SERVICE 10.
CHOWN, KILL, BIND = 1 << 0, 1 << 5, 1 << 10


def test_everything_of_a_process(oci: Oci) -> None:
    """One start, every field of `process`."""
    bundle = oci.bundle(
        script(
            id="id -u; id -g; id -G",
            cwd="pwd; stat -c '%a %u' .",
            env="env | grep -v -E '^(PWD|SHLVL|OLDPWD|_)=' | sort",
            umask="umask",
            capinh=status("CapInh"),
            capprm=status("CapPrm"),
            capeff=status("CapEff"),
            capbnd=status("CapBnd"),
            capamb=status("CapAmb"),
            nnp=status("NoNewPrivs"),
            nofile="ulimit -Hn; ulimit -Sn",
            core="ulimit -Hc; ulimit -Sc",
            cpu="ulimit -Ht; ulimit -St",
            oom="cat /proc/self/oom_score_adj",
            pid="echo $$; cat /proc/1/comm",
            args="tr '\\0' '|' </proc/1/cmdline | head -c 8",
            fds="ls /proc/self/fd",
        )
    )
    bundle.merge(
        {
            "process": {
                "user": {"uid": 1000, "gid": 1000, "additionalGids": [29, 44, 5000], "umask": 0o027},
                "cwd": "/made/by/runtime",
                "env": [PATH, "WORD=with spaces", "EMPTY=", "EQUALS=a=b", "UTF8=grün", "HOME=/elsewhere"],
                "capabilities": {
                    "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE"],
                    "permitted": ["CAP_KILL", "CAP_NET_BIND_SERVICE"],
                    "inheritable": ["CAP_KILL"],
                    "effective": ["CAP_KILL"],
                    "ambient": ["CAP_KILL"],
                },
                "noNewPrivileges": True,
                "oomScoreAdj": 321,
                "rlimits": [
                    {"type": "RLIMIT_NOFILE", "hard": 777, "soft": 333},
                    {"type": "RLIMIT_CORE", "hard": 0, "soft": 0},
                    {"type": "RLIMIT_CPU", "hard": 5000, "soft": 4000},
                ],
            }
        }
    )
    result = oci.run(bundle).ok()
    got = sections(result.stdout)
    compare(
        got,
        {
            "id": "1000\n1000\n1000 29 44 5000",
            "cwd": lambda v: v.startswith("/made/by/runtime\n"),
            "env": f"EMPTY=\nEQUALS=a=b\nHOME=/elsewhere\n{PATH}\nUTF8=grün\nWORD=with spaces",
            "umask": "0027",
            # By exec as a user without privileges, only ambient capabilities live on (capabilities(7)).
            "capinh": mask(KILL),
            "capprm": mask(KILL),
            "capeff": mask(KILL),
            "capbnd": mask(CHOWN | KILL | BIND),
            "capamb": mask(KILL),
            "nnp": "1",
            "nofile": "777\n333",
            "core": "0\n0",
            "cpu": "5000\n4000",
            "oom": "321",
            "pid": "1\nsh",
            "args": "/bin/sh|",
            "fds": "0\n1\n2\n3",  # 3 is the folder that ls reads
        },
    )


def test_root_capabilities(oci: Oci) -> None:
    """Root gets exactly the permitted and effective sets that are asked for; others fail as they should."""
    bundle = oci.bundle(
        script(prm=status("CapPrm"), eff=status("CapEff"), bnd=status("CapBnd"), amb=status("CapAmb"),
               chown="touch /tmp/f; chown 5 /tmp/f && stat -c %u /tmp/f",
               hostname="hostname other 2>/dev/null; echo $?; hostname",
               mount="mount -t tmpfs x /mnt 2>/dev/null; echo $?")
    )  # fmt: skip
    caps = ["CAP_CHOWN", "CAP_DAC_OVERRIDE"]
    bundle.process["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), caps)
    got = sections(oci.run(bundle).ok().stdout)
    compare(
        got,
        {
            "prm": mask(3), "eff": mask(3), "bnd": mask(3), "amb": mask(0), "chown": "5",
            "hostname": "1\nguest", "mount": lambda v: v != "0",
        },
    )  # fmt: skip


def test_no_capabilities_at_all(oci: Oci) -> None:
    """Without `capabilities` root has none."""
    bundle = oci.bundle(status("CapEff") + ";" + status("CapBnd"))
    del bundle.process["capabilities"]
    assert oci.run(bundle).ok().out.split()[0] == mask(0)


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (["sh", "-c", "exit 0"], 0, ""),
        (["sh", "-c", "exit 42"], 42, ""),
        (["sh", "-c", "exit 255"], 255, ""),
        (["sh", "-c", "kill -SEGV $$"], 139, ""),
    ],
)
def test_exit_codes_of_run(oci: Oci, args: list[str], code: int, text: str) -> None:
    """run ends with the process's exit code, 128 + n by a signal (pid 1 cannot kill itself: a child does)."""
    if "SEGV" in args[-1]:
        args = ["sh", "-c", "sh -c 'kill -SEGV $$'; exit $?"]
    bundle = oci.bundle()
    bundle.process["args"] = args
    assert oci.run(bundle).rc == code


def test_exit_codes_of_exec(shared: Container) -> None:
    """126 and 127 are not OCI codes: a program that cannot run fails the verb; the shell's own codes come through."""
    for code in (0, 1, 7, 126, 127, 128, 200, 255):
        assert shared.sh(f"exit {code}").rc == code
    for name, number in (("TERM", 15), ("KILL", 9), ("SEGV", 11), ("HUP", 1)):
        assert shared.sh(f"kill -{name} $$").rc == 128 + number, name
    assert shared.sh("/nosuch").rc == 127
    assert shared.sh("/etc/passwd").rc == 126


def test_program_that_cannot_run(oci: Oci) -> None:
    """A missing or not executable program fails create (guest process made at create) by name."""
    for program, text in (("/nosuch", "no such file"), ("nosuch-in-path", "not found"), ("/etc/passwd", "denied")):
        bundle = oci.bundle()
        bundle.process["args"] = [program]
        with oci.container(bundle) as c:
            failed = c.launch_verb("create").fails(1)
            assert program in failed.stderr and text in failed.stderr.lower(), failed
            oci.verb("state", c.id).fails(1)
            c.assert_gone()


def test_cwd_that_is_no_folder(oci: Oci) -> None:
    bundle = oci.bundle()
    bundle.process["cwd"] = "/etc/passwd"
    assert "/etc/passwd" in oci.run(bundle).fails(1).stderr


ERRNO_PROFILE = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
    "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"},
        {"names": ["sethostname"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
        {"names": ["chmod", "fchmod", "fchmodat"], "action": "SCMP_ACT_KILL_PROCESS"},
        # kill(2) is refused for signal 12 only.
        {"names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 1, "value": 12, "op": "SCMP_CMP_EQ"}]},
    ],
}


def test_seccomp(oci: Oci) -> None:
    """Filters refuse with the errno asked for, look at arguments, kill; and hold for exec too."""
    checks = script(
        mode=status("Seccomp"),
        mkdir="mkdir /tmp/d",
        hostname="hostname x",
        kill="kill -URG $$ && echo ok; kill -12 $$ || echo refused",
        chmod="sh -c 'chmod 600 /etc/passwd'; echo $?",
    )
    bundle = oci.bundle()
    bundle.process["capabilities"] = {
        k: ["CAP_SYS_ADMIN", "CAP_FOWNER", "CAP_KILL"] for k in ("bounding", "effective", "permitted")
    }
    bundle.linux["seccomp"] = ERRNO_PROFILE
    with oci.running(bundle) as c:
        got = sections(c.sh(checks).ok().stdout)
    compare(
        got,
        {
            "mode": "2",
            "mkdir": lambda v: "not permitted" in v,
            "hostname": lambda v: "not implemented" in v,
            "kill": lambda v: v.startswith("ok") and "refused" in v,
            "chmod": lambda v: v.splitlines()[-1] == "159",
        },
    )


def test_seccomp_default_deny(oci: Oci) -> None:
    """A list of allowed calls: what is not on it is refused, with no_new_privs and without."""
    allowed = (
        "access arch_prctl brk capget capset chdir clone clone3 close close_range dup dup2 dup3 epoll_create1 "
        "epoll_ctl epoll_pwait execve execveat exit exit_group faccessat faccessat2 fchdir fcntl fork fstat "
        "fstatfs futex getcwd getdents64 getegid geteuid getgid getpeername getpgrp getpid getppid getrandom "
        "getsockname gettid getuid ioctl kill lseek lstat madvise mmap mprotect mremap munmap nanosleep "
        "newfstatat open openat openat2 pipe pipe2 poll prctl pread64 prlimit64 read readlink readlinkat rseq "
        "rt_sigaction rt_sigprocmask rt_sigreturn rt_sigsuspend sched_getaffinity sched_yield sendfile "
        "set_robust_list set_tid_address setgid setgroups setpgid setresgid setresuid setsid setuid "
        "sigaltstack stat statfs statx tgkill umask uname vfork wait4 write writev "
    ).split()
    for no_new_privileges in (True, False):
        bundle = oci.bundle("uname -s; mkdir /tmp/d || echo refused")
        bundle.process["noNewPrivileges"] = no_new_privileges
        bundle.linux["seccomp"] = {
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 1,
            "architectures": ["SCMP_ARCH_X86_64"],
            # Engines' profiles name calls that an older libseccomp does not know.
            "syscalls": [{"names": [*allowed, "from_the_future"], "action": "SCMP_ACT_ALLOW"}],
        }
        result = oci.run(bundle).ok()
        assert result.out == "Linux\nrefused", result
