"""Bundles: ``config.json`` read, checked and frozen.  JSON from outside stops here.

:func:`load` is the way in.  It treats the file as hostile: size, depth, types,
encodings and paths are checked before anything acts on them, and every failure
is a :class:`~kata.errors.KataError` that names the place, such as
``process.args[1]``.  Only ``os`` and ``stat`` are imported, and ``json`` by who
reads a file: each verb that creates something pays for this module.
"""

from __future__ import annotations

import os
import stat

from kata.errors import BundleError
from kata.jsontext import loads
from kata.oci import check, schema, support

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

#: Bytes a configuration may have.  What becomes of it has to fit one message of 4 MiB
#: to the guest, and a kernel takes 2 MiB of arguments and environment at most.
MAX_SIZE = 2 << 20
HOOKS = schema.HOOKS


class Bundle:
    """A checked bundle.  Nothing may change ``spec`` or what hangs on it.

    :ivar id: the container's id.
    :ivar path: the bundle's directory, absolute.
    :ivar spec: the configuration: runtime-spec's JSON with known keys only.
    :ivar rootfs: the root file system, absolute, without links.
    :ivar warnings: what was ignored or does not hold, by JSON path.
    """

    __slots__ = ("id", "path", "rootfs", "spec", "warnings")

    def __init__(self, id: str, path: str, spec: dict[str, Any], rootfs: str, warnings: tuple[str, ...]) -> None:
        self.id = id
        self.path = path
        self.spec = spec
        self.rootfs = rootfs
        self.warnings = warnings

    @property
    def oci_version(self) -> str:
        version: str = self.spec["ociVersion"]
        return version

    @property
    def process(self) -> Mapping[str, Any]:
        process: dict[str, Any] = self.spec["process"]
        return process

    @property
    def args(self) -> Sequence[str]:
        args: list[str] = self.process["args"]
        return args

    @property
    def terminal(self) -> bool:
        return bool(self.process.get("terminal"))

    @property
    def console_size(self) -> tuple[int, int] | None:
        """(rows, columns) asked for, if any."""
        size = self.process.get("consoleSize")
        return (size["height"], size["width"]) if size and self.terminal else None

    @property
    def root_readonly(self) -> bool:
        return bool(self.spec["root"].get("readonly"))

    @property
    def hostname(self) -> str:
        return str(self.spec.get("hostname", ""))

    @property
    def domainname(self) -> str:
        return str(self.spec.get("domainname", ""))

    @property
    def mounts(self) -> Sequence[Mapping[str, Any]]:
        mounts: list[dict[str, Any]] = self.spec.get("mounts", [])
        return mounts

    @property
    def annotations(self) -> Mapping[str, str]:
        annotations: dict[str, str] = self.spec.get("annotations", {})
        return annotations

    def hooks(self, kind: str) -> Sequence[Mapping[str, Any]]:
        """The hooks of a kind, one of :data:`HOOKS`."""
        hooks: list[dict[str, Any]] = self.spec.get("hooks", {}).get(kind, [])
        return hooks

    @property
    def linux(self) -> Mapping[str, Any]:
        linux: dict[str, Any] = self.spec["linux"]
        return linux

    @property
    def resources(self) -> Mapping[str, Any]:
        resources: dict[str, Any] = self.linux.get("resources", {})
        return resources

    @property
    def devices(self) -> Sequence[Mapping[str, Any]]:
        devices: list[dict[str, Any]] = self.linux.get("devices", [])
        return devices

    @property
    def seccomp(self) -> Mapping[str, Any] | None:
        seccomp: dict[str, Any] | None = self.linux.get("seccomp")
        return seccomp

    @property
    def namespaces(self) -> Mapping[str, str]:
        """Namespace type -> path; "" is a new one, and a type that is absent is not unshared."""
        return {n["type"]: n.get("path", "") for n in self.linux.get("namespaces", [])}

    @property
    def netns(self) -> str:
        """Path of the network namespace to use, "" for a new one."""
        return self.namespaces["network"]

    @property
    def join(self) -> Mapping[str, str]:
        """Namespaces of other containers to join (pid, ipc, uts, cgroup): type -> path."""
        return {t: p for t, p in self.namespaces.items() if p and t != "network"}

    @property
    def cgroups_path(self) -> str:
        return str(self.linux.get("cgroupsPath", ""))


def load(path: str, container_id: str) -> Bundle:
    """Read and check the bundle in directory ``path``.

    :raise BundleError: the bundle or its config.json is missing or wrong.
    :raise UnsupportedError: it asks for something that cannot hold.
    """
    directory = os.path.abspath(path)
    config = os.path.join(directory, "config.json")
    notes: list[str] = []
    try:
        if not os.path.isdir(directory):
            os.stat(directory)
            raise _no_bundle(path, "it is not a directory")
        spec = parse(read(config, "config.json"), "config.json", notes)
    except (OSError, ValueError) as e:
        raise _no_bundle(path, reason(e)) from e
    notes += _checked(schema.CONFIG, spec, "", "config.json")
    notes += support.unsupported(spec)
    return Bundle(container_id, directory, spec, _rootfs(directory, spec["root"]["path"]), tuple(notes))


