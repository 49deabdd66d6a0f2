"""What the guest holds: containers, their common namespaces, and what the host has announced."""

from __future__ import annotations

import os
from collections.abc import Iterator

from kata_agent import guesthooks, machine, modules
from kata_agent.cgroup import Cgroups
from kata_agent.container import Container, Done
from kata_agent.dns import DnsRelay
from kata_agent.errors import AgentError, invalid, not_found
from kata_agent.events import Events
from kata_agent.hooks import Hook
from kata_agent.inotify import Inotify
from kata_agent.linux import syscalls as sc
from kata_agent.loop import Loop
from kata_agent.network import Network
from kata_agent.pause import SharedPidNamespace
from kata_agent.protocol import agent_pb2, codes, guest_pb2
from kata_agent.settings import Settings
from kata_agent.storage import Storages, mount_all
from kata_agent.uevent import Uevents

_MAX_CONTAINERS = 1024
_MAX_PREPARED = 1024
_MAX_ID = 255  # bytes


class Sandbox:
    """One per guest, from boot on."""

    def __init__(self, loop: Loop, settings: Settings, cgroup_mount: str) -> None:
        self.loop = loop
        self.settings = settings
        self.inotify = Inotify(loop)
        self.events = Events()
        self.cgroups = Cgroups(loop, self.inotify, cgroup_mount, settings.cgroup_parent)
        self.staging = f"{settings.run_dir}/root"  #: where each container's root is put before it becomes "/"
        self.id = ""
        self.netns = -1  #: of all containers
        self.boot_nsec: dict[str, int] = {}
        self.uevents = Uevents(loop)
        self.storages = Storages()
        self.pidns = SharedPidNamespace(loop)
        self.hooks: dict[str, list[Hook]] = {}  #: of the guest's image, by kind
        self._own_storages: list[str] = []
        self._containers: dict[str, Container] = {}
        self._prepared: dict[str, guest_pb2.PrepareContainerRequest] = {}
        self._prepared_execs: dict[tuple[str, str], guest_pb2.PrepareProcessRequest] = {}

    def setup(self) -> None:
        """Make what exists before any request."""
        os.makedirs(self.staging, 0o755, exist_ok=True)
        self.cgroups.setup()
        self.uevents.on_memory = self.cgroups.guard
        self.uevents.on_device = self.find_drivers
        own, self.netns = _new_netns()
        self.network = Network(own, self.netns, self.uevents, self.settings.hotplug_timeout)
        self.dns = DnsRelay(self.loop, self.events, self.network.inside)

    def find_drivers(self) -> None:
        """Load drivers that devices of this guest lack."""
        if self.settings.is_guest:
            modules.load_for_devices()

    # --- the sandbox itself ------------------------------------------------------------

    def create(self, request: agent_pb2.CreateSandboxRequest, done: Done) -> None:
        """Name, name servers, kernel modules, storages: once.

        :raise AgentError: ALREADY_EXISTS, or a part is wrong.
        """
        if self.id:
            raise AgentError(codes.ALREADY_EXISTS, f"the guest holds sandbox {self.id} already")
        if request.sandbox_id:
            check_id(request.sandbox_id)
        for server in request.dns:
            if not server.isprintable() or len(server) > 1024:
                raise invalid(f"{server[:64]!r} is no line of resolv.conf")
        for module in request.kernel_modules:
            modules.load_named(module.name, list(module.parameters))
        if request.hostname:
            machine.set_hostname(request.hostname)
        if request.dns:
            with open("/etc/resolv.conf", "w", encoding="utf-8") as file:
                file.writelines(f"{line if ' ' in line else f'nameserver {line}'}\n" for line in request.dns)
        if request.guest_hook_path:
            self.hooks = guesthooks.find(request.guest_hook_path)

        def mounted(error: AgentError | None) -> None:
            if error is None:
                self.id = request.sandbox_id or "sandbox"
            else:
                self._drop_storages()
            done(error)

        mount_all(self, request.storages, self._own_storages, mounted)

    def destroy(self, done: Done) -> None:
        """Remove every container and storage; the guest can then be switched off."""
        left = list(self)
        problems: list[AgentError] = []

        def next_one(error: AgentError | None = None) -> None:
            if error is not None:
                problems.append(error)
            if left:
                try:
                    left.pop().remove(0, next_one)
                except AgentError as problem:
                    next_one(problem)
                return
            self.pidns.close()
            self._drop_storages()
            self.storages.drop_all()
            self.id = ""
            done(problems[0] if problems else None)

        next_one()

    def _drop_storages(self) -> None:
        while self._own_storages:
            self.storages.drop(self._own_storages.pop())

    # --- containers --------------------------------------------------------------------

    def __iter__(self) -> Iterator[Container]:
        return iter(list(self._containers.values()))

    def container(self, container_id: str) -> Container:
        """
        :raise AgentError: NOT_FOUND.
        """
        found = self._containers.get(container_id)
        if found is None:
            raise not_found(f"there is no container {container_id!r}"[:512])
        return found

    def add(self, container: Container) -> None:
        """Keep a new container.

        :raise AgentError: ALREADY_EXISTS, RESOURCE_EXHAUSTED.
        """
        self.check_new(container.id)
        self._containers[container.id] = container

    def check_new(self, container_id: str) -> None:
        """Whether a container of this id could be made now.

        :raise AgentError: INVALID_ARGUMENT, ALREADY_EXISTS, RESOURCE_EXHAUSTED.
        """
        check_id(container_id)
        if container_id in self._containers:
            raise AgentError(codes.ALREADY_EXISTS, f"container {container_id} exists already")
        if len(self._containers) >= _MAX_CONTAINERS:
            raise AgentError(codes.RESOURCE_EXHAUSTED, f"there are {_MAX_CONTAINERS} containers already")

    def forget(self, container: Container) -> None:
        """Drop a container that has given everything back."""
        if self._containers.get(container.id) is container:
            del self._containers[container.id]

    # --- announcements -------------------------------------------------------------------

    def prepare(self, request: guest_pb2.PrepareContainerRequest) -> None:
        """Keep the extras of a container that is to be created."""
        check_id(request.container_id)
        self._prepared[request.container_id] = request
        _bound(self._prepared)

    def take_prepared(self, container_id: str) -> guest_pb2.PrepareContainerRequest:
        """The extras of a container, once."""
        return self._prepared.pop(container_id, None) or guest_pb2.PrepareContainerRequest()

    def prepare_process(self, request: guest_pb2.PrepareProcessRequest) -> None:
        """Keep the extras of a process that is to be exec'd."""
        check_exec_id(request.exec_id)
        parts = request.cgroup.split("/")
        if ".." in parts or request.cgroup.startswith("/"):
            raise invalid(f"{request.cgroup!r} is no cgroup below a container's")
        self.container(request.container_id)
        self._prepared_execs[request.container_id, request.exec_id] = request
        _bound(self._prepared_execs)

    def take_prepared_process(self, container_id: str, exec_id: str) -> guest_pb2.PrepareProcessRequest:
        """The extras of an exec'd process, once."""
        return self._prepared_execs.pop((container_id, exec_id), None) or guest_pb2.PrepareProcessRequest()


