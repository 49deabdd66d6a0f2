"""The life of docker's containers: exec, signals, restart, pause, logs, attach, top, stats, update, cp, commit."""

from __future__ import annotations

import concurrent.futures
import json
import os
from functools import partial
from pathlib import Path

from kata.conformance.case import Seen, case
from kata.conformance.cases.docker_fixtures import CPU, MEMORY, PIDS, DockerSubject, needs_all_capabilities
from kata.conformance.engines import host
from kata.conformance.engines.sections import script, sections, status

docker = partial(case, "docker")

# --- exec ----------------------------------------------------------------------


@docker("exec-options", "exec with user, folder and environment; exit code, output and errors apart",
        code=3, output="1000\n/tmp\nb image", errors="err")
def exec_options(d: DockerSubject) -> Seen:
    got = d.sh(d.box, "id -u; pwd; echo $A $IMAGE_WORD; echo err >&2; exit 3", "-u", "1000", "-w", "/tmp", "-e", "A=b")
    return {"code": got.code, "output": got.out, "errors": got.stderr.strip()}


@docker("exec-user-by-name", "exec -u NAME has the groups that the image's /etc/group gives",
        groups="1000 1000 29 44 1000", home="/home/user")
def exec_user(d: DockerSubject) -> Seen:
    got = d.sh(d.box, "id -u; id -g; id -G | tr ' ' '\\n' | sort -n", "-u", "user").ok()
    return {"groups": " ".join(got.out.split()), "home": d.sh(d.box, "echo $HOME", "-u", "user").out}


@docker("exec-input", "exec -i passes input to its end", output="through", code=0)
def exec_input(d: DockerSubject) -> Seen:
    got = d("exec", "-i", d.box, "cat", input="through\n")
    return {"output": got.out, "code": got.code}


@docker("exec-large", "4 MB through exec in both directions, every byte", same=True)
def exec_large(d: DockerSubject) -> Seen:
    data = ("0123456789abcdef" * 64 + "\n") * 4000
    return {"same": d("exec", "-i", d.box, "cat", input=data).ok().stdout == data}


@docker("exec-terminal", "exec -t: a terminal, carriage returns", output="/dev/pts/N line", returns=True)
def exec_terminal(d: DockerSubject) -> Seen:
    got = d("exec", "-t", d.box, "sh", "-c", "tty | tr '0-9' N; echo line").ok()
    return {"output": " ".join(got.out.split()), "returns": "line\r\n" in got.stdout}


@docker("exec-detached", "exec -d goes on by itself", made="detached")
def exec_detached(d: DockerSubject) -> Seen:
    d("exec", "-d", d.box, "sh", "-c", "echo detached > /tmp/detached").ok()
    got = d.sh(d.box, "i=0; until test -s /tmp/detached || test $i = 100; do i=$((i+1)); usleep 100000; done;"
               " cat /tmp/detached; rm /tmp/detached")
    return {"made": got.out}


@docker("exec-missing", "exec of a program that does not exist fails, by name", failed=True, named=True)
def exec_missing(d: DockerSubject) -> Seen:
    got = d("exec", d.box, "/no/such")
    return {"failed": got.code in (126, 127), "code": got.code, "named": "/no/such" in got.all}


@docker("exec-not-executable", "exec of a file that may not be executed: 126", code=126, reason=True)
def exec_denied(d: DockerSubject) -> Seen:
    got = d("exec", d.box, "/etc/passwd")
    return {"code": got.code, "reason": "permission denied" in got.all}


@docker("exec-bad-folder", "exec in a folder that does not exist fails, by name", failed=True, named=True)
def exec_bad_folder(d: DockerSubject) -> Seen:
    got = d("exec", "-w", "/no/folder", d.box, "true")
    return {"failed": got.code != 0, "named": "/no/folder" in got.all}


@docker("exec-parallel", "eight at once: each its own input, output and exit code", wrong="")
def exec_parallel(d: DockerSubject) -> Seen:
    box = d.box

    def one(number: int) -> str:
        got = d("exec", "-i", box, "sh", "-c", f"cat; exit {number}", input=f"input {number}\n")
        return "" if (got.code, got.stdout) == (number, f"input {number}\n") else f"{number}: {got.code} {got.all!r}"

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        return {"wrong": " ".join(filter(None, pool.map(one, range(8))))}


@docker("exec-capabilities", "exec has the container's limits: capabilities, seccomp, no new privileges, ulimits",
        limits="0000000002001000 2 1 500", cgroup="same")
