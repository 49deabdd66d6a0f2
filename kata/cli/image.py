"""``kata image``: build, list and select initrds and root images."""

from __future__ import annotations

import click

from kata.assets import store
from kata.assets.image import FORMATS
from kata.assets.progress import megabytes


@click.group()
def command() -> None:
    """Build, list and select guest images (initrd, root image)."""


@command.command()
@click.option("--kind", type=click.Choice(["initrd", "image", "all"]), default="initrd", show_default=True)
@click.option("--format", "fmt", type=click.Choice(FORMATS), default=None,
              help="File system of the root image.  [default: that of the selected image, or erofs]")
@click.option("--force", is_flag=True, help="Make everything again but a minimal kernel.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but the result.")
def build(kind: str, fmt: str | None, force: bool, quiet: bool) -> None:
    """Build what is missing or out of date, from Debian packages and the agent, and select it.

    That is for the kernel in use; without one, for Debian's (see ``kata kernel``).
    """
    from kata.assets.build import build as build_assets
    from kata.assets.progress import Progress

    progress = Progress(quiet=quiet)
    kinds = ("initrd", "image") if kind == "all" else (kind,)
    for asset in build_assets(kinds, progress, fmt=fmt or "", force=force):
        for name in asset.files.values():
            click.echo(f"{asset.kind}\t{asset.path}/{name}")


@command.command("list")
def list_images() -> None:
    """List initrds and root images; ``*`` marks those in use."""
    show(("initrd", "image"))


@command.command()
@click.argument("id")
def select(id: str) -> None:
    """Use the image ID (or a prefix of it) for new sandboxes."""
    asset = store.find(("initrd", "image"), id)
    store.select(asset)
    click.echo(f"selected {asset.name} ({asset.id})")


@command.command()
@click.argument("id", required=False)
def verify(id: str | None) -> None:
    """Compare the files of image ID, or of all, with what was built."""
    check(("initrd", "image"), id)


def show(kinds: tuple[str, ...]) -> None:
    """Print a table of the assets of these kinds."""
    rows = [("", "ID", "KIND", "SIZE", "BUILT", "MADE OF")]
    for kind in kinds:
        used = store.selected(kind)
        for asset in store.list_assets(kind):
            size = sum(asset.sizes[name] for name in asset.files.values())
            mark = "*" if used is not None and used.id == asset.id else ""
            what = asset.variant if kind == "kernel" else kind
            rows.append((mark, asset.id, what, megabytes(size), asset.built[:19] + "Z", asset.name))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def check(kinds: tuple[str, ...], id: str | None) -> None:
    """Verify one asset of these kinds, or all of them."""
    from kata.assets import options

    found = [store.find(kinds, id)] if id else [asset for kind in kinds for asset in store.list_assets(kind)]
    for asset in found:
        store.verify(asset)
        if asset.kind == "kernel":
            options.check(asset)
        click.echo(f"{asset.id}  {asset.name}: as built")
