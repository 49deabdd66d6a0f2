"""Configuration: TOML files, drop-ins and annotations into one :class:`~kata.contract.RuntimeConfig`.

Order, later wins: the defaults of :class:`~kata.contract.RuntimeConfig`, the
first configuration file that exists, ``config.d/*.toml`` beside it in the order
of their names, then the container's annotations.  Which keys there are is a
table (:mod:`kata.config.kata1`); an unknown one is refused with its file and
line and the nearest known name.
"""

from __future__ import annotations

import os

from kata.config import document
from kata.config.keys import Key, Language, from_text
from kata.contract import RuntimeConfig
from kata.errors import ConfigError
from kata.record import replace

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

DROP_INS = "config.d"
#: Fields with the path of what boots.
ASSETS = ("kernel", "image", "initrd", "firmware")
#: What an annotation may have the guest's random numbers made of: QEMU gives the guest what it reads there.
ENTROPY_SOURCES = ("/dev/random", "/dev/urandom", "/dev/hwrng")
#: Values of what an annotation may add to QEMU's ``-machine``: others name files.
SWITCHES = ("on", "off", "auto", "split")


class Settings:
    """Values collected from files, annotations and options; :meth:`config` makes them final.

    :param language: the tables of the flavor's configuration language.
    :param refused: tables that are known but cannot hold -> why.
    """

    def __init__(self, language: Language, refused: Mapping[str, str] | None = None) -> None:
        self.language = language
        self.refused = refused or {}
        self.sources: list[str] = []
        self.notes: list[str] = []
        self.values: dict[str, Any] = {}
        self.places: dict[str, str] = {}

    def read(self, paths: Sequence[str], must_exist: bool = False) -> None:
        """The first of ``paths`` that exists, then the drop-ins beside it (or beside the first, if none does).

        :raise ConfigError: a file is wrong, or ``must_exist`` and none is there.
        """
        for path in paths:
            try:
                self.add(document.read(path))
            except FileNotFoundError:
                continue
            break
        else:
            if must_exist:
                raise ConfigError(f"Cannot find usable config file ({', '.join(paths)})", "check the path")
            path = paths[0] if paths else ""
        for drop_in in _drop_ins(path):
            self.add(document.read(drop_in))

    def add(self, doc: document.Document) -> None:
        """Every key of a file."""
        self.sources.append(doc.path)
        for table, values in _tables(doc.data, self.language, self.refused):
            if table in self.refused:
                raise ConfigError(f"{doc.place(table)}: the table [{table}] cannot hold here", self.refused[table])
            if table not in self.language:
                raise ConfigError(f"{doc.place(table)}: unknown table [{table}]", nearest(table, self.language))
            if not isinstance(values, dict):
                raise ConfigError(f"{doc.place(*_parent(table))}: {table} is a table, not a value")
            for name, value in values.items():
                place = doc.place(table, name)
                key = self.language[table].get(name)
                if key is None:
                    raise ConfigError(f"{place}: unknown key {name!r} in [{table}]",
                                      nearest(name, self.language[table]))
                try:
                    converted = key.convert(value)
                except ValueError as e:
                    raise ConfigError(f"{place}: {name}: {e} is expected, found {shown(value)}") from e
                self.take(name, key, converted, place)

    def annotate(self, annotations: Mapping[str, str], prefixes: Mapping[str, str],
                 names: Mapping[str, str], hashes: Mapping[str, str], folders: Sequence[str]) -> None:
        """What a container asks for, as far as ``enable_annotations`` allows.

        An entry of ``enable_annotations`` has to match the whole name after
        its prefix, so that ``kernel`` does not also allow ``kernel_params``.
        Whatever it allows, no annotation names just any file of the host.

        :param folders: where a kernel, image, initrd or firmware may lie.
        :raise ConfigError: an annotation is unknown, not enabled or wrong.
        """
        wanted: dict[str, str] = {}
        for annotation in sorted(annotations):
            prefix = next((p for p in prefixes if annotation.startswith(p)), "")
            if not prefix:
                continue
            short, value = annotation.removeprefix(prefix), annotations[annotation]
            table = prefixes[prefix]
            name = names.get(short, short)
            key = self.language[table].get(name)
            is_hash = short in hashes and prefix == next(iter(prefixes))
            if not is_hash and (key is None or not key.annotation):
                known = [n for n, k in self.language[table].items() if k.annotation]
                raise ConfigError(f"unknown annotation {annotation}", nearest(short, known))
            self._allow(annotation, short)
            if is_hash:
                wanted[hashes[short]] = value
                continue
            assert key is not None
            try:
                converted = from_text(key.convert, value)
            except ValueError as e:
                raise ConfigError(f"annotation {annotation}: {e} is expected, found {shown(value)}") from e
            if key.target == "qemu_path":
                self._allow_path(annotation, converted)
            elif converted and key.target in ASSETS:
                converted = chosen_file(converted, f"annotation {annotation}", folders)
            elif converted:
                _names_no_file(key.target, converted, f"annotation {annotation}")
            self.sources.append(f"annotation {annotation}")
            self.take(name, key, converted, f"annotation {annotation}")
        if wanted:
            self.values["extra.hashes"] = wanted

    def set(self, field: str, value: Any, place: str) -> None:
        """A value from an option or the environment, for a field of RuntimeConfig."""
        self.values[field] = value
        self.places[field] = place
        if place not in self.sources:
            self.sources.append(place)

    def config(self) -> RuntimeConfig:
        """The settings, checked against each other."""
        values = {k: v for k, v in self.values.items() if not k.startswith("extra.")}
        extra = {k.removeprefix("extra."): v for k, v in self.values.items() if k.startswith("extra.")}
        if self.notes:
            extra["notes"] = tuple(self.notes)
        config = replace(RuntimeConfig(), **values, extra=extra, sources=tuple(self.sources))
        self._cross_check(config)
        if config.agent_transport != "ttrpc":
            config = replace(config, template=False)
        return config

    def take(self, name: str, key: Key, value: Any, place: str) -> None:
        if key.refused and value not in key.neutral:
            raise ConfigError(f"{place}: {name} = {shown(value)} cannot hold here", key.refused)
        if key.note and value:
            self.notes.append(f"{place}: {name} has no effect: {key.note}")
        if key.target.startswith("debug_"):
            value = value or self.values.get(key.target, False)  # two keys may name one component
        if key.target:
            self.values[key.target] = value
            self.places[key.target] = place

    def _allow(self, annotation: str, short: str) -> None:
        import re

        allowed = self.values.get("enable_annotations", ())
        if not any(re.fullmatch(pattern, short) for pattern in allowed):
            raise ConfigError(f"annotation {annotation} is not enabled",
                              f"add {short!r} to enable_annotations in [hypervisor.qemu]")

    def _allow_path(self, annotation: str, path: str) -> None:
        from fnmatch import fnmatchcase

        allowed = self.values.get("extra.valid_hypervisor_paths", ())
        if not any(fnmatchcase(os.path.normpath(path), pattern) for pattern in allowed):
            raise ConfigError(f"annotation {annotation}: {shown(path)} is not one of the allowed paths",
                              "add it to valid_hypervisor_paths in [hypervisor.qemu]")

    def _cross_check(self, config: RuntimeConfig) -> None:
        place = self.places.get

        def error(field: str, text: str, hint: str) -> ConfigError:
            at = place(field, "")
            return ConfigError(f"{at}: {text}" if at else text, hint)

        if config.image and config.initrd:
            raise error("initrd", "having both an image and an initrd defined is not supported",
                        f"image is set at {place('image', 'an option')}; remove one")
        if self.values.get("template") and config.image:
            raise error("template", "enable_template needs an initrd, and an image is configured",
                        "use initrd, or no template")
        if config.template and not config.template_path:
            raise error("template_path", "template_path is empty", "remove the key for its default")
        if config.pool_size and not config.pool_path:
            raise error("pool_path", "vm_cache_endpoint is empty", "remove the key for its default")
        if config.default_maxvcpus and config.default_vcpus > config.default_maxvcpus:
            raise error("default_vcpus", f"default_vcpus ({config.default_vcpus}) exceeds default_maxvcpus "
                        f"({config.default_maxvcpus})", "raise default_maxvcpus")
        if "accel=" in config.machine_accelerators:
            raise error("machine_accelerators", "machine_accelerators cannot choose the accelerator",
                        "use the key accelerator")
        if config.agent_transport != "ttrpc":
            for field, name in (("template", "enable_template"), ("pool_size", "vm_cache_number")):
                if self.values.get(field):
                    raise error(field, f"{name} needs our agent, and transport is {config.agent_transport!r}",
                                "a Kata 1.x agent cannot make a clone distinct; remove one")
        reserved = [p for p in config.kernel_params if p.startswith("agent.channel_token")]
        if reserved:
            raise error("kernel_params", f"kernel_params: {reserved[0]!r} is set by the runtime itself", "remove it")