def exec_limits(d: DockerSubject) -> Seen:
    fields = "; ".join(status(field) for field in ("CapBnd", "Seccomp", "NoNewPrivs"))
    groups = "test \"$(sort /proc/self/cgroup)\" = \"$(sort /proc/1/cgroup)\" && echo same"
    got = d.sh(d.dressed_box, f"{fields}; ulimit -Sn; {groups}").ok().out.split()
    return {"limits": " ".join(got[:4]), "cgroup": got[-1]}


@docker("exec-privileged", "exec --privileged has all capabilities", more=True)
def exec_privileged(d: DockerSubject) -> Seen:
    got = d.sh(d.box, status("CapEff"), "--privileged")
    if got.code:
        needs_all_capabilities(got.all)
    return {"more": int(got.ok().out, 16).bit_count() > 30}


@docker("exec-sees-container", "exec is in the container's namespaces: its processes, its files, its host name",
        same="same same", file="seen")
def exec_sees(d: DockerSubject) -> Seen:
    first = d("exec", d.box, "sh", "-c", "for n in mnt uts; do test $(readlink /proc/1/ns/$n) = "
              "$(readlink /proc/self/ns/$n) && echo same; done; echo seen > /tmp/seen").out
    return {"same": " ".join(first.split()), "file": d.sh(d.box, "cat /tmp/seen").out}


@docker("terminal-size", "exec -it on a person's terminal has its size", size="33 101", code=8)
def terminal_size(d: DockerSubject) -> Seen:
    script = "i=0; until stty size 2> /dev/null | grep . || test $i = 50; do i=$((i+1)); usleep 100000; done; exit 8"
    argv = d.docker.argv("exec", "-it", d.box, "sh", "-c", script)
    shown, code = host.on_terminal(argv, 33, 101)
    return {"size": shown.strip(), "code": code}


# --- signals and ends --------------------------------------------------------------

WAITS = "while :; do sleep 3600 & wait $!; done"


@docker("stop-start-restart", "stop asks by TERM; start and restart run the same container again, its files kept",
        status="exited", code=4, said=True, runs=3, killed=137)
def stop_start_restart(d: DockerSubject) -> Seen:
    name = d.start(f"trap 'echo bye; exit 4' TERM; echo run >> /runs; echo up; {WAITS}")
    d.logged(name, "up")
    d("stop", name).ok()
    state = d.state(name)
    said = "bye" in d("logs", name).ok().stdout
    d("start", name).ok()
    d.logged(name, "up", 2)
    d("restart", name).ok()
    d.logged(name, "up", 3)
    runs = d.sh(name, "cat /runs").ok().stdout.count("run")
    d("kill", name).ok()
    killed = d.ended(name)
    d.remove(name)
    return {"status": state["Status"], "code": state["ExitCode"], "said": said, "runs": runs, "killed": killed}


@docker("signals", "kill -s reaches the process; wait tells its exit code; --stop-signal is what stop sends",
        usr1=True, code=9, running=False)
def signals(d: DockerSubject) -> Seen:
    name = d.start(f"trap 'echo usr1' USR1; trap 'exit 9' INT; echo up; {WAITS}", "--stop-signal", "INT")
    d.logged(name, "up")
    d("kill", "-s", "USR1", name).ok()
    usr1 = "usr1" in d.logged(name, "usr1")
    with d.docker.stream("wait", name) as waiter:
        d("stop", name).ok()
        code = int(waiter.end().out)
    running = d.state(name)["Running"]
    d.remove(name)
    return {"usr1": usr1, "code": code, "running": running}


@docker("stop-deaf", "what does not end by TERM is killed when the time is over", code=137, status="exited")
def stop_deaf(d: DockerSubject) -> Seen:
    name = d.start("trap '' TERM; echo up; while :; do sleep 1; done")
    d.logged(name, "up")
    d("stop", "-t", "1", name).ok()
    state = d.state(name)
    d.remove(name)
    return {"code": state["ExitCode"], "status": state["Status"]}


@docker("remove-running", "rm -f ends and removes a running container; rm alone refuses", refused=True, gone=True)
def remove_running(d: DockerSubject) -> Seen:
    name = d.start()
    refused = d("rm", name).code != 0
    d("rm", "-f", name).ok()
    return {"refused": refused, "gone": d("inspect", name).code != 0}


@docker("restart-on-failure", "--restart on-failure:1 tries once more, then gives up", tries=2, count=1, code=3)
def restart_on_failure(d: DockerSubject) -> Seen:
    name = d.start("echo try; exit 3", "--restart", "on-failure:1")
    d.happened(name, "die", 2)
    code = d.ended(name)
    found = d.inspect(name)
    tries = d("logs", name).ok().stdout.count("try")
    d.remove(name)
    return {"tries": tries, "count": found["RestartCount"], "code": code}


