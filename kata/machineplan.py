"""What every flavor's machine has in common: accelerator, processor, kernel command line, and what boots.

A flavor decides sizes, the machine's type and whether an image or an initrd
boots; the rest follows from QEMU and from our guest, and is here once.
"""

from __future__ import annotations

import os

from kata.contract import BRIDGE_SLOTS, TCG_KERNEL, InvocationOptions, MachinePlan, RuntimeConfig
from kata.errors import ConfigError, HostError
from kata.record import Record

#: MiB of translated code; QEMU throws all of it away when it is full.  A clone that is up has 12, its first container
#: adds 12, an interface plugged in 11: what a machine of the pool has done has to fit, or the start that claims it
#: translates all of it again.  Processor time of QEMU for such a start with 40, 32 and 24 MiB: 0.32, 0.37 and 0.83 s.
#: A program from a share in the warm-up adds 3.  Only what is translated takes memory.
TCG_CACHE = 44

#: MiB with which our guest comes up and runs a container, measured.  An initrd takes
#: twice its 33 MB while it is unpacked.
LEAST_WITH_INITRD = 192
LEAST_WITH_IMAGE = 128

#: ``erms`` promises fast "rep movsb", which TCG does byte by byte.
# fsrm, which newer QEMUs emulate: Linux 6.1 takes it for granted that erms comes with it.
CPU = {"tcg": "max,-erms,-fsrm", "kvm": "host"}

#: For every guest: say little, end on a panic instead of hanging (QEMU runs with
#: -no-reboot), skip waits that only real hardware needs, self-tests of cryptography
#: and the security modules for whole distributions.  No device of ours needs bounce
#: buffers, for which Linux takes and clears 64 MiB where memory lies above 4 GiB: an
#: NVDIMM does, and what may be plugged in.  q35 plugs by ACPI (its default since QEMU 6.1), so nobody needs the driver
#: of PCIe ports.
KERNEL_PARAMS = ("console=ttyS0", "quiet", "reboot=t", "panic=-1", "no_timer_check", "noreplace-smp",
                 "rcupdate.rcu_expedited=1", "cryptomgr.notests", "lsm=landlock,yama", "audit=0", "swiotlb=noforce",
                 "pcie_ports=compat")

#: Speculation of the real processor cannot be steered by emulated code, so guards against it only cost.
#: init_on_alloc clears what the guest's kernel allocates for itself.  What processes get is cleared anyway, and nothing
#: of another sandbox is ever in a guest's memory, so emulated guests, in which it is slow, do without; under KVM the
#: kernel's own default holds.
TCG_PARAMS = ("mitigations=off", "init_on_alloc=0")


class Size(Record):
    """A machine's size before and after its containers: vCPUs and MiB."""

    vcpus: int
    max_vcpus: int
    memory: int
    max_memory: int


class Boot(Record):
    """Paths of what boots, and how an image does.  ``initrd`` beside an ``image`` loads the modules for it."""

    kernel: str
    initrd: str
    image: str
    params: tuple[str, ...] = ()  #: of the kernel, for its root
    nvdimm: int = 0  #: bytes of the image; 0 = it is no NVDIMM
    image_offset: int = 0  #: where the disk begins in the image, bytes
    no_nvdimm: str = ""  #: why it is none


def default_vcpus(config: RuntimeConfig, host_cpus: int) -> int:
    """Clear's and Kata's rule: below 0, or more than there are, is all of the host's; 0 is one."""
    if config.default_vcpus < 0:
        return host_cpus
    return min(config.default_vcpus or 1, host_cpus)


def hotplug_ports(config: RuntimeConfig) -> int:
    """Slots for devices that come later.

    At least one bridge, of as many slots as a PCI bus has.  A pc needs none: its own bus takes devices.
    """
    return BRIDGE_SLOTS * max(1, config.default_bridges)


def boot(config: RuntimeConfig, options: InvocationOptions, *, prefer_image: bool = False) -> Boot:
    """What is configured, and else the store's initrd (``prefer_image``: its image), and else the other.

    :raise ConfigError: there is no kernel, or nothing that it could boot.
    """
    kernel = config.kernel or options.kernel_asset
    if not kernel:
        raise ConfigError("there is no guest kernel", "run `kata image build`, or name one in the configuration")
    if config.image:
        return _from_image(config, kernel, options.boot_initrd_asset, config.image)
    if config.initrd:
        return Boot(kernel, config.initrd, "")
    if options.image_asset and (prefer_image or not options.initrd_asset):
        return _from_image(config, kernel, options.boot_initrd_asset, options.image_asset)
    if options.initrd_asset:
        return Boot(kernel, options.initrd_asset, "")
    raise ConfigError("there is no guest image",
                      "run `kata image build`, or name an initrd or image in the configuration")


