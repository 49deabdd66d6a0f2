"""Make containers: the verb's side of ``create``.

The runtime decides, the proxy carries out.  Everything acquired here is
recorded first and undone when a later step fails; mounts are handed over as
file descriptors; the pid file comes last.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack, contextmanager

from kata import OCI_VERSION, cgroups, pool, state
from kata.contract import Backend, ContainerPlan, InvocationOptions, RuntimeConfig, SandboxPlan
from kata.daemons import dial_console, places, start_proxy, start_shim, write_pid_file
from kata.errors import HostError, InUse, KataError, NotFound, ProxyGone
from kata.guestspec.mounts import SHARED
from kata.hooks import run_hooks
from kata.joining import joined_namespaces, network_of, sandbox_in
from kata.jsontext import dumps
from kata.loader import resolved
from kata.log import Log, rfc3339
from kata.network import netns
from kata.oci import Bundle
from kata.planjson import to_json
from kata.record import replace
from kata.revive import revive
from kata.storage.clone import clone_mount
from kata.storage.view import close_view, enter_view, open_view
from kata.teardown import destroy_sandbox, end_process
from kata.wire import Client, close_all

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any
else:  # without the enumerations that the library wraps it in
    import _signal as signal

#: Beyond the boot timeout, for what follows a boot, seconds.
CREATE_MARGIN = 120.0


class Creation:
    """One ``create``: what was asked for, and how far it got."""

    def __init__(self, root: str, backend: Backend, bundle: Bundle, options: InvocationOptions, log: Log, *,
                 console_socket: str = "", pid_file: str = "", systemd_cgroup: bool = False,
                 foreground: bool = False, console: str = "") -> None:
        self.root = root
        self.backend = backend
        self.bundle = bundle
        self.options = options
        self.log = log
        self.console_socket = console_socket
        self.pid_file = pid_file
        self.foreground = foreground
        self.console = console
        self.config: RuntimeConfig = backend.load_config(options, bundle.annotations)
        role, sandbox_id = backend.sandbox_of(bundle)
        self.sandbox_id = sandbox_id or bundle.id
        self.key = state.sandbox_key(root, self.sandbox_id)
        if self.sandbox_id == bundle.id and bundle.netns and backend.capabilities.join_by_netns:
            role = self._find_by_network(role)
        self.joins = self.sandbox_id != bundle.id
        self.directory = state.sandbox_dir(self.key)
        plan = backend.plan_container(self.config, bundle, self.sandbox_id, role)
        joined = joined_namespaces(bundle.join, self.key)
        self.plan: ContainerPlan = replace(plan, extras={**plan.extras, "join": joined}) if joined else plan
        self.cgroup = cgroups.for_container(bundle.cgroups_path, bundle.id, systemd=systemd_cgroup)
        self.pid = 0
        log.phase("configuration and plan")

    def run(self) -> state.Container:
        """Make the container.

        End state: it is ``created``, its first process ready to run, its pid
        file written.  On failure nothing of it is left.

        :raise KataError: what failed.
        """
        for warning in (*self.bundle.warnings, *self.plan.warnings):
            self.log.warning(f"container {self.bundle.id}: {warning}")
        with undone_by_signals(), ExitStack() as undo, ExitStack() as close:
            mounts: list[int] = []
            close.callback(close_all, mounts)
            for share in self.plan.shares:
                mounts.append(clone_mount(share.source, share.name, recursive=share.recursive,
                                          read_only=share.read_only, propagation=share.propagation).fd)
            self.log.phase("mounts taken along")
            container = self._record(undo)
            self._make_cgroup(undo)
            for warning in cgroups.apply(self.cgroup.path, self.bundle.resources):
                self.log.warning(f"container {self.bundle.id}: {warning}")
            self.log.phase("recorded, cgroup made")
            network = self._join(close) if self.joins else self._new_sandbox(undo, close)
            self.log.phase("sandbox joined" if self.joins else "proxy there")
            self.pid = self._shim(network, container)
            self.log.phase("shim there")
            undo.callback(end_process, self.pid, state.start_time(self.pid))
            self._hooks(network)
            self.log.phase("hooks run")
            self._create_in_guest(mounts)
            if self.pid_file:
                write_pid_file(self.pid_file, self.pid)
            self.log.phase("created")
            undo.pop_all()
        return state.load_container(self.root, self.bundle.id)

    def _find_by_network(self, role: str) -> str:
        """Join the sandbox whose network the container is to share, if there is one; its role then."""
        network = netns.open_path(self.bundle.netns)
        try:
            found = sandbox_in(network)
        finally:
            os.close(network)
        if found is None or found.key == self.key:
            return role
        self.key, self.sandbox_id = found.key, found.id
        return "container"

    # --- steps ------------------------------------------------------------------------

    def _record(self, undo: ExitStack) -> state.Container:
        bundle = self.bundle
        record = {
            "ociVersion": OCI_VERSION,
            "id": bundle.id,
            "status": "creating",
            "pid": 0,
            "pid_start": 0,
            "bundle": bundle.path,
            "annotations": dict(bundle.annotations),
            "rootfs": bundle.rootfs,
            "created": rfc3339(time.time()),
            "owner": f"#{os.stat(bundle.rootfs).st_uid}",
            "creator": os.getpid(),
            "creator_start": state.start_time(os.getpid()),
            "flavor": self.backend.name,
            "backend": resolved(self.backend),
            "sandbox_id": self.sandbox_id,
            "sandbox_key": self.key,
            "role": self.plan.role,
            "cgroup": self.cgroup.path,
            "terminal": bundle.terminal,
            "hooks": {kind: list(bundle.hooks(kind)) for kind in ("poststart", "poststop")},
        }
        container = state.new_container(self.root, bundle.id, record)
        undo.callback(state.remove_container, container)
        state.write_json(f"{container.dir}/process.json", {
            "version": state.VERSION, "process": dict(bundle.process), "extras": dict(self.plan.extras),
            "resources": dict(bundle.resources)})
        return container

    def _make_cgroup(self, undo: ExitStack) -> None:
        with ExitStack() as made:
            made.callback(self.cgroup.remove, kill=True)
            try:
                self.cgroup.create()
            except InUse:  # who is in it is not ours to kill
                made.pop_all()
                raise
            undo.push(made.pop_all())

    def _new_sandbox(self, undo: ExitStack, close: ExitStack) -> int:
        """Claim a machine, or start the proxy, which starts one; return the network namespace."""
        plan = self.backend.plan_sandbox(self.config, self.bundle, self.options)
        if plan.no_nvdimm:
            self.log.info(f"sandbox {plan.id}: the image {plan.machine.image} is a virtio disk: {plan.no_nvdimm}")
        given = netns.open_path(self.bundle.netns) if self.bundle.netns else -1
        if given >= 0:
            close.callback(os.close, given)
            if netns.is_host(given):
                raise KataError("the container's network namespace is the host's own",
                                "a virtual machine cannot share it: use a bridge network", kind="unsupported")
        close.enter_context(pool.starting())
        self._claim_directory()
        undo.callback(destroy_sandbox, self.directory)
        if plan.boot == "pool" and pool.in_reach(self.root):
            while pool.take(plan, self.directory):
                try:
                    return self._adopt(plan, given, close)
                except (KataError, OSError) as e:  # one of its processes is gone: start as if there had been none
                    self.log.warning(f"a machine of the pool could not be used: {e}")
                destroy_sandbox(self.directory)
                self._claim_directory()
        network = given
        if network < 0:
            network = netns.create()
            close.callback(os.close, network)
        state.write_json(f"{self.directory}/sandbox.json", {
            "version": state.VERSION, "id": self.sandbox_id, "root": self.root, "root_id": state.identity(self.root),
            "flavor": self.backend.name, "plan": to_json(plan), "containers": {}, "netns": self.bundle.netns})
        start_proxy(self.directory, network, self.cgroup.join)
        return network

    def _adopt(self, plan: SandboxPlan, given: int, close: ExitStack) -> int:
        """Make the machine that was claimed this sandbox's; return the network namespace.

        Without one that is given it is the machine's own, which is new.
        """
        record = state.read_json(f"{self.directory}/sandbox.json")
        with Client(f"{self.directory}/proxy.sock") as proxy:
            proxy.request("adopt", fds=[given] if given >= 0 else [], plan=to_json(plan), root=self.root,
                          root_id=state.identity(self.root), netns=self.bundle.netns)
        for name in ("proxy", "qemu"):
            self.cgroup.add(record[name]["pid"])
        if given >= 0:
            return given
        network = os.open(network_of(self.directory, record["qemu"]["pid"]), os.O_RDONLY | os.O_CLOEXEC)
        close.callback(os.close, network)
        return network

    def _claim_directory(self) -> None:
        try:
            os.makedirs(os.path.dirname(self.directory), mode=0o700, exist_ok=True)
            os.mkdir(self.directory, 0o700)
        except FileExistsError:
            if sandbox_lives(self.directory):
                raise InUse(f"sandbox {self.sandbox_id} exists already", "delete its containers first",
                            values={"id": self.sandbox_id}) from None
            destroy_sandbox(self.directory)
            os.mkdir(self.directory, 0o700)
        except OSError as e:
            raise HostError(f"cannot make {self.directory}: {e.strerror}", state.full_disk(e)) from e

    def _join(self, close: ExitStack) -> int:
        """The network namespace of the sandbox that the container joins."""
        try:
            record = state.read_json(f"{self.directory}/sandbox.json")
        except FileNotFoundError as e:
            raise NotFound(f"sandbox {self.sandbox_id} of container {self.bundle.id} does not exist",
                           "create the pod's sandbox container first", values={"id": self.sandbox_id}) from e
        revive(self.directory)
        network = os.open(network_of(self.directory, record["qemu"]["pid"]), os.O_RDONLY | os.O_CLOEXEC)
        close.callback(os.close, network)
        return network

    def _shim(self, network: int, container: state.Container) -> int:
        view = open_view(self.plan, f"{SHARED}/{self.bundle.id}")

        def prepare() -> None:  # recorded before it executes, so that it is found whatever is killed
            container.update(pid=os.getpid(), pid_start=state.start_time(os.getpid()))
            self.cgroup.join()
            enter_view(view, [self.directory, self.root, state.RUN_DIR, self.console, *places(),
                              sys.prefix, sys.base_prefix])

        try:
            return self._start_shim(network, prepare)
        finally:
            close_view(view)

    def _start_shim(self, network: int, prepare: Callable[[], None]) -> int:
        with ExitStack() as close:
            console_socket = -1
            if self.console_socket:
                console_socket = close.enter_context(dial_console(self.console_socket)).fileno()
            return start_shim(f"{self.directory}/proxy.sock", self.bundle.id, self.bundle.id, self.bundle.args,
                              terminal=self.bundle.terminal, console_socket=console_socket, console=self.console,
                              foreground=self.foreground, network=network, join_cgroup=prepare)

    def _hooks(self, network: int) -> None:
        oci_state = self._oci_state("creating")
        for kind in ("prestart", "createRuntime"):
            run_hooks(kind, self.bundle.hooks(kind), oci_state)

        def enter() -> None:
            netns.enter(network)

        # "In the container namespace": on the host that is the network
        # namespace; the rest of the container's namespaces are in the guest.
        run_hooks("createContainer", self.bundle.hooks("createContainer"), oci_state, enter)

    def _oci_state(self, status: str) -> dict[str, Any]:
        """What hooks read."""
        return {"ociVersion": OCI_VERSION, "id": self.bundle.id, "status": status, "pid": self.pid,
                "bundle": self.bundle.path, "annotations": dict(self.bundle.annotations)}

    def _create_in_guest(self, mounts: list[int]) -> None:
        timeout = self.config.boot_timeout + CREATE_MARGIN
        plan = to_json(self.plan)
        if self.bundle.hooks("startContainer"):
            plan["extras"]["state_json"] = dumps(self._oci_state("created"))
        try:
            with Client(f"{self.directory}/proxy.sock", timeout) as proxy:
                if self.joins:
                    others = proxy.request("containers", timeout=timeout)["containers"]
                    size = self.backend.plan_resize(
                        self.config, [*(c["resources"] for c in others), self.bundle.resources])
                    proxy.request("grow", timeout=timeout, vcpus=size.vcpus, memory=size.memory)
                proxy.request("create", fds=mounts, timeout=timeout, plan=plan, root=self.root,
                              resources=dict(self.bundle.resources))
        except ProxyGone as e:
            from kata.vm.launch import tail

            said = tail(f"{self.directory}/proxy.log", 3)
            raise ProxyGone(e.text + (f"; it last said: {said}" if said else "")) from e


@contextmanager
def undone_by_signals() -> Iterator[None]:
    """Who is told to end undoes what it has made so far, once."""
    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)

    def end(number: int, _frame: object) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    previous = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        if previous[number] is not signal.SIG_IGN:  # nohup stays what it is
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def sandbox_lives(directory: str) -> bool:
    """Whether a machine or a proxy of the sandbox is running."""
    try:
        record = state.read_json(f"{directory}/sandbox.json")
    except (FileNotFoundError, KataError):
        return False
    processes: list[Mapping[str, Any]] = [record.get("proxy") or {}, record.get("qemu") or {}]
    return any(state.alive(p.get("pid", 0), p.get("start", 0)) for p in processes)


def out_of_sight(directory: str) -> bool:
    """Whether a sandbox that is running has its records on a file system that is mounted for it, and not here."""
    try:
        record = state.read_json(f"{directory}/sandbox.json")
    except (FileNotFoundError, KataError):
        return False
    root, there = record["root"], record.get("root_id")
    for process in (record.get("proxy") or {}, record.get("qemu") or {}):  # they share their mounts
        pid = process.get("pid", 0)
        if there and state.alive(pid, process.get("start", 0)):
            return bool(state.identity(root) != there == state.identity(f"/proc/{pid}/root{root}"))
    return False
