"""Any process is killed at any point: the next delete --force, or cleanup, leaves nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import leaks
from harness.bundle import Bundle
from harness.netns import NetworkNamespace
from harness.oci import Oci
from harness.proc import environment, run
from harness.sandbox import Parts, assert_nothing_left, kill
from harness.wait import alive, eventually, process_end

pytestmark = pytest.mark.vm_only


def begin(oci: Oci, bundle: Bundle, id: str, *verb: str) -> subprocess.Popen[bytes]:
    """A verb on its own, so that its death leaves orphans to nobody in particular."""
    argv = oci.argv(*(verb or ("create",)), "--bundle", str(bundle.path), id)
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                            env=environment(), start_new_session=True)


def tidy(oci: Oci, id: str, how: str) -> None:
    if how == "cleanup":
        result = oci.verb("cleanup").ok()
        assert "failed" not in result.stdout, result
    else:
        oci.verb("delete", "--force", id).ok()
        oci.verb("cleanup").ok()  # records that had no id yet are nobody's


MOMENTS: dict[str, Callable[[Parts], bool]] = {
    "first folder": lambda p: p.root.exists() and any(n.startswith((".new", p.id)) for n in os.listdir(p.root)),
    "record": lambda p: (p.root / p.id / "state.json").exists(),
    "sandbox folder": lambda p: p.folder.exists(),
    "sandbox record": lambda p: (p.folder / "sandbox.json").exists(),
    "proxy socket": lambda p: (p.folder / "proxy.sock").exists(),
    "proxy": lambda p: bool(p.record()["proxy"]),
    "shim": lambda p: bool(p.state()["pid"]),
    "machine": lambda p: bool(p.record()["qemu"]),
    "making": lambda p: p.id in p.record()["containers"],
    "created": lambda p: p.state()["status"] == "created",
}


@pytest.mark.parametrize("how", ["delete", "cleanup"])
@pytest.mark.parametrize("moment", list(MOMENTS))
def test_creator_killed(oci: Oci, moment: str, how: str) -> None:
    """The verb that creates is killed as soon as something of it appears."""
    bundle, id = oci.bundle().write(), oci.new_id()
    parts = Parts(oci.root, id)
    verb = begin(oci, bundle, id)
    eventually(f"the creation to reach: {moment}", lambda: MOMENTS[moment](parts), 60, 0.0005)
    verb.kill()
    verb.wait()
    if how == "cleanup" and os.path.exists(oci.root / id):
        # What got far enough to be whole is its engine's: its status says so.
        status = json.loads(oci.verb("state", id).ok().stdout)["status"]
        if status != "stopped":
            how = "delete"
    tidy(oci, id, how)
    assert_nothing_left(oci.root, id, (str(bundle.path),))


@pytest.mark.parametrize("how", ["delete", "cleanup"])
def test_everything_killed(oci: Oci, how: str) -> None:
    """Verb, proxy, shim and QEMU at once, in the middle of a creation."""
    bundle, id = oci.bundle().write(), oci.new_id()
    parts = Parts(oci.root, id)
    verb = begin(oci, bundle, id)
    qemu = parts.await_recorded("qemu")
    for pid in (verb.pid, parts.proxy, parts.await_recorded("shim"), qemu):
        kill(pid, "a part")
    verb.wait()
    tidy(oci, id, how)
    assert_nothing_left(oci.root, id, (str(bundle.path),))


def test_id_can_be_used_again(oci: Oci) -> None:
    """After a crash and delete --force the same id makes a new container."""
    bundle, id = oci.bundle("echo again").write(), oci.new_id()
    parts = Parts(oci.root, id)
    verb = begin(oci, bundle, id)
    eventually("the sandbox's folder", parts.folder.exists, 60, 0.0005)
    verb.kill()
    verb.wait()
    oci.verb("delete", "--force", id).ok()
    assert oci.run(bundle, id=id).ok().out == "again"


@pytest.mark.parametrize("victims", [("qemu",), ("proxy", "qemu"), ("qemu", "shim"), ("proxy", "shim"),
                                     ("proxy", "shim", "qemu")], ids="+".join)
def test_parts_killed(oci: Oci, victims: tuple[str, ...]) -> None:
    """Whoever is killed while the container runs: it is stopped at once, its exit code is 137, delete works."""
    with oci.running(oci.bundle()) as c:
        parts = Parts(oci.root, c.id)
        pids = {name: getattr(parts, name) for name in ("proxy", "qemu", "shim")}
        assert "created" not in c.status
        for name in victims:
            os.kill(pids[name], signal.SIGKILL)
        for name in victims:
            process_end(pids[name], name, 5)
        began = time.monotonic()
        if "shim" not in victims:
            assert c.wait(15) == 137
            assert time.monotonic() - began < 5
        eventually("the container stopped", lambda: c.status == "stopped", 10)
        assert c.exec("true").rc != 0
        assert "running" in c.kill("TERM").fails().stderr
        c.delete().ok()
        c.assert_gone()
        assert_nothing_left(oci.root, c.id)


def test_shim_killed(oci: Oci) -> None:
    """The process in the guest dies with its host pid; others in the container's sandbox do not notice."""
    pod = oci.bundle()
    pod.config["annotations"] = {"io.kubernetes.cri.container-type": "sandbox"}
    with oci.running(pod) as sandbox:
        member = oci.bundle()
        member.config["annotations"] = {"io.kubernetes.cri.container-type": "container",
                                        "io.kubernetes.cri.sandbox-id": sandbox.id}
        with oci.running(member) as c:
            execed = c.exec_detached("sleep", "987")
            shim = int(execed.pid_file.read_text())
            assert "sleep 987" in oci.verb("ps", c.id).ok().stdout
            kill(shim, "the exec's shim")
            eventually("its process to be gone", lambda: "sleep 987" not in oci.verb("ps", c.id).ok().stdout, 20, 0.3)
            kill(c.pid, "the container's shim")
            eventually("the container stopped", lambda: c.status == "stopped", 10)
            assert sandbox.exec("echo", "alive").ok().out == "alive"
            c.delete().ok()


