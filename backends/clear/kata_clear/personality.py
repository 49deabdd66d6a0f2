"""How cc-runtime 3.0 spoke."""

from __future__ import annotations

import os

from kata.log import logrus
from kata.personality import Personality, worded
from kata.table import FLAG, Option

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, ClassVar

    from kata.errors import KataError

#: (verb, kind of error) -> its words, where they are not Kata's.
TEXTS = {
    ("", "in-use"): "ID already in use, unique ID should be provided",
    ("kill", "wrong-state"): "Container {id} not ready or running, cannot send a signal",
    ("exec", "wrong-state"): "Container {id} is not running",
}


class ClearPersonality(Personality):
    """Clear Containers' words.

    What is different on purpose: ``status`` is never empty while a container is
    paused (cc-runtime's bug), and ``state`` has what the specification asks for
    without the whole config.json among the annotations.
    """

    program = "cc-runtime"
    options = (
        Option("--cc-config", help="Clear Containers configuration file", metavar="FILE"),
        Option("--cc-show-default-config-paths", kind=FLAG, help="print where configuration files are looked for"),
    )
    spellings: ClassVar[Mapping[str, str]] = {
        "cc_config": "kata_config", "cc_show_default_config_paths": "kata_show_default_config_paths"}
    verbs: ClassVar[Mapping[str, tuple[str, str]]] = {
        "cc-env": ("env", "print the configuration and the host's abilities"),
        "cc-check": ("check", "check whether this host can run containers"),
        "list": ("kata_clear.verbs.list", "list containers"),
    }
    absent = frozenset({"spec", "events", "update", "features", "kata-env", "kata-check"})
    forgiving_delete = False
    empty_ps = False

    def failure(self, program: str, verb: str, error: KataError) -> tuple[str, int]:
        return worded(error, TEXTS, verb), 1

    def log_line(self, verb: str) -> Callable[[float, str, str], str]:
        def line(seconds: float, level: str, message: str) -> str:
            return logrus(seconds, level, message, name=self.program, pid=os.getpid(), source="runtime",
                          **({"command": verb} if verb else {}))

        return line

    def state(self, view: Mapping[str, Any]) -> Mapping[str, Any]:
        return {key: view[key] for key in ("ociVersion", "id", "status", "pid", "bundle", "annotations")}

    def entry(self, view: Mapping[str, Any]) -> Mapping[str, Any]:
        keys = ("ociVersion", "id", "pid", "status", "bundle", "rootfs", "created", "annotations", "owner")
        return {key: view[key] for key in keys}
