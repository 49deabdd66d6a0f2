"""Settings of the agent: ``agent.KEY=VALUE`` words of the kernel command line.

    agent.log=error|warn|info|debug
    agent.channel=port:NAME | unix:PATH    default port:agent.channel.0
    agent.channel_token=HEX                64 hex digits, see protocol/ttrpc.py
    agent.container_pipe_size=BYTES        pipes of container processes
    agent.hotplug_timeout=SECONDS          until a device of a request must appear
    agent.cgroup_parent=NAME               folder of all containers
    agent.run_dir=PATH                     where the agent keeps its own files
    agent.template                         this machine will be saved, and cloned
"""

from __future__ import annotations

from collections.abc import Iterable

from kata_agent import log
from kata_agent.protocol import ttrpc
from kata_agent.resolve import components_ok

#: Keys of Kata 1.x's agent that mean nothing here: (key, why).
_OLD = {
    "agent.devmode": "there is no shell in this guest",
    "agent.debug_console": "there is no shell in this guest",
    "agent.debug_console_vport": "there is no shell in this guest",
    "agent.trace": "tracing is not implemented",
    "agent.use_vsock": "the channel is a virtio-serial port",
    "agent.unified_cgroup_hierarchy": "the guest always has cgroup v2",
}


class Settings:
    """What the command line says, with defaults."""

    __slots__ = (
        "cgroup_parent", "channel", "hotplug_timeout", "is_guest", "is_template", "log_level", "pipe_size", "run_dir",
        "token", "warnings",
    )

    def __init__(self) -> None:
        self.log_level = log.INFO
        self.channel = "port:agent.channel.0"
        self.token = b""
        self.pipe_size = 1 << 20  #: bytes, 0 = the kernel's default; larger ones save wakeups
        self.hotplug_timeout = 10.0  #: seconds; an emulated guest is slow
        self.cgroup_parent = "kata"
        self.is_guest = False  #: the machine is the agent's to set up; no word sets this
        self.is_template = False  #: what a start needs is made ready now, for the clones
        self.run_dir = "/run/kata-agent"
        self.warnings: list[str] = []

    def add(self, words: Iterable[str]) -> None:
        """Take over the agent's words; what is wrong or unknown becomes a warning."""
        for word in words:
            if not word.startswith("agent."):
                continue
            key, equals, value = word.partition("=")
            try:
                known = self._set(key, value if equals else "true")
            except ValueError as error:
                self.warnings.append(f"{word}: {error}")
                continue
            if not known:
                self.warnings.append(f"{word}: {_OLD.get(key, 'unknown key')}; ignored")

    def _set(self, key: str, value: str) -> bool:
        if key == "agent.log":
            if value not in log.LEVELS:
                raise ValueError(f"one of {', '.join(log.LEVELS)} is expected")
            self.log_level = log.LEVELS[value]
        elif key == "agent.channel":
            if not value.startswith(("port:", "unix:/")):
                raise ValueError("port:NAME or unix:PATH is expected")
            self.channel = value
        elif key == "agent.channel_token":
            token = bytes.fromhex(value)
            if len(token) != ttrpc.TOKEN_SIZE:
                raise ValueError(f"{2 * ttrpc.TOKEN_SIZE} hex digits are expected")
            self.token = token
        elif key == "agent.container_pipe_size":
            self.pipe_size = _positive(value, 1 << 20)
        elif key == "agent.hotplug_timeout":
            # Kata 1.x writes a duration of Go here, such as 3s.
            self.hotplug_timeout = float(value.removesuffix("s"))
            if not 0 < self.hotplug_timeout <= 600:
                raise ValueError("a time between 0 and 600 s is expected")
        elif key == "agent.cgroup_parent":
            if not components_ok(value):
                raise ValueError("a folder's name is expected")
            self.cgroup_parent = value
        elif key == "agent.template":
            self.is_template = True
        elif key == "agent.run_dir":
            if not value.startswith("/"):
                raise ValueError("an absolute path is expected")
            self.run_dir = value
        else:
            return False
        return True


def _positive(text: str, most: int) -> int:
    value = int(text)
    if not 0 <= value <= most:
        raise ValueError(f"a number from 0 to {most} is expected")
    return value
