"""podman: run, exec, life, pods with an infra container, networks, volumes."""

from __future__ import annotations

import json
from functools import partial

from kata.conformance.case import Seen, case
from kata.conformance.cases.docker_fixtures import fetch
from kata.conformance.engines.host import SLEEP
from kata.conformance.engines.podman import IMAGE, PodmanRuntime
from kata.conformance.engines.sections import cgroup, script, sections, status
from kata.conformance.shared import shared

podman = partial(case, "podman")

OPTIONS = (
    "--user", "1000:100", "--group-add", "44", "--workdir", "/tmp", "-e", "A=b c", "--hostname", "named",
    "--add-host", "friend:10.1.2.3", "--ulimit", "nofile=321:654", "--ulimit", "nproc=500:500",
    "--cap-drop", "all", "--cap-add", "KILL",
    "--security-opt", "no-new-privileges", "--sysctl", "net.core.somaxconn=555", "--tmpfs", "/t:size=1m,mode=1777",
    "--shm-size", "4m", "--read-only",
    "--memory", "100m", "--init", "-v", "/anonymous",
)  # fmt: skip
FOUND = script(
    user="id -u; id -g; id -G", cwd="pwd", env="echo $IMAGE_WORD / $A / $container", hostname="hostname",
    hosts="grep friend /etc/hosts | tr -s '\\t ' ' '", limits="ulimit -Sn; ulimit -Hn", bounding=status("CapBnd"),
    seccomp=status("Seccomp"), nnp=status("NoNewPrivs"), sysctl="cat /proc/sys/net/core/somaxconn",
    tmpfs="stat -c %a /t; df -k /t | awk 'END { print $2 }'", shm="df -k /dev/shm | awk 'END { print $2 }'",
    readonly="touch /x 2>&1 | grep -o 'Read-only file system'",
    memory=cgroup("memory/memory.limit_in_bytes", "memory.max"),
    init="tr '\\0' '\\n' < /proc/1/cmdline | head -n 1 | grep -o init; test $$ = 1 || echo child",
    links="ls /sys/class/net | sort | tr '\\n' ' '",
)


def dressed(p: PodmanRuntime) -> str:
    """A container with many options that the cases share."""
    return shared(p, "dressed", lambda: p.start(f"{FOUND}\necho '@@end'; {SLEEP}", *OPTIONS))


def found(p: PodmanRuntime, *names: str) -> Seen:
    """What it found when it started."""
    got = shared(p, "found", lambda: sections(p.logged(dressed(p), "@@end")))
    return {name: got[name] for name in names}


@podman("run-identity", "user, groups, folder, environment, host name, hosts", user="1000\n100\n100 44", cwd="/tmp",
        env="image / b c / podman", hostname="named", hosts="10.1.2.3 friend")
def identity(p: PodmanRuntime) -> Seen:
    return found(p, "user", "cwd", "env", "hostname", "hosts")


@podman("run-limits", "ulimits, capabilities, seccomp, no new privileges, memory", limits="321\n654",
        bounding="0000000000000020", seccomp="2", nnp="1", memory=str(100 << 20))
def limits(p: PodmanRuntime) -> Seen:
    return found(p, "limits", "bounding", "seccomp", "nnp", "memory")


@podman("run-mounts", "tmpfs, shm size, a root that cannot be written", tmpfs="1777\n1024", shm="4096",
        readonly="Read-only file system")
def mounts(p: PodmanRuntime) -> Seen:
    return found(p, "tmpfs", "shm", "readonly")


@podman("run-sysctl-init", "--sysctl, and --init: the command is its child", sysctl="555", init="init\nchild")
def sysctl_init(p: PodmanRuntime) -> Seen:
    return found(p, "sysctl", "init")


@podman("run-network", "one interface beside the loopback", links="eth0 lo")
def network(p: PodmanRuntime) -> Seen:
    return found(p, "links")


@podman("exit-code-and-streams", "the process's exit code; input to its end; output and errors apart", code=7,
        output="through", errors="err")
