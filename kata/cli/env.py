"""``kata-env``: the configuration in force and what the host can do."""

from __future__ import annotations

import json
import os
import platform
import sys
from typing import Any

from kata import OCI_VERSION, __version__
from kata.cli.context import Context
from kata.table import FLAG, Namespace, Option, Verb

VERB = Verb(
    "Print the configuration and the host's abilities, as TOML or JSON.",
    Option("--json", kind=FLAG, help="as JSON"),
)

#: Version of this output's shape.
META_VERSION = "1.0.24"


def run(context: Context, args: Namespace) -> int:
    data = collect(context)
    print(json.dumps(data, indent=2) if args["json"] else toml(data), end="\n")
    return 0


def collect(context: Context) -> dict[str, Any]:
    """The tables of Kata 1.x's ``kata-env`` that have a meaning here."""
    from kata import hostfacts
    from kata.build import COMMIT

    backend = context.backend()
    options = context.invocation()
    config = backend.load_config(options, {})
    facts = hostfacts.collect()
    machine = config.accelerator
    if machine == "auto":
        machine = "kvm" if facts.kvm_usable else "tcg"
    return {
        "Meta": {"Version": META_VERSION},
        "Runtime": {
            "Flavor": backend.name,
            "Debug": config.debug_runtime,
            "Path": os.path.abspath(sys.argv[0]),
            "Version": {"Semver": __version__, "Commit": COMMIT, "OCI": OCI_VERSION},
            "Config": {"Paths": list(config.sources), "Notes": list(config.extra.get("notes", ()))},
        },
        "Hypervisor": {
            "Path": config.qemu_path,
            "Version": qemu_version(config.qemu_path),
            "MachineType": config.machine_type,
            "Accelerator": machine,
            "BlockDeviceDriver": config.block_device_driver,
            "Msize9p": config.msize_9p,
            "SharedFS": config.shared_fs,
            "Debug": config.debug_hypervisor,
        },
        "Kernel": {"Path": config.kernel or options.kernel_asset, "Parameters": " ".join(config.kernel_params)},
        "Initrd": {"Path": "" if config.image else config.initrd or options.initrd_asset},
        "Image": {"Path": config.image},
        "Agent": {"Transport": config.agent_transport, "Debug": config.debug_agent},
        "Host": {
            "Kernel": platform.release(),
            "Architecture": platform.machine(),
            "CPUs": facts.cpus,
            "MemoryMiB": facts.memory,
            "VMContainerCapable": True,
            "KVM": facts.kvm_usable,
            "SupportVSocks": os.path.exists("/dev/vhost-vsock"),
            "Distro": _distro(),
        },
    }


def qemu_version(path: str) -> str:
    """The first line that QEMU says of itself, or why it cannot."""
    from kata.errors import HostError
    from kata.process import run as run_command

    try:
        return run_command([path, "--version"], timeout=10).text.split("\n")[0]
    except HostError as e:
        return f"unknown: {e.text}"


def _distro() -> dict[str, str]:
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return {"Name": "unknown", "Version": ""}
    return {"Name": release.get("NAME", ""), "Version": release.get("VERSION_ID", "")}


def toml(data: dict[str, Any], prefix: str = "") -> str:
    """The nested tables of ``data`` as TOML."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in data.items() if not isinstance(value, dict)]
    for key, value in data.items():
        if isinstance(value, dict):
            lines += ["", f"[{prefix}{key}]", toml(value, f"{prefix}{key}.")]
    return "\n".join(lines).strip("\n")
