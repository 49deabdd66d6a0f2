"""``version``, ``--version``."""

from __future__ import annotations

from kata.cli.context import Context
from kata.table import Namespace, Verb

VERB = Verb("Print the version.")


def run(context: Context, args: Namespace) -> int:
    from kata.build import COMMIT

    print(context.personality.version(context.program, COMMIT))
    return 0
