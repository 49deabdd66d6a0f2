"""exec: another process in a running container, with the options that engines pass; and terminals."""

from __future__ import annotations

import concurrent.futures
import contextvars
import json
import os
from collections.abc import Sequence

from kata.conformance.case import Seen
from kata.conformance.cases.look import mask, oci
from kata.conformance.cases.oci_life import until
from kata.conformance.engines import host
from kata.conformance.engines.oci import OciRuntime
from kata.conformance.engines.sections import script, sections, status

CHECKS = script(cwd="pwd", env="echo $TERM $A $B", id="id -u; id -g; id -G", eff=status("CapEff"), bnd=status("CapBnd"),
                nnp=status("NoNewPrivs"), nofile="ulimit -n", hostname="hostname", first="cat /proc/1/comm",
                umask="umask", tty="test -t 0 || echo no")


def _with(o: OciRuntime, *options: str) -> dict[str, str]:
    found: dict[str, str] = o.shared(f"exec {options}", lambda: sections(o.box.sh(CHECKS, *options).ok().stdout))
    return found


@oci("exec-plain", "exec: user, folder, environment and limits are the container's process's", id="0\n0\n0", cwd="/",
     env="xterm", nofile="1024", hostname="guest", first="sh", umask="0022", tty="no", nnp="0")
def plain(o: OciRuntime) -> Seen:
    return {k: v for k, v in _with(o).items() if k not in ("eff", "bnd")}


@oci("exec-capabilities", "exec: capabilities are those of the container", eff="00000000a80425fb",
     bnd="00000000a80425fb")
def capabilities(o: OciRuntime) -> Seen:
    return {key: _with(o)[key] for key in ("eff", "bnd")}


@oci("exec-user", "exec --user UID:GID and --additional-gids", id="1000\n100\n100 29 44", eff=mask())
def user(o: OciRuntime) -> Seen:
    seen = _with(o, "--user", "1000:100", "--additional-gids", "29", "--additional-gids", "44")
    return {key: seen[key] for key in ("id", "eff")}


@oci("exec-cwd-env", "exec --cwd and --env, beside the container's variables", cwd="/tmp", env="xterm 1 2 x=y")
def cwd_env(o: OciRuntime) -> Seen:
    seen = _with(o, "--cwd", "/tmp", "--env", "A=1 2", "--env", "B=x=y")
    return {key: seen[key] for key in ("cwd", "env")}


@oci("exec-nnp", "exec --no-new-privs", nnp="1")
def nnp(o: OciRuntime) -> Seen:
    return {"nnp": _with(o, "--no-new-privs")["nnp"]}


@oci("exec-cap", "exec --cap adds a capability", has=True)
def cap(o: OciRuntime) -> Seen:
    return {"has": bool(int(_with(o, "--cap", "CAP_SYS_TIME")["eff"], 16) & 1 << 25)}


@oci("exec-exit-codes", "exec ends with the process's exit code, 128 and the signal's number when killed",
     codes=[0, 1, 7, 126, 127, 128, 255], signals=[143, 137, 139, 129])
def exit_codes(o: OciRuntime) -> Seen:
    return {"codes": [o.box.sh(f"exit {n}").code for n in (0, 1, 7, 126, 127, 128, 255)],
            "signals": [o.box.sh(f"kill -{name} $$").code for name in ("TERM", "KILL", "SEGV", "HUP")]}


@oci("exec-missing-program", "exec of a program that is not there or cannot run fails, names it, and the container goes"
     " on",
     failed=[True] * 3, named=[True] * 3, status="running")
def missing_program(o: OciRuntime) -> Seen:
    done = [o.box.exec(name) for name in ("/nosuch", "nosuch", "/etc/passwd")]
    return {"failed": [d.code != 0 for d in done], "named": [d.argv[-1] in d.all for d in done], "status": o.box.status}


@oci("exec-process-file", "exec --process: a whole process object", id="1000\n1000 44", cwd="/home/user", nofile="444",
     env="ONLY=this PATH=/bin", nnp="1")
def process_file(o: OciRuntime) -> Seen:
    path = o.folder / "process.json"
    path.write_text(json.dumps({
        "args": ["/bin/sh", "-c", script(
            id="id -u; id -G", cwd="pwd", nofile="ulimit -n", nnp=status("NoNewPrivs"),
            env="env | grep -vE '^(PWD|SHLVL|HOME|_)=' | sort | tr '\\n' ' '")],
        "env": ["PATH=/bin", "ONLY=this"], "cwd": "/home/user",
        "user": {"uid": 1000, "gid": 1000, "additionalGids": [44]},
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 555, "soft": 444}],
        "capabilities": {"bounding": ["CAP_KILL"]}, "noNewPrivileges": True,
    }))  # fmt: skip
    return sections(o("exec", "--process", str(path), o.box.id).ok().stdout)


@oci("exec-process-file-wrong", "exec --process of a file that is no process is refused", refused=[True] * 5)
def process_file_wrong(o: OciRuntime) -> Seen:
    path, refused = o.folder / "wrong.json", []
    for text in ("", "{", "[]", '{"args": "x"}', '{"args": []}'):
        path.write_text(text)
        refused.append(o("exec", "--process", str(path), o.box.id).code != 0)
    return {"refused": refused}


