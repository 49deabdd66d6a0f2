"""``kata kernel``: list, select and verify guest kernels."""

from __future__ import annotations

import click

from kata.assets import store
from kata.cli.image import check, show


@click.group()
def command() -> None:
    """List, select and verify guest kernels (``kata image build`` makes them)."""


@command.command("list")
def list_kernels() -> None:
    """List guest kernels; ``*`` marks the one in use."""
    show(("kernel",))


@command.command()
@click.argument("id")
def select(id: str) -> None:
    """Use the kernel ID (or a prefix of it), and the images made for it, for new sandboxes."""
    asset = store.find(("kernel",), id)
    store.select(asset)
    click.echo(f"selected {asset.name} ({asset.id})")


@command.command()
@click.argument("id", required=False)
def verify(id: str | None) -> None:
    """Compare the files of kernel ID, or of all, with what was built."""
    check(("kernel",), id)
