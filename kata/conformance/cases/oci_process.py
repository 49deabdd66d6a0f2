"""config.json's `process`: identity, limits, environment, capabilities, arguments, exit codes."""

from __future__ import annotations

from pathlib import Path

from kata.conformance.case import Seen
from kata.conformance.cases.look import Look, attempt, mask, oci
from kata.conformance.engines.host import Output
from kata.conformance.engines.oci import PATH, OciRuntime
from kata.conformance.engines.sections import status

#: Numbers of capabilities (capability.h).
CHOWN, DAC_OVERRIDE, KILL, BIND = 0, 1, 5, 10
SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
ALL_SETS = "; ".join(status(s) for s in SETS)
#: The fourteen that engines give.
USUAL = "00000000a80425fb"
NOTHING = mask()

PLAIN = Look("plain", {
    "user": "id -u; id -g; id -G", "cwd": "pwd", "umask": "umask", "sets": ALL_SETS, "nnp": status("NoNewPrivs"),
    "seccomp": status("Seccomp"), "pid": "echo $$; cat /proc/1/comm", "fds": "ls /proc/self/fd",
    "session": "cut -d' ' -f5,6 /proc/1/stat", "nofile": "ulimit -Hn; ulimit -Sn",
    "oom": "cat /proc/self/oom_score_adj",
    "tty": "test -t 0 || echo no; test -t 1 || echo no; test -t 2 || echo no",
    "home": "echo $HOME", "env": "tr '\\0' '\\n' < /proc/1/environ | sed 's/=.*//' | sort | tr '\\n' ' '",
    "ignored": status("SigIgn"), "blocked": status("SigBlk"), "nice": "cut -d' ' -f19 /proc/self/stat",
    "parent": "cut -d' ' -f4 /proc/1/stat", "arguments": "tr '\\0' '|' < /proc/1/cmdline | head -c 11",
})  # fmt: skip

PLAIN.case("process-user-root", "process.user: uid 0, gid 0 and no additional group", user="0\n0\n0")
PLAIN.case("process-cwd", "process.cwd is the working directory", cwd="/")
PLAIN.case("process-umask-default", "process.user.umask: without one it is 0022", umask="0022")
PLAIN.case("process-capabilities-usual", "process.capabilities: permitted, effective and bounding as asked, the others "
           "empty", sets="\n".join((NOTHING, USUAL, USUAL, USUAL, NOTHING)))
PLAIN.case("process-nnp-off", "process.noNewPrivileges false: not set", nnp="0")
PLAIN.case("process-seccomp-off", "no linux.seccomp: no filter", seccomp="0")
PLAIN.case("process-is-pid-1", "the process is pid 1 of its pid namespace", pid="1\nsh", parent="0")
PLAIN.case("process-descriptors", "only standard streams are open; 3 is the folder that is read", fds="0\n1\n2\n3")
PLAIN.case("process-session", "the process leads a session and a process group of its own", session="1 1")
PLAIN.case("process-rlimit-default", "process.rlimits: RLIMIT_NOFILE as asked", nofile="1024\n1024")
PLAIN.case("process-no-terminal", "process.terminal false: no stream is a terminal", tty="no\nno\nno")
PLAIN.case("process-home", "HOME is that of the user in the container's /etc/passwd when process.env has none",
           home="/root")
PLAIN.case("process-environment-names", "nothing but process.env and HOME is in the environment",
           env="HOME PATH TERM")
PLAIN.case("process-signals", "no signal is blocked or ignored", ignored=NOTHING, blocked=NOTHING)
PLAIN.case("process-priority", "the process has the normal priority", "oom", nice="0")
PLAIN.case("process-arguments-plain", "process.args are the arguments, the first the program", arguments="/bin/sh|-c|")

DRESSED = Look("dressed", {
    "user": "id -u; id -g; id -G", "cwd": "pwd; stat -c '%a %u' .",
    "env": "env | grep -v -E '^(PWD|SHLVL|OLDPWD|_)=' | sort", "umask": "umask; touch /tmp/u; stat -c %a /tmp/u",
    "sets": ALL_SETS, "nnp": status("NoNewPrivs"), "nofile": "ulimit -Hn; ulimit -Sn", "core": "ulimit -Hc; ulimit -Sc",
    "cpu": "ulimit -Ht; ulimit -St", "oom": "cat /proc/self/oom_score_adj",
    "home": "cd; pwd",
    "sub": "sh -c 'cat /proc/self/oom_score_adj; umask'",
}, {"process": {
    "user": {"uid": 1000, "gid": 1000, "additionalGids": [29, 44, 5000], "umask": 0o027}, "cwd": "/made/by/runtime",
    "env": [PATH, "WORD=with spaces", "EMPTY=", "EQUALS=a=b", "UTF8=grün", "HOME=/home/user"],
    "capabilities": {
        "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE"],
        "permitted": ["CAP_KILL", "CAP_NET_BIND_SERVICE"],
        "inheritable": ["CAP_KILL"], "effective": ["CAP_KILL"], "ambient": ["CAP_KILL"],
    },
    "noNewPrivileges": True, "oomScoreAdj": 321,
    "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 777, "soft": 333}, {"type": "RLIMIT_CORE", "hard": 0, "soft": 0},
                {"type": "RLIMIT_CPU", "hard": 5000, "soft": 4000}],
}})  # fmt: skip

