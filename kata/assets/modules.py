"""Kernel modules: which ones the guest gets, and in which order they load.

Module names use underscores, as ``/proc/modules`` prints them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kata.assets.elf import Elf
from kata.errors import HostError

#: Loaded by the agent before anything else: the channel, the shares, disks and interfaces.
BOOT = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p", "virtio_net", "virtio_blk", "overlay")

#: Loaded by the boot initrd before it mounts a root image: by what the image is.
DISK_BOOT = ("virtio_pci", "virtio_blk", "erofs", "ext4")
NVDIMM_BOOT = ("nfit", "nd_pmem", "erofs", "ext4")
IMAGE_BOOT = (*DISK_BOOT, *NVDIMM_BOOT)

#: There for whoever asks: the agent, the kernel itself through modprobe, or a container with the right.
ON_DEMAND = (
    # devices
    "virtio_balloon virtio_mem virtio_rng virtio_scsi sd_mod virtiofs loop dm_mod dm_snapshot"
    " vmw_vsock_virtio_transport rtc_cmos button evdev"
    # file systems
    " erofs ext4 crc32c_generic xfs fuse isofs squashfs nls_utf8 nls_ascii"
    # interfaces
    " tun veth bridge br_netfilter macvlan ipvlan vxlan dummy 8021q"
    # packet filter and NAT: what iptables (both kinds) and nft need for a container engine in a container
    " nf_tables nft_compat nft_chain_nat nft_ct nft_masq nft_nat nft_redir nft_reject_inet nft_limit nft_log"
    " nft_fib_inet nft_counter ip_tables iptable_filter iptable_nat iptable_mangle iptable_raw"
    " ip6_tables ip6table_filter ip6table_nat ip6table_mangle ip6table_raw xt_conntrack xt_MASQUERADE xt_addrtype"
    " xt_nat xt_REDIRECT xt_comment xt_multiport xt_mark xt_limit xt_tcpudp xt_state xt_set xt_statistic xt_LOG"
    " xt_CHECKSUM xt_CT xt_owner xt_TCPMSS xt_DSCP ipt_REJECT ip6t_REJECT xt_TPROXY xt_socket nf_conntrack_netlink"
    " nf_nat_ftp nf_conntrack_ftp ip_set ip_set_hash_ip ip_set_hash_net"
    # traffic control
    " sch_ingress sch_htb sch_tbf sch_netem sch_fq_codel cls_u32 act_mirred"
    # sockets and tools
    " af_packet_diag unix_diag inet_diag tcp_diag udp_diag netlink_diag"
).split()


@dataclass(frozen=True, slots=True)
class Module:
    name: str
    path: str  #: below ``lib/modules/VERSION``
    depends: tuple[str, ...]  #: including those that a softdep wants first
    aliases: tuple[str, ...]
    softdeps: tuple[str, ...]


class ModuleSet:
    """The modules of one kernel, below its directory ``lib/modules/VERSION``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._paths = {_name(p): p for p in sorted(root.glob("kernel/**/*.ko"))}
        self._read: dict[str, Module] = {}
        builtin = root / "modules.builtin"
        lines = builtin.read_text().splitlines() if builtin.exists() else []
        self.builtin = {_name(Path(line)) for line in lines}
        self._by_alias: dict[str, str] | None = None

    def get(self, name: str) -> Module | None:
        """A module by name; None when it is built in or does not exist."""
        if name in self._read:
            return self._read[name]
        path = self._paths.get(name)
        if path is None:
            return None
        info = Elf(path.read_bytes(), path.name).modinfo()
        depends: list[str] = []
        for key, value in info:
            if key == "depends":
                depends += [d.replace("-", "_") for d in value.split(",") if d]
        module = Module(
            name,
            str(path.relative_to(self.root)),
            tuple(depends),
            tuple(v for k, v in info if k == "alias"),
            tuple(v for k, v in info if k == "softdep"),
        )
        self._read[name] = module
        return module

    def closure(self, names: Iterable[str], *, required: bool) -> list[Module]:
        """``names`` with everything they depend on, each after its dependencies.

        :param required: raise for a name that the kernel neither has as a
            module nor built in; otherwise leave it out.
        """
        order: dict[str, Module] = {}

        def add(name: str, must: bool) -> None:
            if name in order or name in self.builtin:
                return
            module = self.get(name)
            if module is None:
                if must:
                    raise HostError(f"the kernel package has no module {name}", "it cannot serve as a guest kernel")
                return
            for dependency in module.depends:
                add(dependency, True)
            for soft in self._soft(module):
                add(soft, False)
            order[name] = module

        for name in names:
            add(name, required)
        return list(order.values())

    def _soft(self, module: Module) -> list[str]:
        """Modules that ``module`` wants loaded first; a softdep may name an alias."""
        wanted = []
        for line in module.softdeps:
            before = line.partition("pre:")[2].partition("post:")[0]
            wanted += [self._resolve(word) for word in before.split()]
        return [w for w in wanted if w]

    def _resolve(self, word: str) -> str:
        name = word.replace("-", "_")
        if name in self._paths or name in self.builtin:
            return name
        # Only crypto modules are named by alias in softdeps; reading those is cheap.
        if self._by_alias is None:
            self._by_alias = {}
            for candidate, path in self._paths.items():
                if "/crypto/" in str(path):
                    module = self.get(candidate)
                    for alias in module.aliases if module else ():
                        self._by_alias.setdefault(alias.replace("-", "_"), candidate)
        return self._by_alias.get(name, "")


def _name(path: Path) -> str:
    return path.name.partition(".ko")[0].replace("-", "_")


def index_files(modules: Iterable[Module]) -> dict[str, str]:
    """``modules.dep``, ``.alias`` and ``.softdep``: what modprobe looks names up in.

    The paths after a module are to be loaded from the last to the first.
    """
    found = {m.name: m for m in modules}

    def before(module: Module, order: list[str]) -> list[str]:
        for name in module.depends:
            dependency = found.get(name)
            if dependency and dependency.path not in order:
                before(dependency, order)
                order.append(dependency.path)
        return order

    every = sorted(found.values(), key=lambda m: m.path)
    return {
        "modules.dep": "".join(f"{m.path}:{''.join(' ' + p for p in reversed(before(m, [])))}\n" for m in every),
        "modules.alias": "".join(f"alias {a} {m.name}\n" for m in every for a in m.aliases),
        "modules.softdep": "".join(f"softdep {m.name} {s}\n" for m in every for s in m.softdeps),
    }