# --- a guest that hangs -------------------------------------------------------------------


def test_hung_guest(oci: Oci) -> None:
    """QEMU is stopped: verbs say what they waited for, kill -9 and delete --force do their work all the same."""
    with oci.running(oci.bundle()) as c:
        parts = Parts(oci.root, c.id)
        os.kill(parts.qemu, signal.SIGSTOP)
        began = time.monotonic()
        failed = oci.verb("ps", c.id).fails(1)
        assert time.monotonic() - began < 50
        assert "agent did not answer ListProcesses within" in failed.stderr, failed
        began = time.monotonic()
        c.kill("KILL").ok()
        assert c.wait(5) == 137
        assert time.monotonic() - began < 20
        eventually("the container stopped", lambda: c.status == "stopped", 5)


def test_hung_guest_deleted(oci: Oci) -> None:
    with oci.running(oci.bundle()) as c:
        os.kill(Parts(oci.root, c.id).qemu, signal.SIGSTOP)
        began = time.monotonic()
        c.delete("--force").ok()
        assert time.monotonic() - began < 25
        c.assert_gone()


def test_hung_proxy_deleted(oci: Oci) -> None:
    """A proxy that does not answer is ended after a while, with its machine."""
    with oci.running(oci.bundle()) as c:
        os.kill(Parts(oci.root, c.id).proxy, signal.SIGSTOP)
        began = time.monotonic()
        c.delete("--force").ok()
        assert time.monotonic() - began < 60
        c.assert_gone()
        assert_nothing_left(oci.root, c.id)


# --- a namespace that outlives the sandbox ------------------------------------------------


