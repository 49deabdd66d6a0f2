"""A machine plan as a QEMU command line: a pure function."""

from __future__ import annotations

from kata.contract import BRIDGE_SLOTS, MachinePlan
from kata.record import Record

#: How the guest finds its folder shared by the host (Kata 1.x's tag).
SHARE_TAG = "kataShared"
CHANNEL = "agent.channel.0"
CHANNEL_TOKEN = "agent.channel_token"
TEMPLATE = "agent.template"
LEAST_QEMU = (6, 1)  #: from which on a q35 plugs by ACPI; our guests know no other way


class Endpoints(Record):
    """What QEMU is given beside its plan: file descriptors it inherits, and paths.

    ``channel`` and ``qmp`` are listening unix sockets, so that whoever connects
    first never waits for a path to appear and a restarted proxy can connect again.
    """

    name: str
    channel: int
    qmp: int
    console: str  #: file that takes the serial console, appended to
    share: str  #: folder exported to the guest
    generation_id: str  #: a GUID, new for every clone
    channel_token: str  #: 64 hex digits that begin each connection of the channel
    memory_file: str = ""  #: file that is the machine's memory; "": anonymous memory
    memory_shared: bool = False  #: what the guest writes goes to the file
    memory_read_only: bool = False  #: QEMU opens the file for reading only
    incoming: bool = False  #: wait for a saved state instead of booting