def check_assets(config: RuntimeConfig, initrd: str) -> None:
    """What needs the assets' files: they are regular files, an initrd fits into memory, hashes are right.

    :param initrd: the initrd in use, "" for none.
    :raise ConfigError: it is not so.
    """
    for field in ASSETS:
        path = getattr(config, field)
        if path and not os.path.isfile(path):
            what = "it is not a regular file" if os.path.exists(path) else "there is no such file"
            raise ConfigError(f"{field} = {path!r}: {what}", f"set in {', '.join(config.sources)}")
    if initrd:
        size = _size(initrd)
        if size >= config.default_memory << 20:
            raise ConfigError(f"the initrd {initrd} ({size >> 20} MiB) does not fit into default_memory "
                              f"({config.default_memory} MiB)", "raise default_memory")
    for field, wanted in config.extra.get("hashes", {}).items():
        path = getattr(config, field)
        if not path:
            raise ConfigError(f"a hash is given for {field}, whose path is not configured", f"set {field}")
        found = _sha512(path)
        if found != wanted.lower():
            raise ConfigError(f"{path} has not the SHA-512 that the annotation asks for: {found}")


def chosen_file(path: str, place: str, folders: Iterable[str]) -> str:
    """The file that a container chose for its machine, all links followed.

    Who may set an annotation or a variable of a container must not thereby read
    any file of the host: the guest sees what it boots.  So the host's owner names the folders.

    :raise ConfigError: it is not an absolute path, or lies elsewhere.
    """
    if not os.path.isabs(path):
        raise ConfigError(f"{place}: an absolute path is expected, found {shown(path)}")
    real = os.path.realpath(path)
    if not any(real.startswith(os.path.realpath(folder).rstrip("/") + "/") for folder in folders):
        raise ConfigError(f"{place}: {shown(path)} is not in a folder that containers may choose from",
                          "add its folder to guest_folders in [runtime] of /etc/kata/host.toml")
    return real


