"""``kata-check``: can this host run containers?"""

from __future__ import annotations

import os
import shutil

from kata.cli.context import Context
from kata.errors import HostError, KataError
from kata.table import FLAG, Namespace, Option, Verb

VERB = Verb(
    "Check whether this host can run containers, and say what is missing.",
    Option("--verbose", "-v", kind=FLAG, help="also list what was found"),
    Option("--strict", "-s", kind=FLAG, help="what only slows down is an error too"),
    Option("--no-network-checks", "-n", kind=FLAG, help="nothing is ever asked of the network, with or without"),
    Option("--check-version-only", kind=FLAG, help="refused: versions are the package manager's business"),
    Option("--include-all-releases", kind=FLAG, help="refused, as --check-version-only"),
    Option("--only-list-releases", kind=FLAG, help="refused, as --check-version-only"),
)


def run(context: Context, args: Namespace) -> int:
    for option in ("check_version_only", "include_all_releases", "only_list_releases"):
        if args[option]:
            raise HostError(f"--{option.replace('_', '-')} cannot hold: this program asks no release server",
                            "ask the package manager")
    failures = 0
    for what, ok, detail, needed in checks(context):
        failures += not ok and (needed or args["strict"])
        if args["verbose"] or not ok:
            print(f"{'ok' if ok else 'MISSING' if needed else 'slow'}: {what}: {detail}")
    if failures:
        raise HostError(f"this host cannot run containers: {failures} of the checks above failed")
    print("System is capable of running Kata Containers")
    print("System can currently create Kata Containers")
    return 0


def checks(context: Context) -> list[tuple[str, bool, str, bool]]:
    """``(what, is it so, detail, is it needed)`` of every check."""
    from kata import hostfacts

    options = context.invocation()
    config = context.backend().load_config(options, {})
    qemu = shutil.which(config.qemu_path) or ""
    kernel = config.kernel or options.kernel_asset
    guest = config.image or config.initrd or options.initrd_asset
    facts = hostfacts.collect()
    found = [
        ("root", os.geteuid() == 0, "needed for mounts, taps and cgroups", True),
        ("QEMU", bool(qemu), qemu or f"{config.qemu_path} is not installed (Debian: qemu-system-x86)", True),
        *([_version(qemu, config.machine_type)] if qemu else []),
        ("guest kernel", os.path.exists(kernel), kernel or "none: run 'kata image build'", True),
        ("guest image", os.path.exists(guest), guest or "none: run 'kata image build'", True),
        ("/dev/net/tun", os.path.exists("/dev/net/tun"), "for taps (kernel module tun)", True),
        ("KVM", facts.kvm_usable, "usable" if facts.kvm_usable else "not usable: guests are emulated, slowly", False),
    ]
    try:
        from kata import seccomp

        found.append(("libseccomp", True, seccomp.library_version(), True))
    except KataError as e:
        found.append(("libseccomp", False, str(e), True))
    return found


def _version(qemu: str, machine_type: str) -> tuple[str, bool, str, bool]:
    """Whether QEMU is new enough for the machine."""
    import re

    from kata.cli.env import qemu_version
    from kata.vm.argv import too_old

    text = qemu_version(qemu)
    found = re.search(r"version (\d+)\.(\d+)", text)
    why = too_old(machine_type, (int(found[1]), int(found[2]))) if found else ""
    return "QEMU's version", bool(found) and not why, why or text, True