def _bound(kept: dict[object, object] | dict[str, guest_pb2.PrepareContainerRequest]
           | dict[tuple[str, str], guest_pb2.PrepareProcessRequest]) -> None:
    while len(kept) > _MAX_PREPARED:
        del kept[next(iter(kept))]  # type: ignore[arg-type]


def check_id(container_id: str) -> None:
    """Refuse what cannot name a container: it becomes the name of folders.

    :raise AgentError: INVALID_ARGUMENT.
    """
    plain = container_id.replace("-", "").replace("_", "").replace(".", "").replace("+", "")
    if not (0 < len(container_id) <= _MAX_ID and container_id.isascii() and plain.isalnum()
            and container_id[0] not in ".-"):
        raise invalid(f"{container_id[:64]!r} is no container id")


def check_exec_id(exec_id: str) -> None:
    """
    :raise AgentError: INVALID_ARGUMENT.
    """
    if not 0 < len(exec_id) <= 1024 or "\0" in exec_id:
        raise invalid(f"{exec_id[:64]!r} is no id of a process")


def _new_netns() -> tuple[int, int]:
    """Descriptors of this process's network namespace, in which it stays, and of a new one."""
    own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    sc.unshare(sc.CLONE_NEWNET)
    try:
        return own, os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        sc.setns(own, sc.CLONE_NEWNET)
