"""Policy of the unified flavor.

It speaks Kata 1.x's configuration language and sizes a sandbox by Kata's rule,
the default plus the limits of all containers.  The machine is a q35, and the
guest process is made at ``create``, so that a missing program fails there.
"""

from __future__ import annotations

import os

from kata import machineplan, pods
from kata.config import Settings, check_assets, kata1
from kata.contract import (
    Backend,
    Capabilities,
    ContainerPlan,
    InvocationOptions,
    ResizePlan,
    RuntimeConfig,
    SandboxPlan,
)
from kata.errors import ConfigError
from kata.guestspec import container_plan, memory_of, vcpus_of
from kata.machineplan import Size
from kata.oci import Bundle

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Where Kata 1.x looked.
CONFIG_PATHS = ("/etc/kata-containers/configuration.toml", "/usr/share/defaults/kata-containers/configuration.toml")


class UnifiedBackend(Backend):
    """See the module's text."""

    name = "unified"
    capabilities = Capabilities(
        templates=True, pool=True, image_boot=True, initrd_boot=True, join_by_netns=True, resize=True,
        hotplug_network=True, events=True, update=True)

    def config_paths(self, options: InvocationOptions) -> Sequence[str]:
        if options.config_path:
            return (options.config_path,)
        named = options.environ.get("KATA_CONF_FILE", "")
        return (named,) if named else CONFIG_PATHS

    def load_config(self, options: InvocationOptions, annotations: Mapping[str, str]) -> RuntimeConfig:
        """Without any file the defaults hold, where Kata 1.x gave an error."""
        settings = Settings(kata1.LANGUAGE, kata1.REFUSED_TABLES)
        paths = self.config_paths(options)
        settings.read(paths, must_exist=paths is not CONFIG_PATHS)
        if "io.katacontainers.config_path" in annotations:
            raise ConfigError("annotation io.katacontainers.config_path is not supported",
                              "use --kata-config or KATA_CONF_FILE")
        settings.annotate(annotations, kata1.ANNOTATIONS, kata1.ANNOTATION_NAMES, kata1.ANNOTATION_HASHES,
                          options.guest_folders)
        config = settings.config()
        place = settings.places.get("default_memory", "")
        if place.startswith("annotation") and config.default_memory > options.host_memory:
            raise ConfigError(f"{place}: {config.default_memory} MiB are more than the host has, "
                              f"{options.host_memory} MiB", "ask for less; the configuration file may name any size")
        check_assets(config, "" if config.image else config.initrd or options.initrd_asset)
        return config

    def plan_sandbox(self, config: RuntimeConfig, bundle: Bundle, options: InvocationOptions) -> SandboxPlan:
        vcpus = machineplan.default_vcpus(config, options.host_cpus)
        source = machineplan.boot(config, options)
        plan = machineplan.plan(config, options, source, Size(
            vcpus=vcpus + vcpus_of(bundle.resources),
            max_vcpus=max(vcpus, min(config.default_maxvcpus or options.host_cpus, options.host_cpus)),
            memory=config.default_memory + memory_of(bundle.resources),
            max_memory=max(config.default_memory, options.host_memory)))
        templates = config.template and not plan.image
        return SandboxPlan(
            id=bundle.id, flavor=self.name, machine=plan, base_vcpus=vcpus, base_memory=config.default_memory,
            boot="pool" if config.pool_size else "template" if templates else "cold",
            template_path=config.template_path if templates else "", agent_transport=config.agent_transport,
            boot_timeout=config.boot_timeout, hostname=bundle.hostname,
            network_model=config.internetworking_model, hotplug_network=not config.disable_new_netns,
            shared_pidns=config.enable_agent_pidns, guest_hook_path=config.guest_hook_path,
            kernel_modules=config.kernel_modules, cgroup_only=config.sandbox_cgroup_only,
            pool_path=config.pool_path if config.pool_size else "",
            no_nvdimm=source.no_nvdimm)

    def plan_container(self, config: RuntimeConfig, bundle: Bundle, sandbox_id: str, role: str) -> ContainerPlan:
        return container_plan(config, bundle, sandbox_id=sandbox_id, role=role, flavor=self.name,
                              guest_process_at="create", pause_scope="container")

    def sandbox_of(self, bundle: Bundle) -> tuple[str, str]:
        return pods.sandbox_of(bundle.annotations)

    def plan_resize(self, config: RuntimeConfig, containers: Sequence[Mapping[str, object]]) -> ResizePlan:
        """Default plus all limits; the engine keeps it within the machine's maximum."""
        return ResizePlan(vcpus=machineplan.default_vcpus(config, os.cpu_count() or 1)
                          + sum(map(vcpus_of, containers)),
                          memory=config.default_memory + sum(map(memory_of, containers)))