def load_process(path: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The process of ``exec --process FILE`` and what in it was ignored."""
    process = parse(read(path, path), path)
    return process, tuple(_checked(schema.PROCESS, process, "", path))


def check_process(process: dict[str, Any], origin: str) -> tuple[str, ...]:
    """Check a process put together from options, in place; answers what was ignored."""
    return tuple(_checked(schema.PROCESS, process, "", origin))


def check_resources(resources: dict[str, Any], origin: str) -> tuple[str, ...]:
    """Check resources put together from options, in place; answers what was ignored."""
    return tuple(_checked(schema.RESOURCES, resources, "", origin))


def load_resources(path: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The resources of ``update --resources FILE`` ("-" is standard input) and what in them was ignored."""
    name = "standard input" if path == "-" else path
    resources = parse(read("/dev/stdin" if path == "-" else path, name, stream=path == "-"), name)
    return resources, tuple(_checked(schema.RESOURCES, resources, "", name))


def read(path: str, name: str, *, stream: bool = False) -> bytes:
    """All of a regular file of at most :data:`MAX_SIZE` bytes; a pipe too if ``stream``."""
    try:
        # Opening a FIFO would wait for a writer: O_NONBLOCK, then look what it is.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | (0 if stream else os.O_NONBLOCK))
    except (OSError, ValueError) as e:
        raise BundleError(f"cannot read {name}: {reason(e)}") from e
    if not stream and not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise BundleError(f"cannot read {name}: it is not a regular file")
    with os.fdopen(fd, "rb") as f:
        try:
            data = f.read(MAX_SIZE + 1)
        except OSError as e:
            raise BundleError(f"cannot read {name}: {reason(e)}") from e
    if len(data) > MAX_SIZE:
        raise BundleError(f"{name} is larger than {MAX_SIZE >> 20} MiB",
                          "put data into files instead of the environment or annotations")
    return data


def parse(data: bytes, name: str, notes: list[str] | None = None) -> dict[str, Any]:
    """A JSON object, strictly: UTF-8, no NaN.

    :param notes: gets a note for a key that is there twice, of which the last counts as everywhere.
    :raise BundleError: it is none.
    """
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs) and notes is not None:
            again = next((k for (k, _v), first in zip(pairs, value, strict=False) if k != first), pairs[-1][0])
            check.note(notes, f"the key {check.shown(again)} is there twice; the last one counts")
        return value

    try:
        text = data.decode()
        value = loads(text, unique)
    except UnicodeDecodeError as e:
        raise BundleError(f"{name} is not UTF-8: byte {e.start} is {data[e.start]:#04x}") from e
    except RecursionError as e:
        raise BundleError(f"{name} is nested too deeply") from e
    except ValueError as e:
        raise BundleError(f"{name}: {_wrong_json(text, e)}") from e
    if not isinstance(value, dict):
        raise BundleError(f"{name}: an object is expected, found {check.describe(value)}")
    return value


def _wrong_json(text: str, error: ValueError) -> str:
    """Why a text is not JSON, and where."""
    import json  # slow, and seldom needed

    try:
        json.loads(text)
    except json.JSONDecodeError as e:
        return f"line {e.lineno}, column {e.colno}: {e.msg}"
    except ValueError:
        pass
    return str(error)


def _checked(rule: Callable[[Any, str, list[str]], None], value: Any, at: str, name: str) -> list[str]:
    notes: list[str] = []
    try:
        rule(value, at, notes)
    except BundleError as e:
        raise BundleError(f"{name}: {e.text}", e.hint) from None
    return notes


def _no_bundle(path: str, why: str) -> BundleError:
    return BundleError(f"Invalid bundle path {check.shown(path)}: {why}", "it must be a directory with a config.json",
                       kind="bundle-path", values={"path": path, "reason": why})


def reason(e: OSError | ValueError) -> str:
    """Why a path could not be used, in words."""
    if isinstance(e, OSError):
        return (e.strerror or str(e)).lower()
    return str(e)  # a NUL byte in the path


def _rootfs(directory: str, path: str) -> str:
    """The root file system, which may lie anywhere (docker's does) but is named without tricks."""
    if not path:
        raise BundleError("config.json: root.path: is empty")
    if not path.startswith("/") and os.path.normpath(path).split("/")[0] == "..":
        raise BundleError(f"config.json: root.path: {check.shown(path)} leaves the bundle", "write an absolute path")
    full = os.path.normpath(os.path.join(directory, path))
    try:
        mode = os.lstat(full).st_mode
    except (OSError, ValueError) as e:
        raise BundleError(f"config.json: root.path: {check.shown(full)}: {reason(e)}",
                          "it must be a directory with the container's files") from e
    if stat.S_ISLNK(mode):
        raise BundleError(f"config.json: root.path: {check.shown(full)} is a link", "name its target")
    if not stat.S_ISDIR(mode):
        raise BundleError(f"config.json: root.path: {check.shown(full)} is not a directory")
    real = os.path.realpath(full)
    if real == "/":
        raise BundleError("config.json: root.path: is the host's own root",
                          "a guest that may write there is not apart from the host")
    return real
