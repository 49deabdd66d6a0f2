"""Pods by containerd's CRI, as a kubelet makes them: sandbox, containers, exec, logs, limits, ends."""

from __future__ import annotations

from functools import partial
from typing import Any

from kata.conformance.case import Seen, case
from kata.conformance.cases.docker_fixtures import MEMORY, fetch
from kata.conformance.engines.cri import CONTAINER, EXITED, NODE, RUNNING, Cri, Pod
from kata.conformance.engines.host import SLEEP
from kata.conformance.engines.sections import script, sections, status
from kata.conformance.shared import shared
from kata.errors import KataError

cri = partial(case, "cri")


class CriSubject:
    """One subject under CRI, with a pod that its cases share."""

    def __init__(self, cri: Cri, runtime: str) -> None:
        self.cri, self.runtime = cri, runtime
        self._pods: list[Pod] = []

    def pod(self, **config: Any) -> Pod:
        """A pod that is removed with the subject's side, if not before."""
        pod = Pod(self.cri, self.runtime, **config)
        self._pods.append(pod)
        return pod

    def end(self, pod: Pod) -> None:
        self._pods.remove(pod)
        pod.remove()

    def close(self) -> None:
        for pod in list(self._pods):
            self.end(pod)

    @property
    def shared(self) -> Pod:
        """A pod with labels, annotations, DNS and a sysctl."""
        return shared(self, "pod", lambda: self.pod(
            labels={"app": "test"}, annotations={"example.org/note": "kept"},
            dns_config={"servers": ["10.1.1.1"], "searches": ["lan.test"], "options": ["ndots:3"]},
            linux={"sysctls": {"net.core.somaxconn": "777"},
                   "security_context": {"namespace_options": {"pid": CONTAINER}}},
        ))  # fmt: skip

    @property
    def server(self) -> str:
        serve = f"mkdir -p /www; echo served > /www/name; httpd -p 80 -h /www; echo up; echo err >&2; {SLEEP}"
        return shared(self, "server", lambda: self.shared.start("server", serve))

    @property
    def other(self) -> str:
        """A second container, with limits and a security context."""
        found = script(user="id -u; id -g; id -G", cap=status("CapBnd"), nnp=status("NoNewPrivs"), memory=MEMORY,
                       readonly="touch /x 2>&1 | grep -o 'Read-only.*'", env="echo $A; pwd")
        return shared(self, "other", lambda: self.shared.start(
            "other", f"{found}\necho '@@end'; {SLEEP}", envs=[{"key": "A", "value": "b"}], working_dir="/tmp",
            linux={"resources": {"memory_limit_in_bytes": 64 << 20, "cpu_quota": 50000, "cpu_period": 100000},
                   "security_context": {
                       "namespace_options": {"pid": CONTAINER}, "run_as_user": {"value": 1000},
                       "run_as_group": {"value": 100}, "supplemental_groups": [44], "readonly_rootfs": True,
                       "no_new_privs": True, "capabilities": {"drop_capabilities": ["ALL"],
                                                              "add_capabilities": ["NET_ADMIN"]}}},
        ))  # fmt: skip

    def found(self) -> dict[str, str]:
        """What the second container found when it started."""
        self.shared.exec(self.other, "until grep -q '^SigCgt.*[4-7c-f]...$' /proc/1/status; do usleep 50000; done")
        return sections("\n".join(line.partition(" ")[2] for line in self.shared.log("other")))


@cri("pod-status", "a pod is ready, has an address, labels, annotations and its runtime handler", state=0, address=True,
     labels="test", note="kept", handler=True)
def pod_status(s: CriSubject) -> Seen:
    told = s.shared.sandbox()
    return {"state": told["state"], "address": told["network"]["ip"].startswith("10.88.7."),
            "labels": told["labels"].get("app"), "note": told["annotations"].get("example.org/note"),
            "handler": told["runtime_handler"] == s.runtime}