def exit_code(p: PodmanRuntime) -> Seen:
    got = p.once("cat; echo err >&2; exit 7", "-i", input="through\n")
    return {"code": got.code, "output": got.out, "errors": got.stderr.strip()}


@podman("program-missing", "127 for a program that does not exist, by name", code=127, named=True)
def missing(p: PodmanRuntime) -> Seen:
    got = p("run", "--rm", IMAGE, "/no/such")
    return {"code": got.code, "named": "/no/such" in got.stderr}


@podman("exec-options", "exec with user, folder and environment; its exit code", output="1000\n/tmp\nx", code=5)
def exec_options(p: PodmanRuntime) -> Seen:
    got = p.sh(dressed(p), "id -u; pwd; echo $A; exit 5", "-u", "1000", "-w", "/tmp", "-e", "A=x")
    return {"output": got.out, "code": got.code}


@podman("exec-input", "exec -i passes input to its end", output="through")
def exec_input(p: PodmanRuntime) -> Seen:
    return {"output": p("exec", "-i", dressed(p), "cat", input="through\n").out}


@podman("exec-missing", "exec of a program that does not exist: 127, by name", code=127, named=True)
def exec_missing(p: PodmanRuntime) -> Seen:
    got = p("exec", dressed(p), "/no/such")
    return {"code": got.code, "named": "/no/such" in got.all}


@podman("inspect", "inspect tells state and pid", state="running 0", pid=True)
def inspect(p: PodmanRuntime) -> Seen:
    state = p.state(dressed(p))
    return {"state": f"{state['Status']} {state['ExitCode']}", "pid": state["Pid"] > 0}


@podman("pause", "pause and unpause; exec is refused between them", paused="paused", refused=True, after="running",
        exec="in")
def pause(p: PodmanRuntime) -> Seen:
    name = dressed(p)
    p("pause", name).ok()
    paused, refused = p.state(name)["Status"], p("exec", name, "true").code != 0
    p("unpause", name).ok()
    return {"paused": paused, "refused": refused, "after": p.state(name)["Status"], "exec": p.sh(name, "echo in").out}


@podman("stats", "stats tell of memory and processes", memory=True, processes=True)
def stats(p: PodmanRuntime) -> Seen:
    said = json.loads(p("stats", "--no-stream", "--format", "json", dressed(p)).ok().stdout)[0]
    return {"memory": not said["mem_usage"].startswith("0B"), "processes": int(said["pids"]) >= 1}


@podman("copy", "cp into and out of a running container", inside="from the host", outside="from the host\nmore")
def copy(p: PodmanRuntime) -> Seen:
    name = dressed(p)
    place = p.podman.folder / f"copy-{p.runtime}"
    place.write_text("from the host\n")
    p("cp", str(place), f"{name}:/anonymous/copied").ok()
    inside = p.sh(name, "cat /anonymous/copied; echo more >> /anonymous/copied").out
    p("cp", f"{name}:/anonymous/copied", str(place)).ok()
    return {"inside": inside, "outside": place.read_text().strip()}


@podman("life", "stop by TERM; start and restart run it again; kill; wait tells the code", status="exited 4", ups=3,
        killed=137)
def life(p: PodmanRuntime) -> Seen:
    name = p.start("trap 'exit 4' TERM; echo up; while :; do sleep 3600 & wait $!; done")
    p.logged(name, "up")
    p("stop", name).ok()
    state = p.state(name)
    p("start", name).ok()
    p.logged(name, "up", 2)
    p("restart", name).ok()
    ups = p.logged(name, "up", 3).count("up")
    p("kill", name).ok()
    killed = p.ended(name)
    p.remove(name)
    return {"status": f"{state['Status']} {state['ExitCode']}", "ups": ups, "killed": killed}


@podman("volumes", "bind mounts both ways, read-only, and a named volume that is filled from the image",
        seen="host|host|ro|user", back="in")
def volumes(p: PodmanRuntime) -> Seen:
    folder = p.podman.data / f"folder {p.runtime}"
    folder.mkdir()
    (folder / "f").write_text("host\n")
    got = p.once("cat /v/f /ro/f; echo in > /v/new; touch /ro/x 2>/dev/null || echo ro; ls /home", "-v", f"{folder}:/v",
                 "-v", f"{folder}:/ro:ro", "-v", f"named-{p.runtime}:/home").ok()
    return {"seen": "|".join(got.out.split()), "back": (folder / "new").read_text().strip()}


