"""Kata 1.x's and 2.x's to 4.x's configuration.toml -> unified.

Kata 1.x's keys are the runtime's own language (:mod:`kata.config.kata1`), where each says whether it is taken, has
no effect, or cannot hold.  Here is what came later, and what needs more words.
"""

from __future__ import annotations

from kata.migrate import CHANGED, DROPPED, RENAMED, SAME, Rule
from kata.migrate.rules import choose
from kata.record import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Where Kata 1.x and later ones look for it; the first two are the runtime's own.
PLACES = ("/etc/kata-containers/configuration.toml", "/usr/share/defaults/kata-containers/configuration.toml",
          "/opt/kata/share/defaults/kata-containers/configuration.toml")

MOVED = {"hypervisor.qemu.factory": "factory", "proxy.cc": "proxy.kata", "shim.cc": "shim.kata",
         "agent.hyperstart": "agent.kata"}
#: Tables of other hypervisors.  Without a [hypervisor.qemu] one of them says what its keys say there.
HYPERVISORS = tuple(f"hypervisor.{name}" for name in (
    "clh", "firecracker", "acrn", "dragonball", "stratovirt", "cloud-hypervisor", "remote", "openvmm"))
#: Keys that mean the same in the tables of all hypervisors.
OF_ANY = ("kernel", "image", "initrd", "kernel_params", "default_vcpus", "default_maxvcpus", "default_memory",
          "enable_debug", "entropy_source", "guest_hook_path", "enable_annotations", "enable_hugepages")

_STORE = "/usr/share/kata-containers/", "/opt/kata/share/kata-containers/"
_QEMU_OF_KATA = "/opt/kata/bin/"


_OWN_KERNEL = Rule(CHANGED, convert=lambda _value: None,
                   why="this kernel is of Kata's packages; that of the asset store is used (kata kernel list)")
_OWN_IMAGE = Rule(CHANGED, convert=lambda _value: None,
                  why="it holds Kata's agent; the guest of the asset store, with ours, is used (kata image list)",
                  instead="a Kata 1.x guest works, with its path here and transport = \"yamux-grpc\" in [agent.kata]")


