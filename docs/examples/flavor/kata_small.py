"""An example of a third-party flavor: every container the same small machine, without a network.

Install it beside Kata (``pip install docs/examples/flavor``), and it is there:
``kata --flavor small run ID``, ``kata flavor``, ``kata plan --flavor all``.
"""

from kata import machineplan
from kata.contract import Backend, Capabilities, ResizePlan, RuntimeConfig, SandboxPlan
from kata.errors import ConfigError
from kata.guestspec import container_plan
from kata.machineplan import Size
from kata.personality import Personality

SIZE = Size(vcpus=1, max_vcpus=1, memory=256, max_memory=256)  # MiB


class SmallBackend(Backend):
    """Policy: what a bundle becomes."""

    name = "small"
    capabilities = Capabilities(templates=True, initrd_boot=True)

    def config_paths(self, options):
        return ()

    def load_config(self, options, annotations):
        if options.config_path:
            raise ConfigError("the small flavor has no configuration file", "drop --kata-config")
        return RuntimeConfig(default_memory=SIZE.memory, internetworking_model="none")

    def plan_sandbox(self, config, bundle, options):
        machine = machineplan.plan(config, options, machineplan.boot(config, options), SIZE)
        return SandboxPlan(
            id=bundle.id, flavor=self.name, machine=machine, base_vcpus=SIZE.vcpus, base_memory=SIZE.memory,
            boot="template", template_path=config.template_path, agent_transport=config.agent_transport,
            boot_timeout=config.boot_timeout, hostname=bundle.hostname, network_model=config.internetworking_model,
            hotplug_network=False, shared_pidns=False, guest_hook_path="", kernel_modules=(), cgroup_only=False)

    def plan_container(self, config, bundle, sandbox_id, role):
        return container_plan(config, bundle, sandbox_id=sandbox_id, role=role, flavor=self.name,
                              guest_process_at="create", pause_scope="container")

    def sandbox_of(self, bundle):
        return "single", ""  # no pods

    def plan_resize(self, config, containers):
        return ResizePlan(vcpus=SIZE.vcpus, memory=SIZE.memory)


class SmallPersonality(Personality):
    """How it speaks: an error of its ends with 3."""

    program = "small"

    def failure(self, program, verb, error):
        return f"small: {error}", 3
