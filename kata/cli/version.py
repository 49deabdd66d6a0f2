"""``version``, ``--version``."""

from __future__ import annotations

from kata import OCI_VERSION, __version__
from kata.cli.context import Context
from kata.table import Namespace, Verb

VERB = Verb("Print the version.")


def run(context: Context, args: Namespace) -> int:
    from kata.build import COMMIT

    print(f"{context.program}  : {__version__}\n   commit   : {COMMIT}\n   OCI specs: {OCI_VERSION}")
    return 0
