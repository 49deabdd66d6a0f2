"""Where runV finds what boots.

In this order: ``hypervisor.kernel=`` and so on in the process's environment,
the option, ``ROOTFS/boot``, ``BUNDLE/boot``, ``BUNDLE``; and then the asset
store.  runV's last place, ``/var/lib/hyper``, holds a guest with hyperstart,
whose protocol nothing here speaks: the store stands for it.
"""

from __future__ import annotations

import os
import stat

from kata.config import check_assets, chosen_file, nearest
from kata.contract import RuntimeConfig
from kata.errors import ConfigError
from kata.oci import Bundle
from kata.record import replace
from kata_runv import language

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Sequence


def resolved(config: RuntimeConfig, bundle: Bundle, folders: Sequence[str]) -> RuntimeConfig:
    """The configuration with what this bundle brings or asks for.

    :param folders: where the files that it asks for may lie; runV took any file of the host.
    :raise ConfigError: a file does not exist or lies elsewhere, a variable is unknown or asks for a cbfs.
    """
    values: dict[str, str] = {}
    sources = list(config.sources)
    asked = _variables(bundle, folders)
    for kind, field in language.FIELDS.items():
        path, place = asked.get(kind, ""), f"{language.VARIABLE}{kind} in process.env"
        if not path and not getattr(config, field):
            path, place = _found(bundle, language.FILES[kind]), "the bundle"
        if path:
            values[field] = path
            sources.append(place)
    found = replace(config, **values, sources=tuple(sources)) if values else config
    check_assets(found, found.initrd)
    return found


def warnings(bundle: Bundle) -> tuple[str, ...]:
    """What lies in the bundle and is not used."""
    path = _found(bundle, language.FILES["cbfs"])
    return (f"{path} is not used: {language.NO_CBFS}",) if path else ()


def _variables(bundle: Bundle, folders: Sequence[str]) -> dict[str, str]:
    found = {}
    for variable in bundle.process.get("env", ()):
        name, _equals, value = variable.partition("=")
        if not name.startswith(language.VARIABLE):
            continue
        kind = name.removeprefix(language.VARIABLE)
        if kind not in language.FILES:
            raise ConfigError(f"process.env: unknown variable {name}", nearest(kind, language.FILES))
        if kind == "cbfs":
            raise ConfigError(f"process.env: {name} cannot hold here", language.NO_CBFS)
        found[kind] = chosen_file(value, f"process.env: {name}", folders)
    return found


def _found(bundle: Bundle, name: str) -> str:
    """A regular file of this name in the bundle; links are not followed, since an image may hold any."""
    for folder in (f"{bundle.rootfs}/boot", f"{bundle.path}/boot", bundle.path):
        path = f"{folder}/{name}"
        try:
            if stat.S_ISDIR(os.lstat(folder).st_mode) and stat.S_ISREG(os.lstat(path).st_mode):
                return path
        except OSError:
            continue
    return ""