@cri("container-status", "a container runs; its status says so", state=RUNNING, exit=0)
def container_status(s: CriSubject) -> Seen:
    told = s.shared.status(s.server)
    return {"state": told["state"], "exit": told["exit_code"]}


@cri("exec-sync", "ExecSync: exit code, output and errors apart", code=4, output="podhost", errors="err")
def exec_sync(s: CriSubject) -> Seen:
    code, out, err = s.shared.exec(s.server, "hostname; echo err >&2; exit 4")
    return {"code": code, "output": out.strip(), "errors": err.strip()}


@cri("exec-missing", "ExecSync of a program that does not exist is an error, by name", named=True)
def exec_missing(s: CriSubject) -> Seen:
    try:
        s.cri("ExecSync", container_id=s.server, cmd=["/no/such"], timeout=30)
    except KataError as e:
        return {"named": "/no/such" in str(e)}
    return {"named": "no error"}


@cri("logs", "the log has every line of output and errors, told apart", lines="stderr err|stdout up")
def logs(s: CriSubject) -> Seen:
    s.shared.exec(s.server, "until grep -q '^SigCgt.*[4-7c-f]...$' /proc/1/status; do usleep 50000; done")
    return {"lines": "|".join(sorted(s.shared.log("server")))}


@cri("pod-network", "the containers of a pod share address and loopback", served="served", same=True, told=True)
def pod_network(s: CriSubject) -> Seen:
    look = "ip -o -4 addr show eth0 | awk '{ print $4 }'"
    one, two = (s.shared.exec(id, look)[1].strip() for id in (s.server, s.other))
    return {"served": s.shared.exec(s.other, fetch("127.0.0.1"))[1].strip(), "same": one == two != "",
            "told": one.startswith(s.shared.sandbox()["network"]["ip"] + "/")}


@cri("pod-ipc-uts", "the containers of a pod share /dev/shm and the host name", shm="x", name="podhost")
def pod_ipc(s: CriSubject) -> Seen:
    s.shared.exec(s.server, "echo x > /dev/shm/shared; chmod 666 /dev/shm/shared")
    code, out, _ = s.shared.exec(s.other, "cat /dev/shm/shared; hostname")
    return {"shm": out.split()[0] if code == 0 and out else "", "name": out.split()[-1] if out else ""}


@cri("pod-pid-own", "with a pid namespace per container each has its own pid 1", first="1 1")
def pod_pid(s: CriSubject) -> Seen:
    look = "tr '\\0' ' ' < /proc/1/cmdline | grep -c '/bin/sh -c'"
    return {"first": " ".join(s.shared.exec(id, look)[1].strip() for id in (s.server, s.other))}


@cri("pod-kernel", "the containers of a pod are on one kernel", same=True)
def pod_kernel(s: CriSubject) -> Seen:
    boots = {s.shared.exec(id, "cat /proc/sys/kernel/random/boot_id")[1] for id in (s.server, s.other)}
    return {"same": len(boots) == 1}


@cri("pod-dns", "the pod's DNS configuration is in resolv.conf",
     resolver="nameserver 10.1.1.1|options ndots:3|search lan.test")
def pod_dns(s: CriSubject) -> Seen:
    return {"resolver": "|".join(sorted(s.shared.exec(s.server, "cat /etc/resolv.conf")[1].strip().splitlines()))}


@cri("pod-sysctl", "a sysctl of the pod holds in its containers", sysctl="777")
def pod_sysctl(s: CriSubject) -> Seen:
    return {"sysctl": s.shared.exec(s.server, "cat /proc/sys/net/core/somaxconn")[1].strip()}


@cri("security-context", "user, groups, capabilities, no new privileges, a root that cannot be written",
     user="1000|100|100 29 44", capabilities="0000000000001000", nnp="1", readonly="Read-only file system",
     env="b|/tmp")
