"""Flavors: which one, and its backend.  The only module that imports stevedore.

The verb that makes a sandbox resolves the plugin through stevedore and records
``module:Class``; later verbs import just that (:func:`load_resolved`), and come
back to the name when the class is gone after an upgrade.

Stevedore imports :mod:`importlib.metadata`, which takes as long as all else that
such a verb imports.  So its answer is kept in :data:`MEMO`, together with what
it depends on: every distribution with entry points on ``sys.path``.  As soon as
one comes, goes or changes, stevedore is asked again.
"""

from __future__ import annotations

import os
import sys

from kata import state
from kata.contract import CONTRACT_VERSION, Backend
from kata.digest import hexdigest
from kata.errors import ConfigError, HostError, KataError, UsageError
from kata.record import Record

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Mapping

GROUP = "kata.backends"  #: entry point group of the plugins
MEMO = f"{state.RUN_DIR}/flavors"  #: a file for each set of plugins
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
    path = f"{MEMO}/{_plugins()}.json"
    try:
        memo: dict[str, str] = state.read_json(path)["flavors"]
    except (OSError, KataError, KeyError):
        memo = {}
    if name in memo:
        try:
            return check(_class(memo[name]), name)
        except Exception:  # stevedore says it better
            pass
    backend = _ask_stevedore(name, origin)
    try:
        os.makedirs(MEMO, mode=0o700, exist_ok=True)
        state.write_json(path, {"version": state.VERSION, "flavors": {**memo, name: resolved(backend)}})
    except (OSError, HostError):
        pass  # not root, say: it is slower without
    return backend


def _plugins() -> str:
    """A name for all lists of entry points on ``sys.path``: their paths, times of change and sizes, in order."""
    found = []
    for folder in sys.path:
        try:
            names = sorted(os.listdir(folder or "."))
        except OSError:  # a zip file, or nothing
            continue
        for name in names:
            if name.endswith((".dist-info", ".egg-info")):
                path = f"{folder}/{name}/entry_points.txt"
                try:
                    status = os.stat(path)
                except OSError:
                    continue
                found.append(f"{path} {status.st_mtime_ns} {status.st_size}")
    return hexdigest("\n".join(found))[:20]


def _ask_stevedore(name: str, origin: str) -> Backend:
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


def _class(reference: str) -> object:
    module, _colon, attribute = reference.partition(":")
    __import__(module)
    return getattr(sys.modules[module], attribute)


def load_resolved(reference: str, name: str) -> Backend:
    """The backend that :func:`resolved` named, or, if that is gone, of the flavor ``name``.

    :raise ConfigError: neither is there.
    :raise HostError: it breaks the contract.
    """
    try:
        found = _class(reference)
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