DRESSED.case("process-user", "process.user: uid, gid and additionalGids", user="1000\n1000\n1000 29 44 5000")
DRESSED.case("process-cwd-made", "process.cwd that does not exist is made", "cwd")
DRESSED.case("process-environment", "process.env: words with spaces, nothing, an equals sign, UTF-8",
             env=f"EMPTY=\nEQUALS=a=b\nHOME=/home/user\n{PATH}\nUTF8=grün\nWORD=with spaces")
DRESSED.case("process-umask", "process.user.umask holds for files that are made", umask="0027\n640")
DRESSED.case("process-capabilities-user", "process.capabilities: a user keeps ambient capabilities only "
             "(capabilities(7))",
             sets="\n".join((mask(KILL), mask(KILL), mask(KILL), mask(CHOWN, KILL, BIND), mask(KILL))))
DRESSED.case("process-nnp", "process.noNewPrivileges: set", nnp="1")
DRESSED.case("process-rlimit-nofile", "process.rlimits: RLIMIT_NOFILE hard and soft", nofile="777\n333")
DRESSED.case("process-rlimit-core", "process.rlimits: RLIMIT_CORE 0", core="0\n0")
DRESSED.case("process-rlimit-cpu", "process.rlimits: RLIMIT_CPU hard and soft", cpu="5000\n4000")
DRESSED.case("process-oom-score-adj", "process.oomScoreAdj", oom="321", sub="321\n0027")
DRESSED.case("process-home-given", "a HOME in process.env stays", home="/home/user")

FEW = Look("few capabilities", {
    "sets": ALL_SETS, "chown": "touch /tmp/f; chown 5 /tmp/f && stat -c %u /tmp/f",
    "hostname": f"{attempt('hostname other')}; hostname", "mount": attempt("mount -t tmpfs x /mnt"),
    "raw": attempt("ping -c 1 127.0.0.1"), "mknod": attempt("mknod /tmp/n c 1 3"), "chroot": attempt("chroot / true"),
}, {"process": {"capabilities": {s: ["CAP_CHOWN", "CAP_DAC_OVERRIDE"]
                              for s in ("bounding", "effective", "permitted")}}})

FEW.case("process-capabilities-few", "root has exactly the capabilities that are asked for",
         sets="\n".join((NOTHING, *[mask(CHOWN, DAC_OVERRIDE)] * 3, NOTHING)), chown="5")
FEW.case("process-capabilities-refused", "what no capability allows is refused", hostname="refused\nguest",
         mount="refused", mknod="refused", chroot="refused")


@oci("process-capabilities-none", "without process.capabilities there are none", sets="\n".join([NOTHING] * 5))
def no_capabilities(o: OciRuntime) -> Seen:
    return {"sets": o.run(ALL_SETS, {"process": {"capabilities": None}}).ok().out}


# --- arguments and environment ------------------------------------------------


@oci("process-arguments", "process.args reach the program byte by byte: empty, spaces, newlines, quotes, UTF-8",
     arguments="x||two words|line\nend|'\"$|grün|")
def arguments(o: OciRuntime) -> Seen:
    def change(config: dict[str, object]) -> None:
        config["process"]["args"] = [  # type: ignore[index]
            "/bin/sh", "-c", 'for a in "$0" "$@"; do printf "%s|" "$a"; done', "x", "", "two words", "line\nend",
            "'\"$", "grün"]

    return {"arguments": o.run("", change).ok().stdout}


def _much(o: OciRuntime) -> list[str]:
    """What a process with very many arguments and variables counted."""
    def change(config: dict[str, object]) -> None:
        shell = "echo $#; eval last=\\${$#}; echo ${#last}; env | grep -c '^V[0-9]*=x*$'"
        config["process"]["args"] = ["/bin/sh", "-c", shell, "x", *map(str, range(1999)), "y" * 102400]  # type: ignore[index]
        config["process"]["env"] = [PATH, *(f"V{n}={'x' * 200}" for n in range(500))]  # type: ignore[index]

    def make() -> list[str]:
        return o.run("", change).ok().stdout.split()

    found: list[str] = o.shared("much", make)
    return found


