"""The language of Kata Containers 1.x's configuration.toml, and what this runtime adds to it.

A file that came with Kata 1.x must load.  So a key for a component that is
built in here (paths of proxy, shim, netmon, virtiofsd) is accepted with a note;
a value that asks for something that is not there is refused with the reason.
"""

from __future__ import annotations

from kata.config.keys import (
    Key,
    Language,
    Table,
    boolean,
    choice,
    integer,
    path,
    patterns,
    program,
    seconds,
    strings,
    text,
    words,
)

_BUILT_IN = "it is built into this runtime; the path is not used"
_VIRTIO_FS = "it is for shared_fs = \"virtio-fs\", which is not used"
_PROXY_LOG = "the proxy writes its log in any case"
_NO_TRACING = "tracing is not supported"
_NO_VFIO = "devices cannot be passed through by VFIO"

HYPERVISOR: Table = {
    "path": Key(program, "qemu_path", annotation=True),
    "kernel": Key(path, "kernel", annotation=True),
    "image": Key(path, "image", annotation=True),
    "initrd": Key(path, "initrd", annotation=True),
    "firmware": Key(path, "firmware", annotation=True),
    "machine_type": Key(choice("q35", "pc", aliases={"": "q35"}), "machine_type", annotation=True),
    "machine_accelerators": Key(text, "machine_accelerators", annotation=True),
    "accelerator": Key(choice("auto", "kvm", "tcg"), "accelerator"),
    "kernel_params": Key(words, "kernel_params", annotation=True),
    "cpu_features": Key(text, "cpu_features", annotation=True),
    "default_vcpus": Key(integer(-1024, 1024), "default_vcpus", annotation=True),
    "default_maxvcpus": Key(integer(0, 1024), "default_maxvcpus", annotation=True),
    "default_bridges": Key(integer(0, 5), "default_bridges"),
    "default_memory": Key(integer(64), "default_memory", annotation=True),
    "memory_slots": Key(integer(0, 256), "memory_slots", annotation=True),
    "memory_offset": Key(integer(0), neutral=(0,), annotation=True,
                         refused="a machine has room for its image's NVDIMM anyway, and no disk is one"),
    "enable_virtio_mem": Key(boolean, refused="memory is added as DIMMs", neutral=(False,), annotation=True),
    "disable_block_device_use": Key(boolean, "disable_block_device_use", annotation=True),
    "block_device_driver": Key(choice("virtio-blk", "virtio-scsi"), "block_device_driver", annotation=True),
    "block_device_cache_set": Key(boolean, refused="QEMU's default cache mode is used", neutral=(False,),
                                  annotation=True),
    "block_device_cache_direct": Key(boolean, refused="QEMU's default cache mode is used", neutral=(False,),
                                     annotation=True),
    "block_device_cache_noflush": Key(boolean, refused="QEMU's default cache mode is used", neutral=(False,),
                                      annotation=True),
    "enable_iothreads": Key(boolean, "enable_iothreads", annotation=True),
    "enable_mem_prealloc": Key(boolean, "enable_mem_prealloc", annotation=True),
    "enable_hugepages": Key(boolean, "enable_hugepages", annotation=True),
    "enable_swap": Key(boolean, "enable_swap", annotation=True),
    "enable_debug": Key(boolean, "debug_hypervisor"),
    "disable_nesting_checks": Key(boolean, note="the machine is the same whether or not the host is virtual"),
    "shared_fs": Key(choice("virtio-9p", "virtio-fs"), "shared_fs", neutral=("virtio-9p",), annotation=True,
                     refused="virtio-fs needs shared guest memory and a daemon; use \"virtio-9p\""),
    "virtio_fs_daemon": Key(path, note=_VIRTIO_FS, annotation=True),
    "virtio_fs_cache": Key(choice("none", "auto", "always"), note=_VIRTIO_FS, annotation=True),
    "virtio_fs_cache_size": Key(integer(0), note=_VIRTIO_FS, annotation=True),
    "virtio_fs_extra_args": Key(strings, note=_VIRTIO_FS, annotation=True),
    "msize_9p": Key(integer(4096, 1 << 24), "msize_9p", annotation=True),
    "use_vsock": Key(boolean, refused="the agent's channel is a virtio-serial port, which works on every host",
                     neutral=(False,), annotation=True),
    "enable_vhost_user_store": Key(boolean, refused="there are no vhost-user devices", neutral=(False,),
                                   annotation=True),
    "vhost_user_store_path": Key(path, note="there are no vhost-user devices", annotation=True),
    "enable_iommu": Key(boolean, refused=_NO_VFIO, neutral=(False,), annotation=True),
    "enable_iommu_platform": Key(boolean, refused=_NO_VFIO, neutral=(False,), annotation=True),
    "hotplug_vfio_on_root_bus": Key(boolean, refused=_NO_VFIO, neutral=(False,), annotation=True),
    "pcie_root_port": Key(integer(0, 16), note="a bridge has room for more devices than there may be root ports",
                          annotation=True),
    "file_mem_backend": Key(text, refused="guest memory is anonymous, or a template's file", neutral=("",),
                            annotation=True),
    "pflashes": Key(strings, refused="firmware is one file: use firmware", neutral=((),), annotation=True),
    "disable_image_nvdimm": Key(boolean, "disable_image_nvdimm", annotation=True),
    "disable_vhost_net": Key(boolean, note="vhost is never used", annotation=True),
    "rx_rate_limiter_max_rate": Key(integer(0), refused="network rates are not limited", neutral=(0,), annotation=True),
    "tx_rate_limiter_max_rate": Key(integer(0), refused="network rates are not limited", neutral=(0,), annotation=True),
    "entropy_source": Key(path, "entropy_source", annotation=True),
    "guest_hook_path": Key(path, "guest_hook_path", annotation=True),
    "enable_annotations": Key(patterns, "enable_annotations"),
    "valid_hypervisor_paths": Key(strings, "extra.valid_hypervisor_paths"),
    "valid_virtio_fs_daemon_paths": Key(strings, note=_VIRTIO_FS),
    "valid_vhost_user_store_paths": Key(strings, note="there are no vhost-user devices"),
    "valid_file_mem_backends": Key(strings, note="guest memory is anonymous, or a template's file"),
}

