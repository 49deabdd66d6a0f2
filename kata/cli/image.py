"""``kata image``: build, list and select initrds and root images."""

from __future__ import annotations

import os

import click

from kata.assets import store
from kata.assets.image import FORMATS
from kata.assets.progress import megabytes
from kata.cli.context import Context
from kata.errors import KataError


@click.group()
def command() -> None:
    """Build, list and select guest images (initrd, root image)."""


@command.command()
@click.option("--kind", type=click.Choice(["initrd", "image", "all"]), default="initrd", show_default=True)
@click.option("--format", "fmt", type=click.Choice(FORMATS), default=None,
              help="File system of the root image.  [default: that of the selected image, or erofs]")
@click.option("--force", is_flag=True, help="Make everything again but a minimal kernel.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but the result.")
@click.pass_obj
def build(context: Context, kind: str, fmt: str | None, force: bool, quiet: bool) -> None:
    """Build what is missing or out of date, from Debian packages and the agent, and select it.

    That is for the kernel in use; without one, for Debian's (see ``kata kernel``).
    """
    from kata.assets.build import build as build_assets
    from kata.assets.progress import Progress

    progress = Progress(quiet=quiet)
    kinds = ("initrd", "image") if kind == "all" else (kind,)
    for asset in build_assets(kinds, progress, configuration(context), fmt=fmt or "", force=force):
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


def configuration(context: Context) -> list[str]:
    """The files of this host that may name assets: of all flavors, and of engines, which give a runtime its options."""
    from contextlib import suppress
    from glob import escape, glob

    from kata import engines, loader
    from kata.config import DROP_INS
    from kata.contract import InvocationOptions

    options = InvocationOptions(config_path=context.options["kata_config"], environ=dict(os.environ))
    patterns = [place for kinds in engines.PLACES.values() for places in kinds.values() for place in places]
    for name in loader.available():
        with suppress(KataError):  # one that does not work makes no machines
            for path in loader.load(name).config_paths(options):
                patterns += [escape(path), f"{escape(os.path.dirname(path))}/{DROP_INS}/*.toml"]
    return [path for pattern in patterns for path in glob(pattern)]


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
