"""The error tree.  Every error a user can meet is one of these.

::

    KataError                  kind    what it is about
    ├── UsageError             usage   command line
    ├── ConfigError            config  a configuration file, key or annotation
    ├── BundleError            bundle  config.json, rootfs
    ├── StateError             state   container or sandbox state
    │   ├── NotFound           not-found
    │   ├── InUse              in-use
    │   ├── WrongState         wrong-state
    │   ├── Damaged            state   a record that cannot be read
    │   └── Foreign            state   a record of another runtime
    ├── UnsupportedError       unsupported   a feature that cannot hold here
    ├── HostError              host    a host facility failed or is missing
    │   └── VmError            vm      QEMU or the guest
    ├── GuestError             guest   the agent refused
    └── ProxyGone              proxy-gone
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing is not imported: it is slow, and every verb needs this module
if TYPE_CHECKING:
    from collections.abc import Mapping


class KataError(Exception):
    """What failed, why, and what to do.

    :param text: what failed and why, one sentence without a full stop.
    :param hint: what to do about it; "" when there is nothing to add.
    :param values: names in ``text``, for whoever words it anew.
    """

    kind = "error"

    def __init__(self, text: str, hint: str = "", *, kind: str = "", values: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.text = text
        self.hint = hint
        self.kind = kind or type(self).kind
        self.values = dict(values or {})

    def __str__(self) -> str:
        return f"{self.text}: {self.hint}" if self.hint else self.text


class UsageError(KataError):
    kind = "usage"


class ConfigError(KataError):
    kind = "config"


class BundleError(KataError):
    kind = "bundle"


class StateError(KataError):
    kind = "state"


class NotFound(StateError):
    kind = "not-found"


class InUse(StateError):
    kind = "in-use"


class WrongState(StateError):
    kind = "wrong-state"


class Damaged(StateError):
    pass


class Foreign(StateError):
    pass


class UnsupportedError(KataError):
    kind = "unsupported"


class HostError(KataError):
    kind = "host"


class VmError(HostError):
    kind = "vm"


class GuestError(KataError):
    """The agent refused; ``code`` is the gRPC status code it gave."""

    kind = "guest"

    def __init__(self, text: str, hint: str = "", *, code: int = 2, kind: str = "") -> None:
        super().__init__(text, hint, kind=kind)
        self.code = code


class ProxyGone(KataError):
    kind = "proxy-gone"


BY_KIND: dict[str, type[KataError]] = {
    c.kind: c
    for c in (UsageError, ConfigError, BundleError, StateError, NotFound, InUse, WrongState,
              UnsupportedError, HostError, VmError, ProxyGone)
}