def qemu_argv(plan: MachinePlan, ends: Endpoints) -> list[str]:
    """The command line; one option and its value on one line below, with reasons."""
    # One thread for one processor: a thread that comes with a later one gets a region of the translation cache, and
    # QEMU aborts when none is free (tcg_region_initial_alloc, once in a dozen); plugged ones share the thread then.
    thread = "single" if plan.vcpus == 1 else "multi"
    accel = f"tcg,thread={thread},tb-size={plan.tcg_cache}" if plan.accelerator == "tcg" else "kvm"
    # Nothing is ever plugged into the SATA controller, whose buffers take 1.6 MiB of QEMU.
    options = ",".join(x for x in (plan.machine_type, "sata=off", "nvdimm=on" if plan.nvdimm else "",
                                   plan.machine_options, "memory-backend=ram") if x)
    if ends.memory_file:
        shared = "on" if ends.memory_shared else "off"
        backend = f"memory-backend-file,mem-path={_escape(ends.memory_file)},share={shared}"
        if ends.memory_read_only:  # not the guest's memory: that is a private copy of its pages
            backend += ",readonly=on,rom=off"
    else:
        backend = "memory-backend-memfd,hugetlb=on" if plan.hugepages else "memory-backend-ram"
    prealloc = ",prealloc=on" if plan.prealloc else ""
    argv = [
        plan.qemu_path,
        "-name", f"{ends.name},debug-threads=on",
        "-nodefaults", "-no-user-config", "-display", "none",
        # A guest that ends or panics ends the machine; it never boots again by itself.
        "-no-reboot",
        "-machine", options,
        "-accel", accel,
        "-cpu", plan.cpu,
        "-smp", f"cpus={plan.vcpus},maxcpus={plan.max_vcpus},sockets={plan.max_vcpus},cores=1,threads=1",
        "-object", f"{backend},id=ram,size={plan.memory}M{prealloc}",
        "-m", _memory(plan),
        "-kernel", plan.kernel,
        "-append", " ".join((*plan.kernel_params, f"{CHANNEL_TOKEN}={ends.channel_token}",
                             *([TEMPLATE] if ends.memory_shared else []))),
        "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        "-chardev", f"socket,id=qmp,fd={ends.qmp},server=on,wait=off",
        "-mon", "chardev=qmp,mode=control",
        "-chardev", f"file,id=console,path={_escape(ends.console)},append=on",
        "-serial", "chardev:console",
        "-device", "virtio-serial-pci,id=serial,max_ports=2",
        "-chardev", f"socket,id=channel,fd={ends.channel},server=on,wait=off",
        "-device", f"virtserialport,chardev=channel,name={CHANNEL}",
        "-fsdev", f"local,id=share,path={_escape(ends.share)},security_model=passthrough,multidevs=remap",
        "-device", f"virtio-9p-pci,fsdev=share,mount_tag={SHARE_TAG}",
        "-object", f"rng-random,id=rng,filename={_escape(plan.entropy_source)}",
        "-device", "virtio-rng-pci,rng=rng",
        # Tells a clone that it is one (the kernel reseeds its generator).
        "-device", f"vmgenid,guid={ends.generation_id}",
    ]
    if not ends.memory_file:
        # Pages that the guest frees go back to the host.  Not with a memory file: QEMU takes a page away by punching a
        # hole into the file, be it mapped privately, and the file is the template of other machines.  A balloon that
        # is never asked to grow is no better: its guest decides what it puts in.
        argv += ["-device", "virtio-balloon-pci,id=balloon,free-page-reporting=on,deflate-on-oom=on"]
    if ends.incoming:
        argv += ["-incoming", "defer"]
    if plan.mlock:
        argv += ["-overcommit", "mem-lock=on"]
    if plan.firmware:
        argv += ["-bios", plan.firmware]
    if plan.initrd:
        argv += ["-initrd", plan.initrd]
    image = _escape(plan.image)
    if plan.nvdimm:
        argv += [
            # The host's copy is mapped as it is: one for all machines.  unarmed: the guest sees that it is read-only.
            "-object", f"memory-backend-file,id=image,mem-path={image},size={plan.nvdimm},share=on,readonly=on",
            "-device", "nvdimm,id=image,memdev=image,unarmed=on",
        ]
    elif plan.image:
        argv += [
            "-blockdev", (f"driver=raw,node-name=image,read-only=on,auto-read-only=off,offset={plan.image_offset},"
                          f"file.driver=file,file.filename={image}"),
            "-device", "virtio-blk-pci,drive=image,serial=kata-image",
        ]
    if plan.block_driver == "virtio-scsi":
        argv += ["-device", "virtio-scsi-pci,id=scsi0"]
    if plan.iothreads:
        argv += ["-object", "iothread,id=iothread0"]
    if plan.machine_type.startswith("q35"):
        # q35's own bus takes nothing that is plugged in.  A boot with a bridge takes as long as one without; eight root
        # ports cost it a tenth.  Its devices have no I/O ports; the windows for their memory are there before they are.
        for n in range(-(-plan.hotplug_ports // BRIDGE_SLOTS)):
            argv += ["-device", (f"pci-bridge,id=bridge{n},bus=pcie.0,chassis_nr={n + 1},shpc=off,"
                                 "io-reserve=0,mem-reserve=1M,pref64-reserve=1M")]
    return argv


def _memory(plan: MachinePlan) -> str:
    """An NVDIMM takes a slot and address space of what may be plugged in."""
    grows = plan.max_memory > plan.memory
    if not grows and not plan.nvdimm:
        return f"{plan.memory}M"
    slots = (plan.memory_slots if grows else 0) + (1 if plan.nvdimm else 0)
    most = max(plan.max_memory, plan.memory) + (plan.nvdimm >> 20)
    return f"{plan.memory}M,slots={slots},maxmem={most}M"


def _escape(path: str) -> str:
    """QEMU's option parser ends a value at a comma; two commas are one."""
    return path.replace(",", ",,")


def too_old(machine_type: str, version: tuple[int, int]) -> str:
    """What such a QEMU cannot do that the plan takes for granted; "" if nothing."""
    if not machine_type.startswith("q35") or version >= LEAST_QEMU:
        return ""
    return (f"QEMU {'.'.join(map(str, version))} cannot plug devices into a q35 by ACPI: version "
            f"{'.'.join(map(str, LEAST_QEMU))} is needed")
