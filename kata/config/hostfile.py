"""/etc/kata/host.toml: what holds for the host and all flavors on it."""

from __future__ import annotations

import contextlib
import os

from kata import state
from kata.config import Settings, document
from kata.config.keys import Key, Language, folders, integer, text
from kata.errors import ConfigError, HostError

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

LOCK_TIMEOUT = 30.0  #: seconds
#: ``[runtime] default_flavor`` is a plugin's name, which only the loader can check.
LANGUAGE: Language = {
    "runtime": {"default_flavor": Key(text, "default_flavor"), "guest_folders": Key(folders, "guest_folders")},
    "roadmap": {"phase": Key(integer(1, 3), "phase")},
}


def read(path: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The host's settings, and where each was set.

    :raise ConfigError: the file is wrong.
    """
    settings = Settings(LANGUAGE)
    try:
        settings.add(document.read(path))
    except FileNotFoundError as e:
        raise ConfigError(f"cannot read {path}: it is a link to a file that is missing") from e
    return settings.values, settings.places


def write(path: str, changes: Mapping[tuple[str, str], Any]) -> None:
    """Set keys, ``(table, key) -> value``; the rest of the file stays as it is, comments, mode and owner too.

    It is replaced at once: whoever reads meanwhile sees the old or the new one, and whoever sets another key waits.

    :raise ConfigError: what is there now is wrong.
    :raise HostError: it cannot be written.
    """
    target = os.path.realpath(path)
    try:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with state.locked(os.path.dirname(target), LOCK_TIMEOUT):
            _write(path, target, changes)
    except OSError as e:
        raise HostError(f"cannot write {path}: {e.strerror}", "run as root") from e


def _write(path: str, target: str, changes: Mapping[tuple[str, str], Any]) -> None:
    from kata.config.edit import edited

    before, there = "", None
    if os.path.lexists(path):
        read(path)
        with open(path, encoding="utf-8", newline="") as f:
            before, there = f.read(), os.fstat(f.fileno())
    after = edited(before, changes, path)
    aside = f"{target}.{os.getpid()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(aside, flags, 0o666 if there is None else 0o600), "w", encoding="utf-8", newline="") as f:
            if there is not None:
                os.fchown(f.fileno(), there.st_uid, there.st_gid)
                os.fchmod(f.fileno(), there.st_mode & 0o7777)
            f.write(after)
            f.flush()
            os.fsync(f.fileno())
        os.rename(aside, target)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(aside)
        raise
