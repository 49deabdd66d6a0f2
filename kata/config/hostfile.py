"""/etc/kata/host.toml: what holds for the host and all flavors on it."""

from __future__ import annotations

import os

from kata.config import document
from kata.config.keys import Key, Language, text
from kata.errors import ConfigError
from kata.record import Record

PATH = "/etc/kata/host.toml"

#: ``[runtime] default_flavor`` is a plugin's name, which only the loader can check.
LANGUAGE: Language = {
    "runtime": {"default_flavor": Key(text, "default_flavor")},
}


class HostSettings(Record):
    """``place`` is where ``default_flavor`` was set, for errors."""

    default_flavor: str = ""
    place: str = ""


def read(path: str = PATH) -> HostSettings:
    """The host's settings; all defaults if there is no file.

    :raise ConfigError: the file is wrong.
    """
    if not os.path.lexists(path):
        return HostSettings()  # most hosts; saves the import of a TOML parser
    from kata.config import Settings

    settings = Settings(LANGUAGE)
    try:
        settings.add(document.read(path))
    except FileNotFoundError as e:
        raise ConfigError(f"cannot read {path}: it is a link to a file that is missing") from e
    return HostSettings(settings.values.get("default_flavor", ""), settings.places.get("default_flavor", ""))
