"""How a flavor speaks: words of the command line, texts, exit codes, shapes of what it prints.

A backend decides what is done (:mod:`kata.contract`); a personality decides how
it is asked for and told.  It belongs to the invocation, not to the container:
``runv state X`` prints as runV whichever flavor made X.  A flavor's plugin names
its personality as an entry point of the group ``kata.personalities``; without
one it speaks as Kata 1.x does, which is what this class is.
"""

from __future__ import annotations

from kata import OCI_VERSION, __version__

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, ClassVar

    from kata.errors import KataError
    from kata.table import Option

#: What ``state`` prints (runtime-spec, "State", and what runc adds to it).
STATE_KEYS = ("ociVersion", "id", "status", "pid", "bundle", "rootfs", "created", "annotations", "owner")
LIST_KEYS = ("ociVersion", "id", "pid", "status", "bundle", "rootfs", "created", "annotations", "owner")


PERSONALITY_VERSION = 1


class Personality:
    """Kata 1.x's way to speak, and the contract of every other."""

    contract_version = PERSONALITY_VERSION
    #: The program's name in texts and logs; "" = the one it was called by.
    program = ""
    #: Global options of its own, before those that every flavor has.
    options: ClassVar[Sequence[Option]] = ()
    #: Its spelling of a global option that every flavor has -> that option's key.
    spellings: ClassVar[Mapping[str, str]] = {}
    #: Verbs of its own: name -> (``module`` that has VERB and run, help).
    verbs: ClassVar[Mapping[str, tuple[str, str]]] = {}
    #: Verbs that the original never had.
    absent: ClassVar[frozenset[str]] = frozenset()

    def version(self, program: str, commit: str) -> str:
        """What ``--version`` prints."""
        return f"{program}  : {__version__}\n   commit   : {commit}\n   OCI specs: {OCI_VERSION}"

    def state(self, view: Mapping[str, Any]) -> Mapping[str, Any]:
        """What ``state`` prints of a container, in order."""
        return {key: view[key] for key in STATE_KEYS}

    def entry(self, view: Mapping[str, Any]) -> Mapping[str, Any]:
        """What ``list --format json`` prints of a container, in order."""
        return {key: view[key] for key in LIST_KEYS}

    def owner(self, view: Mapping[str, Any]) -> str:
        """The last column of ``list``."""
        return str(view["owner"])

    #: Whether ``delete --force`` of an unknown id is well.
    forgiving_delete = True
    #: Whether ``ps`` of a stopped container is an empty list, as with runc, or an error.
    empty_ps = True

    def failure(self, program: str, verb: str, error: KataError) -> tuple[str, int]:
        """What an error says on standard error, and the exit code.

        Of ``exec`` as with runc 1.1: 1 may be the code of its process.
        """
        unparsed = error.kind in ("command-line", "missing-id")
        return f"{program}: {error}", 255 if verb == "exec" and not unparsed else 1

    def log_path(self, options: Mapping[str, Any]) -> str:
        """The file that takes log messages; "" = none."""
        return str(options["log"])

    def log_line(self, verb: str) -> Callable[[float, str, str], str] | None:
        """What writes a line of the text log, of (seconds since 1970, level, message); None = as Kata 1.x."""
        return None


def worded(error: KataError, texts: Mapping[tuple[str, str], str], verb: str) -> str:
    """An error in the original's words, and what to do about it in ours.

    :param texts: (verb, or "" for all, and kind of error) -> text, with the names of :attr:`KataError.values`
        and ``text``, our own words, in braces.
    """
    template = texts.get((verb, error.kind)) or texts.get(("", error.kind)) or texts.get((verb, "")) or "{text}"
    try:
        text = template.format_map({"text": error.text, **error.values})
    except KeyError:  # the error comes from where these are not known
        text = error.text
    return f"{text}: {error.hint}" if error.hint else text
