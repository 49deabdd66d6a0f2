"""What every verb has at hand: global options, log, and the flavor's way to speak."""

from __future__ import annotations

import os

from kata import state
from kata.errors import ProxyGone, WrongState
from kata.log import Log

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from typing import Any

    from kata.contract import Backend, InvocationOptions
    from kata.flavors import Choice
    from kata.personality import Personality
    from kata.wire import Client


class Context:
    """One invocation.

    :ivar flavor: the one asked for; new containers are of it.
    :ivar personality: how it speaks.
    :ivar options: the global options; the flavor's own are among them.
    """

    def __init__(self, program: str, options: dict[str, Any], flavor: Choice, personality: Personality,
                 verb: str) -> None:
        self.program = personality.program or program
        self.options = options
        self.flavor = flavor
        self.personality = personality
        level = "debug" if options["debug"] else "info"
        self.log = Log(personality.log_path(options), options["log_format"] or "text", level, self.program)
        self.log.text = personality.log_line(verb)
        if options["timings"] or os.environ.get("KATA_TIMINGS", "0") != "0":
            self.log.phases = []
            self.log.phase("interpreter and imports")
        self._backend: Backend | None = None
        self.deprecated = False  #: whether the host has taken leave of the flavor; known with the new backend

    @property
    def root(self) -> str:
        """``--root``, absolute; "" when it was not given."""
        return os.path.abspath(self.options["root"]) if self.options["root"] else ""

    def container(self, container_id: str) -> state.Container:
        return state.load_container(self.root, container_id)

    def proxy(self, container: state.Container) -> Client:
        """A connection to the proxy of a container's sandbox, which is restarted if it is gone.

        :raise WrongState: the machine is gone, and the container with it.
        """
        from kata.wire import Client

        try:
            return Client(container.proxy_socket)
        except ProxyGone:
            from kata.revive import revive

            try:
                revive(container.sandbox_dir)
            except (ProxyGone, FileNotFoundError) as e:
                raise WrongState("container not running",
                                 f"the machine of container {container.id} is gone; delete the container") from e
            return Client(container.proxy_socket)

    def ask(self, container: state.Container, op: str, *, timeout: float = 60.0, **params: Any) -> dict[str, Any]:
        """One operation of the container's proxy."""
        with self.proxy(container) as client:
            return client.request(op, timeout=timeout, id=container.id, **params)

    def collect_phases(self, container: state.Container) -> None:
        """For ``--timings``: what the sandbox's proxy has noted, before it may be gone."""
        if self.log.phases is not None:
            from kata.cli import timings

            timings.collect(self, container)

    # --- for verbs that make something --------------------------------------------------

    def backend(self) -> Backend:
        """The backend of the flavor asked for.

        :raise ConfigError: there is none.
        """
        if self.flavor.problem is not None:
            raise self.flavor.problem
        if self._backend is None:
            from kata import loader

            self._backend = loader.load(self.flavor.name, self.flavor.origin)
        return self._backend

    def new_containers_backend(self) -> Backend:
        """The backend that makes a new container, if the host's road allows it one.

        :raise ConfigError: there is none, or the flavor is retired here.
        """
        from kata import flavors

        settings = flavors.host(flavors.host_file(os.environ))
        flavors.refuse_retired(self.flavor.name, settings)
        self.deprecated = settings.phase >= flavors.MERGED and self.flavor.name in flavors.RETIRING
        return self.backend()

    def backend_of(self, container: state.Container) -> Backend:
        """The flavor a container was made with."""
        from kata import loader

        return loader.load_resolved(container.record["backend"], container.record["flavor"])

    def invocation(self) -> InvocationOptions:
        """What the backend may know of the host."""
        from kata import flavors, hostfacts
        from kata.assets import store
        from kata.contract import InvocationOptions

        facts = hostfacts.collect()
        return InvocationOptions(
            config_path=self.options["kata_config"],
            options={k: str(v) for k, v in self.options.items() if v not in ("", False, None)},
            environ=dict(os.environ),
            host_cpus=facts.cpus,
            host_memory=facts.memory,
            kvm_usable=facts.kvm_usable,
            tsc_khz=facts.tsc_khz,
            kernel_asset=store.selected_path("kernel"),
            initrd_asset=store.selected_path("initrd"),
            image_asset=store.selected_path("image"),
            boot_initrd_asset=store.selected_path("boot-initrd"),
            guest_folders=(store.root(), *flavors.host(flavors.host_file(os.environ)).guest_folders),
        )
