"""``list`` with Clear's spelling of ``--kata-all``."""

from __future__ import annotations

from kata.cli import list as common
from kata.cli.context import Context
from kata.table import FLAG, Namespace, Option, Verb

VERB = Verb(common.VERB.help,
            *(o for o in common.VERB.options if o.key != "kata_all"),
            Option("--cc-all", "--kata-all", "--all", kind=FLAG, help="also what the containers run on"))


def run(context: Context, args: Namespace) -> int:
    return common.run(context, {**args, "kata_all": args["cc_all"]})
