"""The plugins of flavors: backends and personalities.  The only module that imports stevedore.

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
from kata.errors import ConfigError, HostError, KataError
from kata.flavors import DEFAULT
from kata.personality import PERSONALITY_VERSION, Personality

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Callable

GROUP = "kata.backends"  #: entry point group of the backends
VOICES = "kata.personalities"  #: of the personalities, which a flavor may do without
MEMO = f"{state.RUN_DIR}/flavors"  #: a file for each set of plugins


def load(name: str, origin: str = "") -> Backend:
    """The backend of a flavor.

    :param origin: who asked for it, for the error.
    :raise ConfigError: there is no such flavor.
    :raise HostError: its plugin cannot be imported or breaks the contract.
    """
    def ask() -> object:
        found = _ask_stevedore(GROUP, name)
        if found is None:
            raise _unknown(name, origin)
        return found

    return check(_remembered(GROUP, name, ask), name)


def personality(name: str, origin: str = "") -> Personality:
    """How a flavor speaks.

    :raise ConfigError, HostError: as above.
    """
    if name == DEFAULT:
        return Personality()

    def ask() -> object:
        found = _ask_stevedore(VOICES, name)
        if found is None and name not in available():
            raise _unknown(name, origin)
        return found or Personality

    found = _remembered(VOICES, name, ask)
    if not isinstance(found, type) or not issubclass(found, Personality):
        raise HostError(f"flavor {name!r}: its plugin {found!r} is not a kata.personality.Personality", "reinstall it")
    if found.contract_version != PERSONALITY_VERSION:
        raise HostError(f"flavor {name!r}: its personality is made for version {found.contract_version}, "
                        f"this runtime has {PERSONALITY_VERSION}", "install the plugin that came with this runtime")
    try:
        return found()
    except Exception as e:
        raise _broken(name, e) from e


def _remembered(group: str, name: str, ask: Callable[[], object]) -> object:
    """The class that a plugin names; kept, so that the same question is not asked again."""
    path, key = f"{MEMO}/{_plugins()}.json", f"{group}/{name}"
    try:
        memo: dict[str, str] = state.read_json(path)["found"]
    except (OSError, KataError, KeyError):
        memo = {}
    if key in memo:
        try:
            return _class(memo[key])
        except Exception:  # stevedore says it better
            pass
    found = ask()
    if isinstance(found, type):
        try:
            os.makedirs(MEMO, mode=0o700, exist_ok=True)
            state.write_json(path, {"version": state.VERSION,
                                    "found": {**memo, key: f"{found.__module__}:{found.__qualname__}"}})
        except (OSError, HostError):
            pass  # not root, say: it is slower without
    return found


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


def _ask_stevedore(group: str, name: str) -> object:
    """What an entry point names; None if there is none.

    :raise HostError: it cannot be imported, or there are two.
    """
    from stevedore.driver import DriverManager
    from stevedore.exception import MultipleMatches, NoMatches

    try:
        # Without a load-failure callback a DriverManager raises what the import raised.
        found: object = DriverManager(group, name, invoke_on_load=False).driver
    except NoMatches:
        return None
    except MultipleMatches as e:
        raise HostError(f"flavor {name!r}: more than one plugin has this name", "uninstall one of them") from e
    except Exception as e:  # a plugin can fail in any way while it is imported
        raise _broken(name, e) from e
    return found


def _unknown(name: str, origin: str) -> ConfigError:
    from kata.config import nearest

    known = available()
    asked = f" (asked for by {origin})" if origin else ""
    return ConfigError(f"unknown flavor {name!r}{asked}",
                       nearest(name, known) if known else "no backend is installed; install kata-backend-unified")


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