def security_context(s: CriSubject) -> Seen:
    got = s.found()
    return {"user": "|".join(got["user"].splitlines()), "capabilities": got["cap"], "nnp": got["nnp"],
            "readonly": got["readonly"], "env": "|".join(got["env"].splitlines())}


@cri("memory-limit", "a container's memory limit holds inside", limit=str(64 << 20))
def memory_limit(s: CriSubject) -> Seen:
    return {"limit": s.found()["memory"]}


@cri("memory-update", "UpdateContainerResources changes the limit of a running container", limit=str(80 << 20))
def memory_update(s: CriSubject) -> Seen:
    s.cri("UpdateContainerResources", container_id=s.other, linux={"memory_limit_in_bytes": 80 << 20})
    return {"limit": s.shared.exec(s.other, MEMORY)[1].strip()}


@cri("stats", "ContainerStats tells of processor time and memory", cpu=True, memory=True)
def stats(s: CriSubject) -> Seen:
    told = s.cri("ContainerStats", container_id=s.server)["stats"]
    return {"cpu": int(told["cpu"]["usage_core_nano_seconds"]["value"]) > 0,
            "memory": int(told["memory"]["working_set_bytes"]["value"]) > 0}


@cri("container-exit", "a container's exit code and reason; the pod and its other containers go on", state=EXITED,
     code=7, reason="Error", pod=0, rest=RUNNING)
def container_exit(s: CriSubject) -> Seen:
    id = s.shared.start("ends", f"trap 'exit 7' TERM; echo up; {SLEEP.partition(';')[2]}")
    s.shared.exec(id, "until grep -q '^SigCgt.*[4-7c-f]...$' /proc/1/status; do usleep 50000; done")
    s.cri("StopContainer", container_id=id, timeout=30)
    told = s.shared.status(id)
    s.cri("RemoveContainer", container_id=id)
    return {"state": told["state"], "code": told["exit_code"], "reason": told["reason"],
            "pod": s.shared.sandbox()["state"], "rest": s.shared.status(s.server)["state"]}


@cri("container-again", "a container with a new attempt takes the place of one that was removed",
     code=0, output="again")
def container_again(s: CriSubject) -> Seen:
    ids = []
    for attempt in (0, 1):
        id = s.shared.start(f"again{attempt}")
        code, out, _ = s.shared.exec(id, "echo again")
        ids.append((code, out.strip()))
        s.cri("StopContainer", container_id=id, timeout=0)
        s.cri("RemoveContainer", container_id=id)
    return {"code": ids[1][0], "output": ids[1][1]}


@cri("program-missing", "a container whose program does not exist does not start, by name", named=True)
def program_missing(s: CriSubject) -> Seen:
    id = s.shared.create("missing", command=["/no/such"])
    try:
        s.cri("StartContainer", container_id=id)
    except KataError as e:
        return {"named": "/no/such" in str(e)}
    finally:
        s.cri("RemoveContainer", container_id=id)
    return {"named": "no error"}


@cri("host-network", "a pod on the host's network is made, or refused by name", result="made")
def host_network(s: CriSubject) -> Seen:
    try:
        pod = s.pod(hostname="", linux={"security_context": {"namespace_options": {"network": NODE, "pid": CONTAINER}}})
    except KataError as e:
        text = str(e)
        named = "network" in text and "host" in text
        return {"result": "refused by name" if named else f"failed without a reason: {text}"}
    s.end(pod)
    return {"result": "made"}


@cri("pod-stop-remove", "StopPodSandbox ends the pod's containers; RemovePodSandbox removes all", state=1,
     container=EXITED, gone=True)
def pod_stop(s: CriSubject) -> Seen:
    pod = s.shared
    server = s.server
    s.cri("StopPodSandbox", pod_sandbox_id=pod.id)
    state, container = pod.sandbox()["state"], pod.status(server)["state"]
    s.end(pod)
    try:
        pod.sandbox()
    except KataError:
        return {"state": state, "container": container, "gone": True}
    return {"state": state, "container": container, "gone": False}
