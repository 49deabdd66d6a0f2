"""Policy of the runv flavor: runV 1.0.

A small ``pc`` that boots an initrd.  A container's limits *replace* the
defaults, when the machine starts, and nothing is resized later; a container in
the network namespace of another shares its machine.  The guest process is made
at ``start``, and ``pause`` stops each process.
"""

from __future__ import annotations

from kata import machineplan, pods
from kata.config import Settings, check_assets, shown
from kata.config.keys import from_text
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
from kata.record import replace
from kata_runv import guestfiles, language

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: What runV read of CRI-O's annotations: the sandbox's name, which was its id then.  Where the id is given, it counts.
BY_NAME = replace(pods.CRIO, sandbox_id="io.kubernetes.cri-o.SandboxName")


class RunvBackend(Backend):
    """See the module's text."""

    name = "runv"
    capabilities = Capabilities(templates=True, initrd_boot=True, join_by_netns=True, hotplug_network=True)

    def config_paths(self, options: InvocationOptions) -> Sequence[str]:
        return ()

    def load_config(self, options: InvocationOptions, annotations: Mapping[str, str]) -> RuntimeConfig:
        """runV reads options only; no annotation."""
        if options.config_path:
            raise ConfigError("--kata-config: runv has no configuration file", "use its options, or another flavor")
        settings = Settings({"": language.OPTIONS})
        settings.values.update(language.DEFAULTS)
        for name, key in language.OPTIONS.items():
            value = options.options.get(name, "")
            if not value:
                continue
            place = f"--{name}"
            try:
                converted = from_text(key.convert, value)
            except ValueError as e:
                raise ConfigError(f"{place}: {e} is expected, found {shown(value)}") from e
            settings.sources.append(place)
            settings.take(name, key, converted, place)
        settings.values["template"] = "template_path" in settings.values
        if options.options.get("debug"):
            settings.values.update({f"debug_{part}": True for part in language.DEBUGGED})
        config = settings.config()
        check_assets(config, config.initrd)
        return config

    def plan_sandbox(self, config: RuntimeConfig, bundle: Bundle, options: InvocationOptions) -> SandboxPlan:
        config = guestfiles.resolved(config, bundle, options.guest_folders)
        source = machineplan.boot(config, options)
        memory = machineplan.enough_memory(memory_of(bundle.resources) or config.default_memory, source)
        base = machineplan.enough_memory(config.default_memory, source) if config.template else memory
        vcpus = _vcpus(config, bundle.resources)
        base_vcpus = config.default_vcpus if config.template else vcpus
        return SandboxPlan(
            id=bundle.id, flavor=self.name,
            machine=machineplan.plan(config, options, source, Size(
                # A template serves containers of any size: it is made with room for the largest.
                vcpus=vcpus, max_vcpus=language.MAX_VCPUS if config.template else vcpus,
                memory=memory, max_memory=max(memory, options.host_memory) if config.template else memory)),
            base_vcpus=base_vcpus, base_memory=base,
            boot="template" if config.template else "cold",
            template_path=config.template_path if config.template else "",
            agent_transport=config.agent_transport, boot_timeout=config.boot_timeout, hostname=bundle.hostname,
            network_model=config.internetworking_model, hotplug_network=True, shared_pidns=False, guest_hook_path="",
            kernel_modules=(), cgroup_only=False, no_nvdimm=source.no_nvdimm)

    def plan_container(self, config: RuntimeConfig, bundle: Bundle, sandbox_id: str, role: str) -> ContainerPlan:
        plan = container_plan(config, bundle, sandbox_id=sandbox_id, role=role, flavor=self.name,
                              guest_process_at="start", pause_scope="process")
        return replace(plan, vcpus=0, memory=0, warnings=(*plan.warnings, *guestfiles.warnings(bundle)))

    def sandbox_of(self, bundle: Bundle) -> tuple[str, str]:
        by_id = pods.CRIO.sandbox_id in bundle.annotations
        return pods.sandbox_of(bundle.annotations, (pods.CRIO if by_id else BY_NAME,))

    def plan_resize(self, config: RuntimeConfig, containers: Sequence[Mapping[str, object]]) -> ResizePlan:
        """The size that the first container gave the machine."""
        first = containers[0] if containers else {}
        return ResizePlan(vcpus=_vcpus(config, first), memory=memory_of(first) or config.default_memory)


def _vcpus(config: RuntimeConfig, resources: Mapping[str, object]) -> int:
    """A quota replaces the default; a set of CPUs does not."""
    cpu = resources.get("cpu", {})
    assert isinstance(cpu, dict)
    return min(vcpus_of({"cpu": {**cpu, "cpus": ""}}) or config.default_vcpus, language.MAX_VCPUS)
