"""Policy of the clear flavor: Clear Containers 3.0.

A ``pc`` that boots an image; no templates.  A memory limit *replaces* the
default, a CPU quota adds to it.  The guest process is made at ``start``, and
``pause`` stops the whole machine.
"""

from __future__ import annotations

import os

from kata import machineplan, pods
from kata.config import Settings, check_assets
from kata.contract import (
    Backend,
    Capabilities,
    ContainerPlan,
    InvocationOptions,
    ResizePlan,
    RuntimeConfig,
    SandboxPlan,
)
from kata.guestspec import container_plan, memory_of, vcpus_of
from kata.machineplan import Size
from kata.oci import Bundle
from kata.record import replace
from kata_clear import assets, language

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Where Clear Containers looked.
CONFIG_PATHS = ("/etc/clear-containers/configuration.toml",
                "/usr/share/defaults/clear-containers/configuration.toml")


class ClearBackend(Backend):
    """See the module's text."""

    name = "clear"
    capabilities = Capabilities(image_boot=True, initrd_boot=True, hotplug_network=True)

    def config_paths(self, options: InvocationOptions) -> Sequence[str]:
        return (options.config_path,) if options.config_path else CONFIG_PATHS

    def load_config(self, options: InvocationOptions, annotations: Mapping[str, str]) -> RuntimeConfig:
        """Without any file the defaults hold, where Clear gave an error."""
        settings = Settings(language.LANGUAGE, language.REFUSED_TABLES)
        settings.values.update(language.DEFAULTS)
        settings.read(self.config_paths(options), must_exist=bool(options.config_path))
        assets.replace_clears_own(settings)
        assets.annotate(settings, annotations, options.guest_folders)
        config = settings.config()
        check_assets(config, config.initrd)
        return config

    def plan_sandbox(self, config: RuntimeConfig, bundle: Bundle, options: InvocationOptions) -> SandboxPlan:
        source = machineplan.boot(config, options, prefer_image=True)
        vcpus = machineplan.default_vcpus(config, options.host_cpus)
        memory = machineplan.enough_memory(_memory(config, bundle.resources), source)
        return SandboxPlan(
            id=bundle.id, flavor=self.name,
            machine=machineplan.plan(config, options, source, Size(
                vcpus=vcpus + vcpus_of(bundle.resources), max_vcpus=max(vcpus, options.host_cpus),
                memory=memory, max_memory=memory)),
            base_vcpus=vcpus, base_memory=memory, boot="cold", template_path="",
            agent_transport=config.agent_transport, boot_timeout=config.boot_timeout, hostname=bundle.hostname,
            network_model=config.internetworking_model, hotplug_network=True, shared_pidns=False, guest_hook_path="",
            kernel_modules=(), cgroup_only=False, no_nvdimm=source.no_nvdimm)

    def plan_container(self, config: RuntimeConfig, bundle: Bundle, sandbox_id: str, role: str) -> ContainerPlan:
        plan = container_plan(config, bundle, sandbox_id=sandbox_id, role=role, flavor=self.name,
                              guest_process_at="start", pause_scope="vm")
        # A later container of a pod brings vCPUs; the memory is what the pod's sandbox asked for.
        return replace(plan, memory=0, warnings=(*plan.warnings, *config.extra.get("warnings", ())))

    def sandbox_of(self, bundle: Bundle) -> tuple[str, str]:
        return pods.sandbox_of(bundle.annotations)

    def plan_resize(self, config: RuntimeConfig, containers: Sequence[Mapping[str, object]]) -> ResizePlan:
        """vCPUs add up; the memory stays what the first container's limit made it."""
        return ResizePlan(
            vcpus=machineplan.default_vcpus(config, os.cpu_count() or 1) + sum(map(vcpus_of, containers)),
            memory=_memory(config, containers[0] if containers else {}))


def _memory(config: RuntimeConfig, resources: Mapping[str, object]) -> int:
    """MiB: a limit replaces the default."""
    return memory_of(resources) or config.default_memory
