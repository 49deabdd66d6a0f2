"""Flavors: which one, and its backend.  The only module that imports stevedore.

The verb that makes a sandbox finds the plugin through stevedore and records
``module:Class``; later verbs import just that (:func:`load_resolved`), which
costs a tenth, and come back to the name when the class is gone after an upgrade.
"""

from __future__ import annotations

import os
import sys

from kata.contract import CONTRACT_VERSION, Backend
from kata.errors import ConfigError, HostError, UsageError
from kata.record import Record

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Mapping

GROUP = "kata.backends"  #: entry point group of the plugins
DEFAULT = "unified"
VARIABLE = "KATA_FLAVOR"
#: Program names of the originals -> flavor.
PROGRAMS = {"cc-runtime": "clear", "runv": "runv"}


class Choice(Record):
    """A flavor and who asked for it."""

    name: str
    origin: str


def choose(option: str, environ: Mapping[str, str], program: str, host_file: str = "") -> Choice:
    """The flavor: ``--flavor``, KATA_FLAVOR, the program's name, the host's default, ``unified``.

    :raise UsageError: option and program name ask for different flavors.
    :raise ConfigError: the host's file is wrong.
    """
    by_program = PROGRAMS.get(os.path.basename(program), "")
    if option:
        if by_program and by_program != option:
            raise UsageError(f"--flavor {option} and the program name {os.path.basename(program)!r} "
                             f"ask for different flavors", f"use `kata --flavor {option}`")
        return Choice(option, "--flavor")
    if environ.get(VARIABLE):
        return Choice(environ[VARIABLE], VARIABLE)
    if by_program:
        return Choice(by_program, f"the program name {os.path.basename(program)!r}")
    from kata.config import hostfile  # later verbs do not choose

    host = hostfile.read(host_file or hostfile.PATH)
    if host.default_flavor:
        return Choice(host.default_flavor, host.place)
    return Choice(DEFAULT, "the default")


def load(name: str, origin: str = "") -> Backend:
    """The backend of a flavor.

    :param origin: who asked for it, for the error.
    :raise ConfigError: there is no such flavor.
    :raise HostError: its plugin cannot be imported or breaks the contract.
    """
    from stevedore.driver import DriverManager
    from stevedore.exception import MultipleMatches, NoMatches

    found: object
    try:
        # Without a load-failure callback a DriverManager raises what the import raised.
        found = DriverManager(GROUP, name, invoke_on_load=False).driver
    except NoMatches as e:
        from kata.config import nearest

        known = available()
        asked = f" (asked for by {origin})" if origin else ""
        hint = nearest(name, known) if known else "no backend is installed; install kata-backend-unified"
        raise ConfigError(f"unknown flavor {name!r}{asked}", hint) from e
    except MultipleMatches as e:
        raise HostError(f"flavor {name!r}: more than one plugin has this name", "uninstall one of them") from e
    except Exception as e:  # a plugin can fail in any way while it is imported
        raise _broken(name, e) from e
    return check(found, name)


def available() -> list[str]:
    """Names of the flavors that are installed, whether or not they work."""
    from importlib.metadata import entry_points

    return sorted({e.name for e in entry_points(group=GROUP)})


def resolved(backend: Backend) -> str:
    """``module:Class`` of a backend, for :func:`load_resolved`."""
    return f"{type(backend).__module__}:{type(backend).__qualname__}"


def load_resolved(reference: str, name: str) -> Backend:
    """The backend that :func:`resolved` named, or, if that is gone, of the flavor ``name``.

    :raise ConfigError: neither is there.
    :raise HostError: it breaks the contract.
    """
    module, _colon, attribute = reference.partition(":")
    try:
        __import__(module)
        found = getattr(sys.modules[module], attribute)
    except (ImportError, AttributeError, ValueError):
        return load(name, "the container's state")
    except Exception as e:  # as in load()
        raise _broken(name, e) from e
    return check(found, name)


def check(found: object, name: str) -> Backend:
    """An instance of a plugin's class, if it keeps the contract.

    :raise HostError: it does not.
    """
    if not isinstance(found, type) or not issubclass(found, Backend):
        raise HostError(f"flavor {name!r}: its plugin {found!r} is not a kata.contract.Backend", "reinstall it")
    version = getattr(found, "contract_version", None)
    if version != CONTRACT_VERSION:
        raise HostError(f"flavor {name!r}: its plugin is made for version {version} of the contract, "
                        f"this runtime has {CONTRACT_VERSION}", "install the plugin that came with this runtime")
    missing = sorted(getattr(found, "__abstractmethods__", ()))
    if missing:
        raise HostError(f"flavor {name!r}: its plugin lacks {', '.join(missing)}", "reinstall it")
    if getattr(found, "name", None) != name:
        raise HostError(f"flavor {name!r}: its plugin calls itself {getattr(found, 'name', None)!r}", "reinstall it")
    try:
        backend: Backend = found()
    except Exception as e:
        raise _broken(name, e) from e
    return backend


def _broken(name: str, e: Exception) -> HostError:
    return HostError(f"flavor {name!r}: its plugin cannot be loaded: {type(e).__name__}: {e}", "reinstall it")