@podman("network-none", "--network none: the loopback alone", links="lo")
def network_none(p: PodmanRuntime) -> Seen:
    return {"links": p.once("ls /sys/class/net", "--network", "none").ok().out}


@podman("network-host", "--network host gives the host's interfaces, or is refused by name", result="the host's")
def network_host(p: PodmanRuntime) -> Seen:
    got = p.once("ls /sys/class/net", "--network", "host")
    if got.code == 0:
        return {"result": "the host's" if "podman0" in got.out or got.out == "lo" else f"silently others: {got.out}"}
    named = "network" in got.stderr and "host" in got.stderr
    return {"result": "refused by name" if named else f"failed without a reason: {got.stderr}"}


def pod(p: PodmanRuntime) -> str:
    """A pod with a web server and a second container."""

    def make() -> str:
        name = f"pod-{p.runtime}"
        p("pod", "create", "--name", name, "--hostname", "podhost").ok()
        serve = f"mkdir /www; echo served > /www/name; httpd -p 80 -h /www; echo up; {SLEEP}"
        p("run", "-d", "--pod", name, "--name", f"{name}-server", IMAGE, "sh", "-c", serve).ok()
        p("run", "-d", "--pod", name, "--name", f"{name}-other", IMAGE, "sh", "-c", SLEEP).ok()
        p.logged(f"{name}-server", "up")
        return name

    return shared(p, "pod", make)


@podman("pod-network", "the containers of a pod share network and host name", served="served", names="podhost podhost",
        address=True)
def pod_network(p: PodmanRuntime) -> Seen:
    name = pod(p)
    look = "hostname; ip -o -4 addr show eth0 | awk '{ print $4 }'"
    one, two = (p.sh(f"{name}-{who}", look).out.split() for who in ("server", "other"))
    return {"served": p.sh(f"{name}-other", fetch("127.0.0.1")).out, "names": f"{one[0]} {two[0]}",
            "address": one[1:] == two[1:] != []}


@podman("pod-ipc-and-roots", "the containers of a pod share /dev/shm, each with a root of its own", shm="x", own=True)
def pod_ipc(p: PodmanRuntime) -> Seen:
    name = pod(p)
    p.sh(f"{name}-other", "echo x > /dev/shm/shared").ok()
    return {"shm": p.sh(f"{name}-server", "cat /dev/shm/shared").out,
            "own": p.sh(f"{name}-other", "test -e /www").code != 0}


@podman("pod-kernel", "the containers of a pod are on one kernel", same=True)
def pod_kernel(p: PodmanRuntime) -> Seen:
    boots = {p.sh(f"{pod(p)}-{who}", "cat /proc/sys/kernel/random/boot_id").ok().out for who in ("server", "other")}
    return {"same": len(boots) == 1}


@podman("pod-member-kill", "a container of a pod that is killed leaves the others running", code=137, other="running",
        pod="Degraded")
def pod_member(p: PodmanRuntime) -> Seen:
    name = pod(p)
    extra = p.start(SLEEP, "--pod", name)
    p("kill", extra).ok()
    code = p.ended(extra)
    told = p("pod", "inspect", "-f", "{{.State}}", name).ok().out
    p.remove(extra)
    return {"code": code, "other": p.state(f"{name}-server")["Status"], "pod": told}


@podman("commit-and-diff", "diff and commit see what the container changed", diff=True, image="made")
def commit(p: PodmanRuntime) -> Seen:
    server = f"{pod(p)}-server"
    image = f"localhost/made-{p.runtime}:test"
    p.sh(server, "echo made > /made").ok()
    diff = "A /made" in p("diff", server).ok().stdout
    p("commit", "-q", server, image).ok()
    got = p("run", "--rm", image, "cat", "/made").out
    p("rmi", "-f", image).ok()
    return {"diff": diff, "image": got}