FACTORY: Table = {
    "enable_template": Key(boolean, "template"),
    "template_path": Key(path, "template_path"),
    "vm_cache_number": Key(integer(0, 1000), "pool_size"),
    "vm_cache_endpoint": Key(path, "pool_path"),  # there a socket, here a folder: where a machine is claimed
}

AGENT: Table = {
    "enable_debug": Key(boolean, "debug_agent"),
    "enable_tracing": Key(boolean, refused=_NO_TRACING, neutral=(False,), annotation=True),
    "trace_mode": Key(choice("dynamic", "static"), note=_NO_TRACING, annotation=True),
    "trace_type": Key(choice("isolated", "collated"), note=_NO_TRACING, annotation=True),
    "kernel_modules": Key(strings, "kernel_modules", annotation=True),
    "transport": Key(choice("ttrpc", "yamux-grpc"), "agent_transport"),
    "boot_timeout": Key(seconds(1, 3600), "boot_timeout"),
}

RUNTIME: Table = {
    "enable_debug": Key(boolean, "debug_runtime"),
    "internetworking_model": Key(choice("tcfilter", "macvtap", "bridged", "none", aliases={"default": "tcfilter"}),
                                 "internetworking_model", annotation=True),
    "disable_guest_seccomp": Key(boolean, "disable_guest_seccomp", annotation=True),
    "disable_new_netns": Key(boolean, "disable_new_netns", refused="each sandbox has a network namespace",
                             neutral=(False,), annotation=True),
    "sandbox_cgroup_only": Key(boolean, "sandbox_cgroup_only", annotation=True,
                               note="every host process of a sandbox is in its cgroup in any case"),
    "enable_agent_pidns": Key(boolean, "enable_agent_pidns"),
    # "newstore" was Kata 1.10's name for what is the only way here: one versioned state file.
    "experimental": Key(strings, "experimental", refused="there are no experimental features",
                        neutral=((), ("newstore",)), annotation=True),
    "enable_tracing": Key(boolean, refused=_NO_TRACING, neutral=(False,)),
}

LANGUAGE: Language = {
    "hypervisor.qemu": HYPERVISOR,
    "factory": FACTORY,
    "proxy.kata": {"path": Key(path, note=_BUILT_IN), "enable_debug": Key(boolean, "debug_proxy", note=_PROXY_LOG)},
    "shim.kata": {"path": Key(path, note=_BUILT_IN),
                  "enable_debug": Key(boolean, "debug_shim", note="the shim has nothing to log; see the proxy's log"),
                  "enable_tracing": Key(boolean, refused=_NO_TRACING, neutral=(False,))},
    "agent.kata": AGENT,
    "netmon": {"enable_netmon": Key(boolean, "extra.enable_netmon",
                                    note="the proxy follows the network namespace in any case"),
               "path": Key(path, note=_BUILT_IN), "enable_debug": Key(boolean, "debug_proxy", note=_PROXY_LOG)},
    "runtime": RUNTIME,
}

#: Tables of Kata 1.x that cannot hold at all.
REFUSED_TABLES = {
    "hypervisor.firecracker": "QEMU is the only hypervisor: use [hypervisor.qemu]",
    "hypervisor.clh": "QEMU is the only hypervisor: use [hypervisor.qemu]",
    "hypervisor.acrn": "QEMU is the only hypervisor: use [hypervisor.qemu]",
    "proxy.cc": "it is of Clear Containers: use [proxy.kata], or the flavor clear",
    "shim.cc": "it is of Clear Containers: use [shim.kata], or the flavor clear",
    "agent.hyperstart": "it is of Clear Containers: use [agent.kata], or the flavor clear",
}

#: Prefix of annotations -> table.
ANNOTATIONS = {
    "io.katacontainers.config.hypervisor.": "hypervisor.qemu",
    "io.katacontainers.config.runtime.": "runtime",
    "io.katacontainers.config.agent.": "agent.kata",
}
#: Annotations that are spelt otherwise than their key.
ANNOTATION_NAMES = {"default_max_vcpus": "default_maxvcpus"}
#: Annotations with the SHA-512 that an asset must have -> field with its path.
ANNOTATION_HASHES = {
    "kernel_hash": "kernel", "image_hash": "image", "initrd_hash": "initrd", "firmware_hash": "firmware",
    "hypervisor_hash": "qemu_path",
}