def _names_no_file(target: str, value: Any, place: str) -> None:
    """:raise ConfigError: by way of an annotation QEMU would read a file of the host (``-machine initrd=FILE``)."""
    if target == "entropy_source" and value not in ENTROPY_SOURCES:
        raise ConfigError(f"{place}: {shown(value)} is no source of random numbers",
                          f"it is one of {', '.join(ENTROPY_SOURCES)}; another can be set in the configuration file")
    if target == "machine_accelerators":
        for word in value.split(","):
            if word.rpartition("=")[2] not in SWITCHES:
                raise ConfigError(f"{place}: {shown(word)} is no switch of a machine",
                                  f"it is NAME={'|'.join(SWITCHES)}; others can be set in the configuration file")


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint: the known name most like ``name``, or all of them."""
    import difflib  # only for an error

    names = sorted(known)
    like = difflib.get_close_matches(name, names, 1, 0.6)
    return f"did you mean {like[0]!r}?" if like else "known are " + ", ".join(names)


def shown(value: Any) -> str:
    """A value as it may stand in an error."""
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 80 else text[:77] + "..."


def _tables(data: Mapping[str, Any], language: Language, refused: Mapping[str, str]) -> list[tuple[str, Any]]:
    """(dotted table name, its values); tables of which only one level is known stay whole."""
    found: list[tuple[str, Any]] = []
    parents = {t.rpartition(".")[0] for t in (*language, *refused)} - {""}
    for name, values in data.items():
        if name in parents and name not in language and isinstance(values, dict):
            found += [(f"{name}.{sub}", v) for sub, v in values.items()]
        else:
            found.append((name, values))
    return found


def _parent(table: str) -> tuple[str, str]:
    parent, _dot, name = table.rpartition(".")
    return parent, name


def _drop_ins(path: str) -> list[str]:
    folder = os.path.join(os.path.dirname(path), DROP_INS) if path else ""
    try:
        names = os.listdir(folder) if folder else []
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as e:
        raise ConfigError(f"cannot read {folder}: {(e.strerror or str(e)).lower()}") from e
    return [os.path.join(folder, n) for n in sorted(names) if n.endswith(".toml") and not n.startswith(".")]


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError as e:
        raise ConfigError(f"cannot read {path}: {(e.strerror or str(e)).lower()}") from e


def _sha512(path: str) -> str:
    import hashlib  # only when an annotation asks for it

    try:
        with open(path, "rb") as f:
            return hashlib.file_digest(f, "sha512").hexdigest()
    except OSError as e:
        raise ConfigError(f"cannot read {path}: {(e.strerror or str(e)).lower()}") from e