@docker("restart-always", "--restart always brings a container back that has ended", runs=2, status="running", count=1)
def restart_always(d: DockerSubject) -> Seen:
    name = d.start("test -e /ran && { echo again; exec sleep 3600; }; touch /ran; exit 1", "--restart", "always")
    d.happened(name, "start", 2)
    runs = 1 + d.logged(name, "again").count("again")
    found = d.inspect(name)
    d.remove(name)
    return {"runs": runs, "status": found["State"]["Status"], "count": found["RestartCount"]}


@docker("out-of-memory", "beyond the memory limit: exit code 137, and inspect says OOMKilled", code=137, oom=True)
def out_of_memory(d: DockerSubject) -> Seen:
    name = d.start("exec dd if=/dev/zero of=/dev/null bs=64M count=1", "--memory", "48m", "--memory-swap", "48m")
    code = d.ended(name)
    oom = d.state(name)["OOMKilled"]
    d.remove(name)
    return {"code": code, "oom": oom}


@docker("healthcheck", "a health check makes it unhealthy, then healthy", seen="unhealthy healthy", streak=0)
def healthcheck(d: DockerSubject) -> Seen:
    name = d.start(f"trap 'exit 0' TERM; {WAITS}", "--health-cmd", "test -e /healthy", "--health-interval", "1s",
                   "--health-retries", "1")
    d.happened(name, "health_status", text="health_status: unhealthy")
    before = d.state(name)["Health"]["Status"]
    d.sh(name, "touch /healthy").ok()
    d.happened(name, "health_status", text="health_status: healthy")
    health = d.state(name)["Health"]
    d.remove(name)
    return {"seen": f"{before} {health['Status']}", "streak": health["FailingStreak"]}


@docker("pause", "pause stops every process, exec is refused; unpause lets them go on", status="paused", refused=True,
        silent=True, running="running", again=True)
def pause(d: DockerSubject) -> Seen:
    with d.docker.stream("exec", d.box, "sh", "-c", "while :; do echo tick; usleep 200000; done") as ticks:
        ticks.expect("tick", 2)
        d("pause", d.box).ok()
        try:
            status = d.state(d.box)["Status"]
            refused = d("exec", d.box, "true").code != 0
            ticks.until_silent()
            silent = not ticks.within(0.8)  # the time in which nothing may happen
        finally:
            d("unpause", d.box).ok()
        seen = ticks.expect("").count("tick")
        again = ticks.expect("tick", seen + 2).count("tick") > seen
    d.sh(d.box, "pkill -f '[e]cho tick'; true")
    return {"status": status, "refused": refused, "silent": silent, "running": d.state(d.box)["Status"], "again": again}


# --- what docker tells -----------------------------------------------------------------


@docker("inspect-state", "inspect: running, a process of the host, no error, a start time", state="running True 0",
        process=True, error="")
def inspect_state(d: DockerSubject) -> Seen:
    state = d.state(d.box)
    return {"state": f"{state['Status']} {state['Running']} {state['ExitCode']}", "error": state["Error"],
            "process": os.path.exists(f"/proc/{state['Pid']}"), }


@docker("inspect-network", "what inspect says of the network is what is inside", address=True, gateway=True, mac=True)
def inspect_network(d: DockerSubject) -> Seen:
    told, found = d.inspect(d.box)["NetworkSettings"], d.plain
    return {"address": found["address"] == f"{told['IPAddress']}/{told['IPPrefixLen']}",
            "gateway": found["route"] == f"{told['Gateway']} eth0", "mac": found["mac"] == told["MacAddress"]}


@docker("logs", "logs tell output and errors apart; --tail and --timestamps hold", errors="to stderr", tail="@@end",
        stamped=True)
def logs(d: DockerSubject) -> Seen:
    assert d.plain
    both = d("logs", d.box).ok()
    stamp = d("logs", "-t", "--tail", "1", d.box).ok().all
    last = d("logs", "--tail", "1", d.box).ok().all.strip()
    return {"errors": both.stderr.strip(), "tail": "@@end" if last in ("@@end", "to stderr") else last,
            "stamped": stamp[:4].isdigit() and stamp.split(" ")[0].endswith("Z")}


@docker("attach", "attach joins input and output of a running container", got=True, code=0, log="one|got hello|end")
def attach(d: DockerSubject) -> Seen:
    name = d.start("echo one; while read line; do echo got $line; break; done; echo end", "-i")
    d.logged(name, "one")
    with d.docker.stream("attach", name) as attached:
        attached.write("hello\n")
        attached.expect("end\n")
        ended = attached.end()
    log = d("logs", name).ok().stdout
    d.remove(name)
    return {"got": "got hello\nend\n" in ended.stdout, "code": ended.code, "log": "|".join(log.split("\n")[:-1])}