@oci("process-arguments-many", "2000 arguments and 100 KiB of one", count="2000", length="102400")
def many_arguments(o: OciRuntime) -> Seen:
    count, length, _ = _much(o)
    return {"count": count, "length": length}


@oci("process-environment-large", "500 variables of 200 bytes", count="500")
def large_environment(o: OciRuntime) -> Seen:
    return {"count": _much(o)[2]}


@oci("process-path-lookup", "a program without a slash is found by PATH of process.env", output="found")
def path_lookup(o: OciRuntime) -> Seen:
    def change(config: dict[str, object]) -> None:
        config["process"]["args"] = ["tool"]  # type: ignore[index]
        config["process"]["env"] = ["PATH=/nosuch:/opt/tools:/bin"]  # type: ignore[index]

    def prepare(root: Path) -> None:
        (root / "opt/tools").mkdir(parents=True)
        (root / "opt/tools/tool").write_text("#!/bin/sh\necho found\n")
        (root / "opt/tools/tool").chmod(0o755)

    return {"output": o.run("", change, prepare=prepare).ok().out}


# --- exit codes ---------------------------------------------------------------


def _code(o: OciRuntime, shell: str) -> int:
    return o.run(shell).code


@oci("process-exit-code", "run ends with the exit code of the process", codes=[42, 255])
def exit_codes(o: OciRuntime) -> Seen:
    return {"codes": [_code(o, f"exit {n}") for n in (42, 255)]}


@oci("process-exit-signal", "a process that a signal ended: 128 and its number", code=137)
def exit_signal(o: OciRuntime) -> Seen:
    with o.running() as c:
        return {"code": c.end()}


@oci("process-exit-signal-of-child", "what the shell says of a child that a signal ended", code=139)
def exit_signal_of_child(o: OciRuntime) -> Seen:
    return {"code": _code(o, "sh -c 'kill -SEGV $$'; exit $?")}


@oci("process-exit-leaves-children", "when pid 1 ends everything in the container does", code=5, late=False)
def children_end(o: OciRuntime) -> Seen:
    done = _last_words(o)
    return {"code": done.code, "late": "late" in done.stdout}


def _last_words(o: OciRuntime) -> Output:
    def make() -> Output:
        return o.run("(sleep 3600; echo late) & head -c 1048576 /dev/zero | tr '\\0' x; echo end; exit 5")

    found: Output = o.shared("last words", make)
    return found


@oci("process-exit-output-whole", "output written just before the end is not lost", bytes=1048576, last="end", code=5)
def last_words(o: OciRuntime) -> Seen:
    done = _last_words(o)
    return {"bytes": done.stdout.count("x"), "last": done.stdout[-4:].strip(), "code": done.code}


# --- streams --------------------------------------------------------------------


def _streams(o: OciRuntime) -> Output:
    """What came of a process that reads a thousand lines, writes to both outputs, and writes every kind of byte."""
    def make() -> Output:
        return o.run("n=0; while read line; do n=$((n+1)); done; echo $n lines; echo to err >&2; "
                     "printf '\\000\\001\\012\\015\\033\\177'", input="line\n" * 1000)

    found: Output = o.shared("streams", make)
    return found


@oci("streams-apart", "standard output and standard error are apart", out="1000 lines", err="to err")
def streams_apart(o: OciRuntime) -> Seen:
    return {"out": _streams(o).stdout.splitlines()[0], "err": _streams(o).stderr.strip()}


@oci("streams-input", "standard input reaches the process, to its end", lines="1000")
def streams_input(o: OciRuntime) -> Seen:
    return {"lines": _streams(o).stdout.split()[0]}


@oci("streams-binary", "every byte passes unchanged", bytes="00 01 0a 0d 1b 7f")
def streams_binary(o: OciRuntime) -> Seen:
    return {"bytes": _streams(o).stdout.encode()[len("1000 lines\n"):].hex(" ")}


@oci("streams-input-none", "with nothing to read standard input is at its end at once", code="1")
def streams_none(o: OciRuntime) -> Seen:
    return {"code": o.run("read line; echo $?").ok().out}


@oci("streams-through-create", "create's standard input is the process's; nothing runs before start", before="",
     output="got line", code=7)
def streams_create(o: OciRuntime) -> Seen:
    with o.created("echo ran >&2; read line; echo got $line; exit 7", input=b"line\n") as c:
        before = c.said
        c.start().ok()
        code = c.wait()
        return {"before": before, "output": c.said.replace("ran\n", "").strip(), "code": code}