def _from_image(config: RuntimeConfig, kernel: str, initrd: str, path: str) -> Boot:
    """A root image: an NVDIMM, which all sandboxes have in one copy, where kernel and image can, else a virtio disk."""
    from kata import nvdimm  # most guests have no image

    modules: list[str] = []
    image = nvdimm.read(path)
    if config.disable_image_nvdimm:
        why = "disable_image_nvdimm is set"
    elif any(word.startswith("root=") for word in config.kernel_params):
        why = "kernel_params name the root device"
    else:
        why = image.unfit
    if not why:
        why, modules = nvdimm.kernel_lacks(kernel, initrd, image.fstype)
    if why:
        # A foreign image with partitions is a disk as it is; kernel_params say which of them.
        return Boot(kernel, initrd, path, ("root=/dev/vda", "ro"),
                    image_offset=0 if image.partitioned else image.data, no_nvdimm=why)
    # The drivers may still be at it when the kernel wants its root.
    params = (f"root={image.root}", f"rootfstype={image.fstype}", "rootflags=dax", "rootwait", "ro")
    # A kernel that has everything built in mounts it itself.
    return Boot(kernel, initrd if modules else "", path, params, nvdimm=image.size)


def enough_memory(memory: int, source: Boot) -> int:
    """``memory`` (MiB), or what the guest needs to come up, for flavors whose limits are the machine's memory.

    A container with a smaller limit still has that limit, in its cgroup in the guest.
    """
    return max(memory, LEAST_WITH_IMAGE if source.image else LEAST_WITH_INITRD)


def plan(config: RuntimeConfig, options: InvocationOptions, source: Boot, size: Size) -> MachinePlan:
    """The machine of a new sandbox.

    :raise HostError: KVM is asked for and cannot be used.
    :raise ConfigError: the kernel must not be used with KVM.
    """
    accelerator = _accelerator(config, options)
    if accelerator == "kvm" and os.path.basename(os.path.realpath(source.kernel)) == TCG_KERNEL:
        raise ConfigError(f"kernel {source.kernel} is for emulated processors: it has no guards against speculation, "
                          "and KVM would run it", "run `kata kernel build`, or set accelerator = \"tcg\"")
    params = [*KERNEL_PARAMS, *(TCG_PARAMS if accelerator == "tcg" else ()), *_clock(accelerator, options)]
    params += source.params
    if config.debug_agent:
        params.append("agent.log=debug")
    if config.debug_hypervisor:
        params.remove("quiet")
    return MachinePlan(
        qemu_path=config.qemu_path, machine_type=config.machine_type, machine_options=config.machine_accelerators,
        accelerator=accelerator, cpu=",".join(filter(None, (CPU[accelerator], config.cpu_features))),
        vcpus=min(size.vcpus, size.max_vcpus), max_vcpus=size.max_vcpus,
        memory=min(size.memory, size.max_memory), max_memory=size.max_memory,
        memory_slots=config.memory_slots, kernel=source.kernel, initrd=source.initrd, image=source.image,
        firmware=config.firmware, kernel_params=(*params, *config.kernel_params), hotplug_ports=hotplug_ports(config),
        block_driver=config.block_device_driver, iothreads=config.enable_iothreads,
        prealloc=config.enable_mem_prealloc, hugepages=config.enable_hugepages,
        # Memory is locked only where it is taken at once anyway.
        mlock=config.enable_mem_prealloc and not config.enable_swap,
        msize_9p=config.msize_9p, entropy_source=config.entropy_source, tcg_cache=TCG_CACHE,
        debug=config.debug_hypervisor, nvdimm=source.nvdimm, image_offset=source.image_offset)


def _accelerator(config: RuntimeConfig, options: InvocationOptions) -> str:
    if config.accelerator == "auto":
        return "kvm" if options.kvm_usable else "tcg"
    if config.accelerator == "kvm" and not options.kvm_usable:
        raise HostError("accelerator is \"kvm\", and KVM cannot be used on this host",
                        "the processor shows no vmx or svm, or /dev/kvm is missing; use \"auto\" or \"tcg\"")
    return config.accelerator


def _clock(accelerator: str, options: InvocationOptions) -> list[str]:
    """Under TCG the guest's time stamp counter is the host's: it need not be measured.

    Measuring fails now and then on a loaded host.  With KVM the guest has kvm-clock.
    """
    khz = options.tsc_khz
    return [f"tsc_early_khz={khz}", "tsc=reliable"] if accelerator == "tcg" and khz else []