def _vcpus(value: Any) -> Rule:
    if isinstance(value, float):
        return Rule(RENAMED, convert=lambda v: -int(-v // 1), why="whole vCPUs: rounded up")
    return Rule(SAME)


def _asset(kind: str) -> Any:
    def rule(path: Any) -> Rule:
        if str(path).startswith(_STORE):
            return replace(_OWN_KERNEL if kind == "kernel" else _OWN_IMAGE, fields=(f"sandbox.machine.{kind}",))
        return Rule(SAME)

    return rule


def _off(why: str, instead: str = "", *, kind: str = DROPPED) -> Rule:
    """A key whose false, 0 or empty value asks for nothing."""
    asked = Rule(kind, why=why, instead=instead, convert=lambda _value: None)
    nothing = Rule(DROPPED, why="it asks for nothing; there is no such key here")
    return Rule(DROPPED, convert=lambda value: asked if value else nothing)


_SHARED_FS = {
    "virtio-9p": Rule(SAME),
    "virtio-fs": Rule(CHANGED, convert=lambda _value: "virtio-9p",
                      why="files are shared by 9p, which needs no daemon and no shared guest memory; many small files "
                          "are slower", instead="block devices for data that is read and written a lot"),
}
_NO_CONFIDENTIAL = "there are no confidential guests: the host can read a guest's memory"
_NO_VFIO = "devices cannot be passed through by VFIO"
_NO_RATE = "rates are not limited"
_NO_TRACING = "tracing is not supported"
_BY_ITSELF = "QEMU runs with -sandbox on and without needless capabilities in any case"
_RS = "QEMU and our agent are the only ones; the table names say it"

_HYPERVISOR: dict[str, Rule] = {
    "kernel": Rule(SAME, convert=_asset("kernel")),
    "image": Rule(SAME, convert=_asset("image")),
    "initrd": Rule(SAME, convert=_asset("initrd")),
    "path": Rule(SAME, convert=lambda path: Rule(
        CHANGED, convert=lambda _value: None, fields=("sandbox.machine.qemu_path",),
        why="it is the QEMU of Kata's packages; qemu-system-x86_64 of the host is used",
        instead="set path again if it is to stay") if str(path).startswith(_QEMU_OF_KATA) else Rule(SAME)),
    "default_vcpus": Rule(SAME, convert=_vcpus),
    "shared_fs": Rule(SAME, convert=choose(_SHARED_FS, Rule(
        DROPPED, why="a share is how a container's files get into the guest; they travel by 9p"))),
    "use_vsock": Rule(SAME, convert=choose({False: Rule(SAME)}, Rule(
        DROPPED, why="the agent's channel is a virtio-serial port, which works on every host"))),
    "rootfs_type": _off("the image's file system is found by the kernel"),
    "vm_rootfs_driver": _off("an image is always a virtio-blk disk"),
    "firmware_volume": _off("firmware is one file", "firmware"),
    "seccompsandbox": _off(_BY_ITSELF),
    "disable_seccomp": _off("QEMU's own filter is always on"),
    "rootless": _off("QEMU runs as root, without needless capabilities", kind=DROPPED),
    "disable_selinux": _off("SELinux labels are not set"),
    "disable_guest_selinux": _off("SELinux is not in the guest"),
    "block_device_aio": _off("QEMU's default is used"),
    "block_device_logical_sector_size": _off("QEMU's default is used"),
    "block_device_physical_sector_size": _off("QEMU's default is used"),
    "block_device_num_queues": _off("a disk has one queue"),
    "block_device_queue_size": _off("QEMU's default is used"),
    "num_queues": _off("a disk has one queue"),
    "queue_size": _off("QEMU's default is used"),
    "indep_iothreads": _off("iothreads are enable_iothreads'", "enable_iothreads"),
    "network_queues": _off("an interface has one queue"),
    "default_maxmemory": _off("a machine may grow to the host's memory", "limits of containers"),
    "reclaim_guest_freed_memory": _off("freed memory is not given back to the host"),
    "memory_restore_mode": _off("a template's memory is always mapped copy-on-write"),
    "enable_guest_swap": _off("guests do not swap"),
    "enable_numa": _off("a machine has one NUMA node"),
    "numa_mapping": _off("a machine has one NUMA node"),
    "enable_balloon_f_reporting": _off("freed memory is not given back to the host"),
    "enable_vcpus_pinning": _off("vCPUs are not pinned", "the cpuset of the container's cgroup holds for QEMU"),
    "overhead_vcpus": _off("there is no overhead beside default_vcpus", "default_vcpus"),
    "overhead_memory": _off("there is no overhead beside default_memory", "default_memory"),
    "guest_memory_dump_path": _off("a guest that panics ends; its memory is not dumped"),
    "guest_memory_dump_paging": _off("a guest that panics ends; its memory is not dumped"),
    "use_legacy_serial": _off("the console is always a serial port"),
    "extra_monitor_socket": _off("a sandbox has one qmp.sock, which the proxy holds", "socat to qmp.sock by hand"),
    "hypervisor_loglevel": _off("QEMU's log is qemu.log in the sandbox's folder", "enable_debug"),
    "vhost_user_reconnect_timeout_sec": _off("there are no vhost-user devices"),
    "virtio_fs_queue_size": _off("it is for shared_fs = \"virtio-fs\", which is not used"),
    "virtio_fs_is_dax": _off("it is for shared_fs = \"virtio-fs\", which is not used"),
    "valid_entropy_sources": _off("entropy_source can be set by a file only"),
    "jailer_path": _off("QEMU has no jailer"), "valid_jailer_paths": _off("QEMU has no jailer"),
    "ctlpath": _off("it is ACRN's"), "valid_ctlpaths": _off("it is ACRN's"),
    "disk_rate_limiter_bw_max_rate": _off(_NO_RATE, "linux.resources.blockIO of the container"),
    "disk_rate_limiter_bw_one_time_burst": _off(_NO_RATE),
    "disk_rate_limiter_ops_max_rate": _off(_NO_RATE, "linux.resources.blockIO of the container"),
    "disk_rate_limiter_ops_one_time_burst": _off(_NO_RATE),
    "net_rate_limiter_bw_max_rate": _off(_NO_RATE), "net_rate_limiter_bw_one_time_burst": _off(_NO_RATE),
    "net_rate_limiter_ops_max_rate": _off(_NO_RATE), "net_rate_limiter_ops_one_time_burst": _off(_NO_RATE),
    **{key: _off(_NO_VFIO) for key in ("cold_plug_vfio", "hot_plug_vfio", "pcie_switch_port", "vfio_mode",
                                       "pod_resource_api_sock", "default_gpus", "default_gpu_model")},
    **{key: _off(_NO_CONFIDENTIAL) for key in (
        "confidential_guest", "sev_snp_guest", "tdx_quote_generation_service_socket_port", "snp_id_block",
        "snp_id_auth", "snp_guest_policy", "measurement_algo", "kernel_verity_params", "initdata")},
    **{key: _off("there is no remote hypervisor") for key in ("remote_hypervisor_socket", "remote_hypervisor_timeout",
                                                               "remote_hypervisor_name")},
}
_RUNTIME: dict[str, Rule] = {
    "name": _off(_RS), "hypervisor_name": _off(_RS), "agent_name": _off(_RS),
    "static_sandbox_resource_mgmt": _off(
        "a machine is sized by the limits of its first container and grows with the others", kind=CHANGED),
    "static_sandbox_default_workload_mem": _off("machines grow with their containers", "default_memory"),
    "static_sandbox_default_workload_vcpus": _off("machines grow with their containers", "default_vcpus"),
    "vfio_mode": _off(_NO_VFIO), "sandbox_bind_mounts": _off("a sandbox has no mounts of its own",
                                                             "mounts of the containers"),
    "disable_guest_empty_dir": _off("an emptyDir is a folder of the host in any case"),
    "emptydir_mode": _off("an emptyDir is a folder of the host in any case"),
    "enable_vcpus_pinning": _off("vCPUs are not pinned", "the cpuset of the container's cgroup holds for QEMU"),
    "enable_pprof": _off("there is no pprof", "kata --timings VERB"),
    "guest_selinux_label": _off("SELinux is not in the guest"),
    "create_container_timeout": Rule(DROPPED, why="a container's creation may take 90 s once the guest is up",
                                     instead="boot_timeout in [agent.kata] for slow boots"),
    "dan_conf": _off("there are no directly attached networks"),
    "experimental_force_guest_pull": _off("images are pulled by the engine on the host"),
    "force_guest_pull": _off("images are pulled by the engine on the host"),
    "keep_abnormal": _off("a sandbox that fails is removed; its logs are in the error"),
    "use_passfd_io": _off("streams travel by the proxy"), "passfd_listener_port": _off("streams travel by the proxy"),
    "log_level": _off("there is no level but debug", "enable_debug"),
    **{key: _off(_NO_TRACING) for key in ("jaeger_endpoint", "jaeger_user", "jaeger_password")},
}
_AGENT: dict[str, Rule] = {
    "dial_timeout": Rule(RENAMED, "agent.kata", "boot_timeout",
                         why="seconds until the agent has to answer; a higher one does no harm"),
    "dial_timeout_ms": Rule(RENAMED, "agent.kata", "boot_timeout", lambda v: max(1, -(-v // 1000)),
                            why="seconds instead of milliseconds"),
    "reconnect_timeout_ms": _off("a proxy that was restarted tries as long as boot_timeout", "boot_timeout"),
    "debug_console_enabled": _off("the guest has no debug console", "console.log in the sandbox's folder"),
    "cdh_api_timeout": _off(_NO_CONFIDENTIAL), "cdh_api_timeout_ms": _off(_NO_CONFIDENTIAL),
    "server_port": _off("the channel is a virtio-serial port"), "log_port": _off("the agent's log is on the console"),
    "passfd_listener_port": _off("streams travel by the proxy"),
    "health_check_request_timeout_ms": _off("the proxy notices a dead guest by itself"),
    "container_pipe_size": _off("the agent chooses the size of pipes"),
    "image_registry_auth": _off("images are pulled by the engine on the host"),
    "image_policy_file": _off("images are pulled by the engine on the host"),
}

RULES: dict[tuple[str, str], Rule] = {
    **{("hypervisor.qemu", key): rule for key, rule in _HYPERVISOR.items()},
    **{("runtime", key): rule for key, rule in _RUNTIME.items()},
    **{("agent.kata", key): rule for key, rule in _AGENT.items()},
    ("agent.kata.mem_agent", "*"): _off("there is no memory agent"),
    ("image", "provision"): _off("images are pulled by the engine on the host"),
    ("image", "service_offload"): _off("images are pulled by the engine on the host"),
    **{("hypervisor.qemu.factory", key): Rule(RENAMED, "factory")
       for key in ("enable_template", "template_path", "vm_cache_number")},
    ("hypervisor.qemu.factory", "vm_cache_endpoint"): Rule(RENAMED, "factory"),
    ("factory", "vm_cache_endpoint"): Rule(CHANGED, convert=lambda _value: None,
                                           why="there it was a socket; here it is the folder in which machines are "
                                               "claimed, and its default serves"),
    ("factory", "template_path"): Rule(SAME, convert=lambda path: Rule(
        CHANGED, convert=lambda _value: None, fields=("sandbox.template_path",),
        why="it is Kata's own folder, whose templates hold another agent; the default, /run/kata/template, is used")
        if str(path) == "/run/vc/vm/template" else Rule(SAME)),
    ("proxy.cc", "path"): Rule(DROPPED, why="the proxy is built into this runtime"),
    ("shim.cc", "path"): Rule(DROPPED, why="the shim is built into this runtime"),
}

#: Defaults of Kata that are others here: (Kata's, ours, why).  They are told, and not written: they are better.
DEFAULTS: dict[tuple[str, str], tuple[Any, Any, str]] = {
    ("hypervisor.qemu", "machine_type"): ("pc (q35 since 2.0)", "q35", "Kata 2.x's choice"),
    ("hypervisor.qemu", "cpu_features"): ("pmu=off", "", "QEMU's model is taken as it is"),
    ("hypervisor.qemu", "block_device_driver"): ("virtio-scsi", "virtio-blk", "fewer layers"),
    ("hypervisor.qemu", "msize_9p"): (8192, 524288, "larger requests are much faster"),
    ("hypervisor.qemu", "shared_fs"): ("virtio-9p (virtio-fs since 2.0)", "virtio-9p", "no daemon is needed"),
    ("factory", "enable_template"): (False, True, "a template is made on first use where an initrd boots"),
    ("runtime", "disable_guest_seccomp"): (True, False, "a container's seccomp filter holds in the guest"),
    ("agent.kata", "boot_timeout"): ("dial_timeout, 30 to 60 s", 60, "the same key for every host"),
}
