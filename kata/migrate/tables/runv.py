"""runV's options -> unified's configuration.  runV has no file; its settings are on command lines."""

from __future__ import annotations

from kata import machineplan
from kata.migrate import CHANGED, DROPPED, RENAMED, SAME, Behaviour, Rule
from kata.migrate.rules import choose

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DEFAULT_MEMORY = 128  #: MiB
#: MiB below which a machine does not come up with an initrd.
LEAST_MEMORY = machineplan.LEAST_WITH_INITRD
#: Options that take no value; ``vsock`` was read but never declared.
FLAGS = ("debug", "vsock")
OWN_FOLDER = "/var/lib/hyper/"  #: a guest with hyperstart, which cannot serve here
#: Options that every flavor of the program has: they stay on the command line.
COMMON = ("root", "log", "log-format")
_QEMU = ("qemu", "qemu-kvm", "kvm")


def _asset(kind: str) -> Any:
    def rule(path: Any) -> Rule:
        if str(path).startswith(OWN_FOLDER):
            return Rule(CHANGED, "hypervisor.qemu", kind, convert=lambda _value: None,
                        fields=(f"sandbox.machine.{kind}",),
                        why=f"this {kind} is of a guest with hyperstart, whose protocol is not spoken; "
                            "that of the asset store is used")
        return Rule(RENAMED, "hypervisor.qemu", kind)

    return rule


def _memory(value: Any) -> Rule:
    if int(value) < LEAST_MEMORY:
        return Rule(CHANGED, "hypervisor.qemu", "default_memory", lambda _value: LEAST_MEMORY,
                    why=f"our guest needs {LEAST_MEMORY} MiB to come up",
                    fields=("sandbox.machine.memory", "sandbox.machine.max_memory", "sandbox.base_memory"))
    return Rule(RENAMED, "hypervisor.qemu", "default_memory", int)


RULES: dict[tuple[str, str], Rule] = {
    ("", "driver"): Rule(RENAMED, convert=choose(
        dict.fromkeys(_QEMU, Rule(RENAMED, convert=lambda _value: None,
                                  why="the table [hypervisor.qemu] says it; KVM is used where it can be")),
        Rule(DROPPED, why="QEMU is the only hypervisor: machines are QEMU's from now on"))),
    ("", "agent"): Rule(RENAMED, convert=choose(
        {"kata": Rule(RENAMED, convert=lambda _value: None, why="the agent is Kata's in any case")},
        Rule(CHANGED, convert=lambda _value: None,
             why="hyperstart's protocol is not spoken: the guest has our agent, which does what it did"))),
    ("", "default_cpus"): Rule(RENAMED, "hypervisor.qemu", "default_vcpus", int),
    ("", "default_memory"): Rule(RENAMED, convert=_memory),
    ("", "kernel"): Rule(RENAMED, convert=_asset("kernel")),
    ("", "initrd"): Rule(RENAMED, convert=_asset("initrd")),
    ("", "bios"): Rule(RENAMED, "hypervisor.qemu", "firmware"),
    ("", "cbfs"): Rule(DROPPED, why="QEMU boots the kernel itself: nothing is booted from a cbfs",
                       instead="give kernel and initrd, or firmware"),
    ("", "template"): Rule(RENAMED, "factory", "template_path",
                           why="and enable_template; a template is made on first use; the folder is not read"),
    ("", "vsock"): Rule(DROPPED, why="the agent's channel is a virtio-serial port, which works on every host"),
    ("", "debug"): Rule(RENAMED, "hypervisor.qemu", "enable_debug", lambda _value: True,
                        why="every component's enable_debug"),
    ("", "log_dir"): Rule(DROPPED, why="there is no log folder; the proxy's log is in the sandbox's folder below "
                          "/run/kata", instead="--log FILE, which engines give themselves"),
}
#: What ``--debug`` switches on besides.
DEBUG = ("runtime", "agent.kata", "proxy.kata", "shim.kata")

#: What held without options, and does not in unified: it is written.
DEFAULTS: dict[tuple[str, str], Any] = {
    ("hypervisor.qemu", "machine_type"): "pc",
    ("factory", "enable_template"): False,
}

_VCPUS = ("sandbox.machine.vcpus", "sandbox.machine.max_vcpus", "sandbox.base_vcpus", "container.vcpus")
_MEMORY = ("sandbox.machine.memory", "sandbox.machine.max_memory", "sandbox.base_memory", "container.memory")
BEHAVIOURS = (
    Behaviour("memory limit of a container", "replaces the default", "is added to default_memory",
              "the machine's memory is the default plus the limits of all containers; the container's limit holds "
              "inside as before", "lower default_memory where machines become too large", _MEMORY),
    Behaviour("CPU quota of a container", "replaces the default, at most 8 vCPUs", "is added to default_vcpus",
              "the machine has the default plus what all quotas amount to, at most as many as the host",
              "", _VCPUS),
    Behaviour("set of CPUs of a container", "says nothing about vCPUs", "counts as vCPUs where there is no quota",
              "Kata's rule", "", _VCPUS),
    Behaviour("size after the start", "fixed", "grows with update and with containers that join",
              "the machine has room for vCPUs and memory that are plugged in", "", (*_VCPUS, *_MEMORY)),
    Behaviour("network", "mirred between tap and interface, and a dummy bridge", "tcfilter",
              "the same redirect both ways, without the bridge", "", ("sandbox.network_model",)),
    Behaviour("first process", "is made at start", "is made at create",
              "a program that does not exist fails create, as with other runtimes", "",
              ("container.guest_process_at", "container.extras.defer_process")),
    Behaviour("pause", "stops each process by SIGSTOP", "freezes the container's cgroup",
              "no process sees a signal, and none can go around it", "", ("container.pause_scope",)),
    Behaviour("guest files", "hypervisor.{kernel,initrd,bios,cbfs} in process.env, ROOTFS/boot, BUNDLE/boot, BUNDLE",
              "are not looked for", "an image cannot choose the kernel of its machine",
              "kernel and initrd in a configuration of its own (--kata-config), or the annotations "
              "io.katacontainers.config.hypervisor.{kernel,initrd} with enable_annotations and guest_folders",
              ("sandbox.machine.kernel", "sandbox.machine.initrd", "sandbox.machine.firmware", "container.warnings")),
    Behaviour("joining a machine", "by CRI-O's SandboxName, or the network namespace",
              "by the sandbox id of containerd, CRI-O and dockershim, or the network namespace",
              "CRI-O's sandbox id is what names a sandbox since"),
    Behaviour("verbs interface and manage", "of runv", "are not verbs of kata-runtime",
              "interfaces that appear in the container's network namespace are taken over by themselves; templates are "
              "made on first use", "`kata --flavor runv interface ...` still works on every container; kata factory"),
    Behaviour("words, log and exit codes", "runv's", "kata-runtime's",
              "whoever reads them meets Kata's texts; `kata --flavor runv VERB` still speaks as runv"),
)

__all__ = ["BEHAVIOURS", "COMMON", "DEBUG", "DEFAULTS", "DEFAULT_MEMORY", "FLAGS", "RULES", "SAME"]