@pytest.mark.parametrize("victims", [(), ("qemu",), ("proxy",), ("proxy", "qemu"), ("proxy", "qemu", "shim")],
                         ids=lambda v: "+".join(v) or "nobody")
def test_engines_network_is_left_clean(oci: Oci, wired: NetworkNamespace, victims: tuple[str, ...]) -> None:
    """Filters, taps and settings go from a namespace that stays, whoever was killed; another sandbox can use it."""
    bundle = oci.bundle().in_network(wired.path)
    with oci.running(bundle) as c:
        assert "ingress" in wired.run("tc", "qdisc", "show", "dev", "eth0").stdout
        parts = Parts(oci.root, c.id)
        pids = {name: getattr(parts, name) for name in ("proxy", "qemu", "shim")}
        for name in victims:
            os.kill(pids[name], signal.SIGKILL)
        for name in victims:
            process_end(pids[name], name, 5)
        c.delete("--force").ok()
        assert "ingress" not in wired.run("tc", "qdisc", "show").stdout
        assert "kata" not in wired.run("ip", "link").stdout
        assert wired.run("sysctl", "-n", "net.ipv4.conf.eth0.arp_ignore").out == "0"
        c.assert_gone()


# --- the factory --------------------------------------------------------------------------


def template_config(oci: Oci, folder: Path) -> str:
    folder.mkdir()
    config = folder / "configuration.toml"
    config.write_text(f'[factory]\nenable_template = true\ntemplate_path = "{folder}/template"\n')
    return str(config)


