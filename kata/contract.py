"""The backend contract: policy in, plans out.  No I/O, nothing heavy.

A *backend* is the policy of one flavor (``clear``, ``runv``, ``unified``).  It
reads its own configuration language and turns an OCI bundle into frozen
*plans*; one engine (the proxy, driven by :mod:`kata.sandbox`) carries out any
plan and knows no flavor.  A difference between two flavors is therefore a
difference between two plans, and a plan can be tested without a VM.

Every plan is a frozen record of JSON types (``str int bool tuple dict`` and
other plans), so that it can be hashed, stored, sent to the proxy and compared.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from kata.record import Record

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, ClassVar

    from kata.oci import Bundle

CONTRACT_VERSION = 1


# --- capabilities: data, everything False by default ---------------------------


class Capabilities(Record):
    """What a flavor can do; the engine asks before it calls."""

    templates: bool = False  #: may boot from a VM saved after its agent was ready
    pool: bool = False  #: may claim a warmed, paused VM
    image_boot: bool = False  #: guest root from a disk image
    initrd_boot: bool = False  #: guest root from an initrd
    join_by_netns: bool = False  #: a container in another's netns shares its VM
    resize: bool = False  #: vCPUs and memory change after boot
    hotplug_network: bool = False  #: interfaces may come and go while running
    events: bool = False  #: the ``events`` verb
    update: bool = False  #: the ``update`` verb


# --- what a flavor read from its configuration ----------------------------------


class RuntimeConfig(Record):
    """Settings of one invocation, whatever language they were written in.

    ``sources`` names, in order, what was read (files, environment variables,
    annotations, options); later sources won.
    """

    qemu_path: str = "qemu-system-x86_64"
    kernel: str = ""  #: path; "" = the selected kernel of the asset store
    initrd: str = ""  #: path; "" with no image = the store's initrd
    image: str = ""  #: path of a root image; excludes ``initrd``
    disable_image_nvdimm: bool = False  #: the image is a virtio disk, though it could be an NVDIMM
    firmware: str = ""
    kernel_params: tuple[str, ...] = ()
    machine_type: str = "q35"
    machine_accelerators: str = ""
    accelerator: str = "auto"  #: auto | kvm | tcg
    cpu_features: str = ""
    default_vcpus: int = 1
    default_maxvcpus: int = 0  #: 0 = as many as the host has
    default_memory: int = 2048  #: MiB
    memory_slots: int = 10
    default_bridges: int = 1
    block_device_driver: str = "virtio-blk"
    disable_block_device_use: bool = False
    enable_iothreads: bool = False
    enable_mem_prealloc: bool = False
    enable_hugepages: bool = False
    enable_swap: bool = False
    msize_9p: int = 524288  #: bytes
    shared_fs: str = "virtio-9p"
    entropy_source: str = "/dev/urandom"
    guest_hook_path: str = ""
    enable_annotations: tuple[str, ...] = ()  #: regular expressions of names
    internetworking_model: str = "tcfilter"
    disable_guest_seccomp: bool = False
    disable_new_netns: bool = False
    sandbox_cgroup_only: bool = False
    enable_agent_pidns: bool = False
    agent_transport: str = "ttrpc"  #: ttrpc | yamux-grpc (a Kata 1.x agent)
    kernel_modules: tuple[str, ...] = ()
    boot_timeout: float = 60.0  #: seconds until the agent must answer
    template: bool = True  #: where the guest root is an initrd
    template_path: str = "/run/kata/template"
    pool_size: int = 0  #: machines kept ready
    pool_path: str = "/run/kata/pool"
    debug_hypervisor: bool = False
    debug_proxy: bool = False
    debug_shim: bool = False
    debug_agent: bool = False
    debug_runtime: bool = False
    experimental: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    extra: Mapping[str, Any] = {}  #: a flavor's own keys


#: File name of a kernel that is compiled for emulated processors alone, without guards against speculation.
TCG_KERNEL = "vmlinux-tcg"
#: Devices that can be plugged into one PCI bridge of a q35.
BRIDGE_SLOTS = 31


class InvocationOptions(Record):
    """What the command line, the environment and the host gave the backend."""

    config_path: str = ""  #: --kata-config, --cc-config
    options: Mapping[str, str] = {}  #: flavor options
    environ: Mapping[str, str] = {}
    host_cpus: int = 1
    host_memory: int = 0  #: MiB
    kvm_usable: bool = False
    tsc_khz: int = 0  #: frequency of the host's time stamp counter; 0 = not known
    kernel_asset: str = ""  #: the store's selected kernel
    initrd_asset: str = ""
    image_asset: str = ""
    boot_initrd_asset: str = ""  #: loads the modules an image boot needs
    guest_folders: tuple[str, ...] = ()  #: what a container chooses as kernel or image lies below one of them


# --- plans ---------------------------------------------------------------------


class MachinePlan(Record):
    """One QEMU machine.  Memory in MiB."""

    qemu_path: str
    machine_type: str  #: q35 | pc
    machine_options: str
    accelerator: str  #: kvm | tcg
    cpu: str  #: -cpu
    vcpus: int
    max_vcpus: int
    memory: int
    max_memory: int
    memory_slots: int
    kernel: str
    initrd: str  #: "" = none
    image: str  #: "" = none
    firmware: str
    kernel_params: tuple[str, ...]
    hotplug_ports: int  #: PCI slots kept free for disks and interfaces
    block_driver: str  #: virtio-blk | virtio-scsi
    iothreads: bool
    prealloc: bool
    hugepages: bool
    mlock: bool
    msize_9p: int
    entropy_source: str
    tcg_cache: int  #: translation cache, MiB
    debug: bool
    nvdimm: int = 0  #: bytes of the image, which is an NVDIMM; 0 = it is a virtio disk
    image_offset: int = 0  #: of a virtio disk: bytes of the file before its first


class SandboxPlan(Record):
    """One sandbox: a machine, its network and how it starts."""

    id: str
    flavor: str
    machine: MachinePlan
    base_vcpus: int  #: the machine's before its containers add to it: what a template has
    base_memory: int  #: MiB
    boot: str  #: cold | template | pool: what is tried first; each falls back to those before it
    template_path: str  #: "" = no templates
    agent_transport: str  #: ttrpc | yamux-grpc
    boot_timeout: float
    hostname: str
    network_model: str  #: tcfilter | macvtap | bridged | mirred | none
    hotplug_network: bool
    shared_pidns: bool  #: all containers in one pid namespace
    guest_hook_path: str
    kernel_modules: tuple[str, ...]
    cgroup_only: bool  #: every host process of the sandbox in its cgroup
    pool_path: str = ""  #: where a machine is claimed; "" = nowhere
    no_nvdimm: str = ""  #: why the image is a virtio disk and no NVDIMM


class Share(Record):
    """A host directory or file that appears in the guest.

    The engine opens ``source`` (a clone of its mount, taken by file
    descriptor), and the guest sees it below the shared folder as ``name``.
    """

    source: str
    name: str  #: one path component, unique in the container
    is_dir: bool
    read_only: bool
    recursive: bool = True  #: with the mounts below ``source``
    propagation: str = "private"  #: private | slave: mounts made later below ``source`` appear too


class Disk(Record):
    """A host block device (or a regular file) attached to the guest."""

    source: str
    serial: str  #: at most 20 characters, unique in the sandbox
    read_only: bool
    container_path: str
    mode: int
    uid: int
    gid: int


class ContainerPlan(Record):
    """One container in a sandbox.

    ``spec`` is the OCI configuration as the guest gets it: paths of shares
    already replaced by guest paths, host-only parts taken out.  ``extras`` are
    the parts of it that oci.proto cannot carry, in the JSON form of
    ``kata.v1.PrepareContainerRequest``.
    """

    id: str
    sandbox_id: str
    role: str  #: sandbox | container | single
    flavor: str
    spec: Mapping[str, Any]
    extras: Mapping[str, Any]
    storages: tuple[Mapping[str, Any], ...]
    shares: tuple[Share, ...]
    disks: tuple[Disk, ...]
    guest_process_at: str  #: create | start
    pause_scope: str  #: vm | container | process
    vcpus: int  #: what this container adds to the sandbox
    memory: int  #: MiB it adds
    dns_relay: tuple[str, ...]  #: loopback resolvers of the host's netns to relay
    warnings: tuple[str, ...]  #: OCI features that do not hold, by name


class ResizePlan(Record):
    """vCPUs and memory (MiB) a sandbox should have."""

    vcpus: int
    memory: int


# --- the contract ----------------------------------------------------------------


class Backend(ABC):
    """Policy of one flavor.

    Every method is pure: it reads what it is given (and configuration files),
    changes nothing, and may be called any number of times.  A failure is a
    :class:`kata.errors.KataError` and leaves nothing to clean up.
    """

    contract_version: ClassVar[int] = CONTRACT_VERSION
    name: ClassVar[str]
    capabilities: ClassVar[Capabilities] = Capabilities()

    @abstractmethod
    def config_paths(self, options: InvocationOptions) -> Sequence[str]:
        """Configuration files in the order in which they are looked for."""

    @abstractmethod
    def load_config(self, options: InvocationOptions, annotations: Mapping[str, str]) -> RuntimeConfig:
        """Read the configuration; ``annotations`` are the bundle's.

        :raise kata.errors.ConfigError: a file, line, key or value is not known
            or not allowed.
        """

    @abstractmethod
    def plan_sandbox(self, config: RuntimeConfig, bundle: Bundle, options: InvocationOptions) -> SandboxPlan:
        """The sandbox for a container that joins none."""

    @abstractmethod
    def plan_container(self, config: RuntimeConfig, bundle: Bundle, sandbox_id: str, role: str) -> ContainerPlan:
        """A container; ``role`` is ``sandbox``, ``container`` or ``single``."""

    @abstractmethod
    def sandbox_of(self, bundle: Bundle) -> tuple[str, str]:
        """``(role, sandbox id)`` of a bundle; the id is "" for a new sandbox."""

    @abstractmethod
    def plan_resize(self, config: RuntimeConfig, containers: Sequence[Mapping[str, Any]]) -> ResizePlan:
        """The size for a sandbox that holds containers with these resources."""
