"""exec: all its options, errors, many at once."""

from __future__ import annotations

import concurrent.futures
import json
import os

import pytest

from harness.oci import Container, Oci
from harness.text import compare, mask, script, sections, status
from harness.wait import eventually, process_end


def test_options_of_exec(shared: Container) -> None:
    """--cwd --env --user --additional-gids --cap --no-new-privs, and what exec takes from the container."""
    checks = script(
        cwd="pwd",
        env="echo $TERM $A $B",
        id="id -u; id -g; id -G",
        eff=status("CapEff"),
        bnd=status("CapBnd"),
        nnp=status("NoNewPrivs"),
        nofile="ulimit -n",
        hostname="hostname",
        pids="cat /proc/1/comm",
    )
    options = ["--cwd", "/tmp", "--env", "A=1 2", "--env", "B=x=y", "--user", "1000:100"]
    options += ["--additional-gids", "29", "--additional-gids", "44", "--no-new-privs"]
    got = sections(shared.sh(checks, options=options).ok().stdout)
    compare(
        got,
        {
            "cwd": "/tmp", "env": "xterm 1 2 x=y", "id": "1000\n100\n100 29 44", "eff": mask(0), "nnp": "1",
            "nofile": "1024", "hostname": "guest", "pids": "sh",
        },
    )  # fmt: skip
    root = sections(shared.sh(checks).ok().stdout)
    compare(root, {"cwd": "/", "id": "0\n0\n0", "nnp": "0", "eff": root["bnd"]})
    more = sections(shared.sh(checks, options=["--cap", "CAP_SYS_TIME"]).ok().stdout)
    assert int(more["eff"], 16) & 1 << 25, more
    number = sections(shared.sh(checks, options=["--user", "1000"]).ok().stdout)
    compare(number, {"id": lambda v: v.startswith("1000\n0")})


def test_process_file(oci: Oci, shared: Container) -> None:
    """--process: a whole process object from a file, as engines give it."""
    path = oci.run_dir / "process.json"
    process = {
        "args": [
            "/bin/sh",
            "-c",
            script(id="id -u; id -G", cwd="pwd", env="env | sort", umask="umask", nofile="ulimit -n"),
        ],
        "env": ["PATH=/bin", "ONLY=this"],
        "cwd": "/home/user",
        "user": {"uid": 1000, "gid": 1000, "additionalGids": [44]},
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 555, "soft": 444}],
        "capabilities": {"bounding": ["CAP_KILL"]},
        "noNewPrivileges": True,
    }
    path.write_text(json.dumps(process))
    got = sections(shared.oci.verb("exec", "--process", str(path), shared.id).ok().stdout)
    compare(
        got,
        {
            "id": "1000\n1000 44",
            "cwd": "/home/user",
            "nofile": "444",
            "env": lambda v: set(v.split()) - {"PWD=/home/user", "SHLVL=1", "HOME=/home/user"}
            == {"PATH=/bin", "ONLY=this"},
        },
    )  # fmt: skip
    for text in ("", "{", "[]", '{"args": "x"}', '{"args": []}'):
        path.write_text(text)
        refused = shared.oci.verb("exec", "--process", str(path), shared.id, timeout=15).fails()
        assert refused.stderr.strip() and "Traceback" not in refused.stderr, refused
    path.unlink()


def test_refused_exec(shared: Container) -> None:
    """Errors of exec name the program, and the container goes on."""
    for program, text in (("/nosuch", "no such file"), ("nosuch", "not found"), ("/etc/passwd", "denied")):
        result = shared.exec(program).fails()
        assert program in result.stderr and text in result.stderr.lower(), result
    assert "/nosuch/x" in shared.exec("true", options=["--cwd", "/nosuch/x"]).fails().stderr
    assert shared.status == "running"