def test_factory_killed(oci: Oci) -> None:
    """Its machine dies with it; cleanup removes what it had written; a later factory makes the template."""
    folder = oci.run_dir / "factory"
    config = template_config(oci, folder)
    verb = subprocess.Popen(oci.argv("--kata-config", config, "factory", "init"), env=environment(),
                            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def machines() -> list[int]:
        found = []
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                line = Path(f"/proc/{entry}/cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if "qemu" in line.partition("\0")[0] and f"{folder}/template" in line and alive(int(entry)):
                found.append(int(entry))
        return found

    (machine,) = eventually("the factory's machine", machines, 30, 0.01)
    status = Path(f"/proc/{machine}/status").read_text()
    factory = int(status.partition("PPid:")[2].split()[0])
    kill(factory, "the factory")
    process_end(machine, "the factory's machine", 5)
    assert verb.wait(10) != 0
    assert list((folder / "template").glob("*.making"))
    assert "unfinished" in oci.verb("--kata-config", config, "cleanup").ok().stdout
    assert not list((folder / "template").glob("*.making"))


def test_damaged_template(oci: Oci) -> None:
    """A saved state that does not load: the machine boots instead."""
    folder = oci.run_dir / "damaged"
    config = template_config(oci, folder)
    oci.verb("--kata-config", config, "factory", "init", timeout=90).ok()
    (state,) = (folder / "template").glob("*/state")
    with open(state, "r+b") as f:
        f.truncate(state.stat().st_size // 2)
    bundle, id = oci.bundle("echo works"), oci.new_id()
    argv = oci.argv("--kata-config", config, "run", "--bundle", str(bundle.write().path), id)
    result = run(*argv, timeout=90).ok()
    assert result.out == "works"
    assert_nothing_left(oci.root, id, (str(bundle.path),))
    assert not leaks.mounts([str(folder)])


# --- verbs that are told to end, and verbs at the same time -------------------------------


@pytest.mark.parametrize("moment", ["record", "proxy", "machine"])
def test_creator_told_to_end(oci: Oci, moment: str) -> None:
    """SIGTERM while it creates: it undoes what it has made, itself."""
    bundle, id = oci.bundle().write(), oci.new_id()
    parts = Parts(oci.root, id)
    verb = begin(oci, bundle, id)
    eventually(f"the creation to reach: {moment}", lambda: MOMENTS[moment](parts), 60, 0.0005)
    verb.terminate()
    assert verb.wait(60) == 128 + signal.SIGTERM
    assert_nothing_left(oci.root, id, (str(bundle.path),))


def test_deletes_at_the_same_time(oci: Oci) -> None:
    with oci.running(oci.bundle()) as c:
        verbs = [subprocess.Popen(oci.argv("delete", "--force", c.id), env=environment(), stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for _ in range(3)]
        said = [(verb.communicate(timeout=90)[0].decode(), verb.returncode) for verb in verbs]
        assert [code for _text, code in said] == [0, 0, 0], said
        c.assert_gone()


@pytest.mark.parametrize("delay", [0.05, 0.1, 0.2, 0.4, 0.8])
def test_deleter_killed(oci: Oci, delay: float) -> None:
    """The verb that deletes is killed on its way; the next one finishes."""
    with oci.running(oci.bundle()) as c:
        verb = subprocess.Popen(oci.argv("delete", "--force", c.id), env=environment(), stdin=subprocess.DEVNULL,
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(delay)  # whatever it is at then
        verb.kill()
        verb.wait()
        c.delete("--force").ok()
        oci.verb("cleanup").ok()
        c.assert_gone()
        assert_nothing_left(oci.root, c.id)


def test_foreground_verbs_killed(oci: Oci) -> None:
    """Who runs a process in the foreground is killed: an exec's process dies with it, a container lives on."""
    bundle, id = oci.bundle().write(), oci.new_id()
    parts = Parts(oci.root, id)
    runner = begin(oci, bundle, id, "run")
    eventually("the container running", lambda: parts.state()["status"] == "running")
    verb = subprocess.Popen(oci.argv("exec", id, "sleep", "987"), env=environment(), stdin=subprocess.DEVNULL,
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    eventually("the exec to run", lambda: "sleep 987" in oci.verb("ps", id).ok().stdout, 30, 0.3)
    verb.kill()
    verb.wait()
    eventually("its process to be gone", lambda: "sleep 987" not in oci.verb("ps", id).ok().stdout, 30, 0.3)
    runner.kill()
    runner.wait()
    assert json.loads(oci.verb("state", id).ok().stdout)["status"] == "running"
    oci.verb("delete", "--force", id).ok()
    assert_nothing_left(oci.root, id, (str(bundle.path),))


def test_cleanup_leaves_what_it_cannot_see(oci: Oci) -> None:
    """Records on a mount of another namespace: the sandbox is not an orphan."""
    root = oci.work_dir / "apart"
    root.mkdir()
    bundle, id = oci.bundle("sleep 1000").write(), oci.new_id()
    kata = [oci.runtime.path, "--root", str(root)]
    script = (f'mount -t tmpfs none {root} && "$@" run -d --bundle {bundle.path} {id} </dev/null >/dev/null 2>&1;'
              f' echo $?; read go; "$@" exec {id} echo lives; "$@" delete --force {id}; echo $?')
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *kata]
    with subprocess.Popen(argv, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as apart:
        assert apart.stdin and apart.stdout
        assert apart.stdout.readline() == "0\n"
        said = oci.verb("cleanup").ok().stdout
        assert apart.communicate("go\n", timeout=60)[0] == "lives\n0\n", said


def test_cleanup_of_a_sandbox_without_records(oci: Oci) -> None:
    """The root of its records was removed, not only from sight: it is nobody's."""
    root = oci.work_dir / "removed"
    parts = Parts(root, oci.new_id())
    with oci.container(oci.bundle()) as c:
        argv = [oci.runtime.path, "--root", str(root), "run", "--detach", "--bundle", str(c.bundle.path), parts.id]
        subprocess.run(argv, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL, timeout=60, check=True)
        shutil.rmtree(root)
        assert parts.key in oci.verb("cleanup").ok().stdout
    eventually("its processes to be gone", lambda: not parts.processes(), 15)
    assert_nothing_left(root, parts.id)