@docker("top", "top names the container's processes", titles="UID PID PPID C STIME TTY TIME CMD", first=True,
        children=True)
def top(d: DockerSubject) -> Seen:
    rows = d("top", d.box).ok().stdout.splitlines()
    pid = str(d.state(d.box)["Pid"])
    return {"titles": " ".join(rows[0].split()), "first": any(pid in row.split()[:2] for row in rows[1:]),
            "children": any("sleep 3600" in row and " sh -c " not in row for row in rows[1:])}


@docker("stats", "stats: memory and processes of the container, its limit", memory=True, limit="128MiB", processes=True)
def stats(d: DockerSubject) -> Seen:
    said = json.loads(d("stats", "--no-stream", "--format", "{{json .}}", d.dressed_box).ok().stdout)
    used, _, limit = said["MemUsage"].partition(" / ")
    return {"memory": not used.startswith("0B"), "limit": limit if limit == "128MiB" else "the host's memory",
            "processes": 1 <= int(said["PIDs"]) < 10}


@docker("update", "update changes limits of a running container, as seen inside and by inspect",
        inside=f"{160 << 20} 75000 66", told=160 << 20)
def update(d: DockerSubject) -> Seen:
    name = d.dressed_box
    assert d.dressed
    d("update", "--memory", "160m", "--memory-swap", "160m", "--cpus", "0.75", "--pids-limit", "66", name).ok()
    inside = d.sh(name, f"({MEMORY}); ({CPU}); ({PIDS})").ok().out.split()
    told = d.inspect(name)["HostConfig"]["Memory"]
    d("update", "--memory", "128m", "--memory-swap", "128m", "--cpus", "0.5", "--pids-limit", "77", name).ok()
    return {"inside": " ".join(inside), "told": told}


@docker("rename", "rename of a running container", name=True, exec="in")
def rename(d: DockerSubject) -> Seen:
    new = f"renamed-{d.runtime}"
    box = d.box
    d("rename", box, new).ok()
    try:
        return {"name": d.inspect(new)["Name"] == f"/{new}", "exec": d.sh(new, "echo in").out}
    finally:
        d("rename", new, box).ok()


# --- files -----------------------------------------------------------------------------


@docker("copy", "cp of files and folders into and out of a running container, owners kept", inside="from the host",
        outside="from the host\nmore", owner="0 0 640", folder="deep")
def copy(d: DockerSubject) -> Seen:
    place: Path = d.docker.folder / f"copy-{d.runtime}"
    (place / "sub").mkdir(parents=True)
    (place / "file").write_text("from the host\n")
    (place / "file").chmod(0o640)
    (place / "sub/deep").write_text("deep\n")
    d("cp", str(place / "file"), f"{d.box}:/etc/copied").ok()
    d("cp", str(place / "sub"), f"{d.box}:/opt").ok()
    got = sections(d.sh(d.box, script(read="cat /etc/copied", owner="stat -c '%u %g %a' /etc/copied",
                                      folder="cat /opt/deep; echo more >> /etc/copied")).ok().stdout)
    d("cp", f"{d.box}:/etc/copied", str(place / "back")).ok()
    return {"inside": got["read"], "owner": got["owner"], "folder": got["folder"],
            "outside": (place / "back").read_text().strip()}


@docker("diff-commit-export", "diff, commit and export see what the container changed",
        diff="A /d|A /made|D /etc/os-release", image="made|gone", export="made")
def diff_commit_export(d: DockerSubject) -> Seen:
    image = f"made-{d.runtime}:test"
    d.sh(d.box, "echo made > /made; rm -f /etc/os-release; mkdir -p /d").ok()
    changes = set(d("diff", d.box).ok().stdout.splitlines())
    wanted = {"A /made", "A /d", "D /etc/os-release"}
    d("commit", d.box, image).ok()
    try:
        check = "cat /made; test -e /etc/os-release || echo gone"
        got = d("run", "--rm", "--runtime", d.entry, image, "sh", "-c", check).ok()
    finally:
        d("rmi", image).ok()
    tar = d.docker.folder / f"export-{d.runtime}.tar"
    d("export", "-o", str(tar), d.box).ok()
    exported = host.run(["tar", "-xOf", str(tar), "made"]).ok().out
    tar.unlink()
    return {"diff": "|".join(sorted(wanted & changes)),
            "image": "|".join(got.out.split()), "export": exported}