def test_detach(shared: Container) -> None:
    """exec --detach returns at once; the process lives and is listed; its end is its own."""
    launch = shared.exec_detached("sleep", "4321")
    listed = shared.oci.verb("ps", shared.id).ok().stdout
    assert "sleep 4321" in listed, listed
    pid = int(launch.pid_file.read_text())
    os.kill(pid, 15)
    assert launch.exit_code() == 143
    launch.gone()


def test_ps(shared: Container) -> None:
    """ps: a table with arguments of ps, and pids as JSON."""
    table = shared.oci.verb("ps", shared.id).ok().stdout.splitlines()
    assert "PID" in table[0].split() and len(table) >= 2, table
    pids = json.loads(shared.oci.verb("ps", "--format", "json", shared.id).ok().stdout)
    assert isinstance(pids, list) and pids and all(isinstance(p, int) for p in pids), pids
    oci = shared.oci
    own = oci.verb("ps", shared.id, "-o", "pid,args").ok().stdout.splitlines()
    assert own[0].split()[0] == "PID" and any("sleep" in line for line in own[1:]), own
    oci.verb("ps", "--format", "yaml", shared.id).fails()


def test_twenty_at_once(shared: Container) -> None:
    """Twenty exec in parallel, each with its own input, output and exit code."""

    def one(number: int) -> None:
        text = f"input {number}\n" * 1000
        result = shared.sh(f"cat; echo err{number} >&2; exit {number}", input=text)
        assert result.rc == number, result
        assert result.stdout == text
        assert result.stderr == f"err{number}\n"

    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        for future in [pool.submit(one, n) for n in range(20)]:
            future.result()
    assert shared.status == "running"


def test_many_in_a_row(shared: Container) -> None:
    """Fifty exec one after another leave nothing in the container."""
    before = shared.sh("ls /proc | grep -c '^[0-9]'").ok().out
    for number in range(50):
        assert shared.exec("echo", str(number)).ok().out == str(number)
    assert shared.sh("ls /proc | grep -c '^[0-9]'").ok().out == before


def test_orphans_are_reaped_by_pid_1(shared: Container) -> None:
    """A grandchild that outlives its exec belongs to the container's first process."""
    shared.sh("sh -c 'sleep 0.2' & exit 0").ok()
    eventually("no process left", lambda: shared.sh("pgrep -f 'sleep 0.2' | wc -l").ok().out == "0", 20)


def test_end_of_the_container_ends_exec(oci: Oci) -> None:
    """When pid 1 ends, exec processes die by KILL, and their verbs end too."""
    with oci.running(oci.bundle()) as c:
        launch = c.exec_detached("sleep", "3600")
        c.kill("KILL").ok()
        assert c.wait() == 137
        assert launch.exit_code(20) == 137
        launch.gone()


def test_exec_of_created(oci: Oci) -> None:
    """exec before start: allowed by runc; its process runs beside the waiting first one."""
    with oci.created(oci.bundle()) as c:
        result = c.exec("echo", "early")
        assert (result.rc, result.out) == (0, "early") or (result.rc == 1 and result.stderr.strip()), result
        assert c.status == "created"


@pytest.mark.parametrize("sig", ["TERM", "KILL"])
def test_signal_of_foreground_exec(shared: Container, sig: str) -> None:
    """A signal to the exec verb (or its death) reaches the process inside."""
    import signal
    import subprocess

    from harness.proc import environment

    mark = f"77{len(sig)}{os.getpid() % 10000}"
    argv = shared.oci.argv("exec", shared.id, "sh", "-c", f"echo up; exec sleep {mark}")
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment())
    assert process.stdout and process.stdout.readline() == b"up\n"
    if sig == "KILL":
        pytest.skip("runc leaves the process of a killed exec running") if not shared.oci.runtime.is_vm else None
    process.send_signal(getattr(signal, f"SIG{sig}"))
    code = process.wait(20)
    assert code == (143 if sig == "TERM" else -9)
    if sig == "TERM":
        eventually("its end inside", lambda: shared.sh(f"pgrep -x -f 'sleep {mark}'").rc != 0, 20)
    process_end(process.pid, "exec")