@oci("exec-streams", "exec: input, output and errors, each its own", out="INPUT", err="errors", code=4)
def streams(o: OciRuntime) -> Seen:
    done = o.box.sh("tr a-z A-Z; echo errors >&2; exit 4", input="input\n")
    return {"out": done.out, "err": done.stderr.strip(), "code": done.code}


@oci("exec-large-streams", "exec: 4 MiB in and out are the same", count="4194304", back=4194304)
def large_streams(o: OciRuntime) -> Seen:
    text = "0123456789abcde\n" * (4194304 // 16)
    return {"count": o.box.sh("wc -c", input=text).out, "back": len(o.box.exec("cat", input=text).stdout)}


@oci("exec-detached", "exec --detach returns while the process runs; its pid file names it, its end has its code",
     listed=True, code=143)
def detached(o: OciRuntime) -> Seen:
    launch, pid_file = o.box.exec_detached("exec sleep 4321")
    launch.told("verb")
    listed = "sleep 4321" in o("ps", o.box.id).ok().stdout
    os.kill(int(pid_file.read_text()), 15)
    return {"listed": listed, "code": launch.told("exit")}


@oci("exec-at-once", "ten exec at once, each with its own input, output and exit code", whole=[True] * 10)
def at_once(o: OciRuntime) -> Seen:
    box = o.box

    def one(number: int) -> bool:
        text = f"input {number}\n" * 200
        done = box.sh(f"cat; exit {number}", input=text)
        return (done.code, done.stdout) == (number, text)

    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        return {"whole": [f.result() for f in [pool.submit(contextvars.copy_context().run, one, n) for n in range(10)]]}


@oci("exec-leaves-nothing", "exec leaves no process in the container", left=0)
def leaves_nothing(o: OciRuntime) -> Seen:
    count = "echo $(ls /proc | grep -c '^[0-9]')"
    before = int(o.box.sh(count).out)
    for _ in range(5):
        o.box.exec("true").ok()
    # What ended a moment ago may not be reaped yet.
    until(o.box, f"test $(ls /proc | grep -c '^[0-9]') -le {before}")
    return {"left": max(0, int(o.box.sh(count).out) - before)}


@oci("exec-orphans", "a grandchild that outlives its exec is reaped by pid 1", zombies="0")
def orphans(o: OciRuntime) -> Seen:
    o.box.sh("sh -c 'sleep 0.2' & exit 0").ok()
    until(o.box, "! pgrep -f 'sleep 0.2' >/dev/null")
    return {"zombies": o.box.sh("grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l").out}


@oci("exec-ends-with-container", "when pid 1 ends, processes of exec die by KILL", code=137)
def ends_with_container(o: OciRuntime) -> Seen:
    with o.running() as c:
        launch, _ = c.exec_detached("exec sleep 3600")
        launch.told("verb")
        c.end()
        return {"code": launch.told("exit")}


@oci("exec-created", "exec in a container that was not started: it runs beside the waiting process", output="early",
     status="created")
def exec_created(o: OciRuntime) -> Seen:
    with o.created() as c:
        return {"output": c.exec("echo", "early").out, "status": c.status}


# --- terminals -------------------------------------------------------------------------


def _terminal(argv: Sequence[str]) -> dict[str, object]:
    shown, code = host.on_terminal(argv, 31, 97)
    return {"shown": "\n".join(shown.split("\r\n")).replace("\r", "").strip(), "code": code}


@oci("terminal-exec", "exec --tty on a terminal: the process has one of the same size; what it writes ends lines so",
     shown="tty\n31 97", code=5)
def terminal_exec(o: OciRuntime) -> Seen:
    return _terminal(o.argv("exec", "--tty", o.box.id, "/bin/sh", "-c", (
        "test -t 0 && test -t 1 && test -t 2 && echo tty; i=0; until test \"$(stty size 2>/dev/null)\" = '31 97';"
        " do i=$((i+1)); test $i -lt 200 || break; usleep 50000; done; stty size; exit 5")))


@oci("terminal-run", "process.terminal: run on a terminal gives the process one, also with a consoleSize", shown="tty",
     code=6)
def terminal_run(o: OciRuntime) -> Seen:
    bundle = o.bundle("test -t 0 && test -t 1 && test -t 2 && echo tty; exit 6", {
        "process": {"terminal": True, "consoleSize": {"height": 40, "width": 100}}})
    return _terminal(o.argv("run", "--bundle", str(bundle), o.new_id()))


@oci("terminal-needs-socket", "a detached terminal without a socket is refused, and a socket without a terminal",
     refused=[True, True])
def needs_socket(o: OciRuntime) -> Seen:
    refused = []
    for terminal, options in ((True, ()), (False, ("--console-socket", str(o.folder / "no.sock")))):
        with o.container(o.bundle(changes={"process": {"terminal": terminal}})) as c:
            refused.append(c.try_create(*options) != 0)
    return {"refused": refused}
