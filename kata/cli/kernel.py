"""``kata kernel``: build, list, select and verify guest kernels."""

from __future__ import annotations

import click

from kata.assets import store
from kata.cli.context import Context
from kata.cli.image import check, configuration, show


@click.group()
def command() -> None:
    """Build, list, select and verify guest kernels: stock (Debian's) and minimal (small, compiled for guests)."""


@command.command()
@click.argument("variant", type=click.Choice(store.KERNELS), default="minimal")
@click.option("--kvm", is_flag=True, help="For hosts with KVM, although this one has none.")
@click.option("--force", is_flag=True, help="Make it again, also when it is there already.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but the result.")
@click.pass_obj
def build(context: Context, variant: str, kvm: bool, force: bool, quiet: bool) -> None:
    """Build a kernel (minimal, unless VARIANT says stock) and the images for it, and select them.

    The minimal kernel is compiled once for each version of its source,
    compiler and configuration (configs/kernel): some 20 minutes of one
    processor.  Without KVM it is made for emulated processors alone: quicker,
    as it has no guards against speculation.  The stock kernel is for all.
    """
    from kata.assets.build import build_kernel
    from kata.assets.progress import Progress

    for asset in build_kernel(variant, Progress(quiet=quiet), configuration(context), kvm=kvm, force=force):
        for name in asset.files.values():
            click.echo(f"{asset.kind}\t{asset.path}/{name}")


@command.command("list")
def list_kernels() -> None:
    """List guest kernels; ``*`` marks the one in use."""
    show(("kernel",))


@command.command()
@click.argument("id")
def select(id: str) -> None:
    """Use the kernel ID (a prefix of it, or stock or minimal: the latest of these) for new sandboxes.

    The images made for it are selected with it.
    """
    from kata.assets import options

    asset = store.find(("kernel",), id)
    options.check(asset)
    store.select(asset)
    click.echo(f"selected {asset.name} ({asset.id})")


@command.command()
@click.argument("id", required=False)
def verify(id: str | None) -> None:
    """Compare the files of kernel ID, or of all, with what was built, and its options with what the agent needs."""
    check(("kernel",), id)
