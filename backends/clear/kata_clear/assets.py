"""Kernel, image and hypervisor: Clear's own parts, and what annotations name.

A Clear Containers host has its parts where its packages put them.  They cannot
serve here: the image holds hyperstart and cc-agent, which speak another
protocol than our proxy, the kernel lacks what our image needs, and qemu-lite
lacks what the command line asks for.  So a path at one of *these* places stands for
our part of the same kind, whether or not the file is still there, and a warning
says so.  A file anywhere else is used as it is, and has to exist.
"""

from __future__ import annotations

from kata.config import Settings, chosen_file, nearest
from kata.errors import ConfigError
from kata_clear import language

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Field -> where the packages of Clear Containers put what it names.
CLEARS_OWN = {
    "kernel": ("/usr/share/clear-containers/vmlinuz.container", "/usr/share/clear-containers/vmlinux.container"),
    "image": ("/usr/share/clear-containers/clear-containers.img",),
    "qemu_path": ("/usr/bin/qemu-lite-system-x86_64", "/usr/local/bin/qemu-lite-system-x86_64",
                  "/opt/cc-runtime/bin/qemu-lite-system-x86_64"),
}
OURS = {"kernel": "the kernel of the asset store", "image": "the image of the asset store",
        "qemu_path": "qemu-system-x86_64"}


def replace_clears_own(settings: Settings) -> None:
    """Paths of Clear's own parts become our defaults, each with a warning."""
    for field, places in CLEARS_OWN.items():
        path = settings.values.get(field, "")
        if path in places:
            del settings.values[field]
            where = settings.places.pop(field)
            _warn(settings, f"{where}: {path} is Clear Containers' own; {OURS[field]} is used instead")


def _warn(settings: Settings, text: str) -> None:
    settings.notes.append(text)
    settings.values["extra.warnings"] = (*settings.values.get("extra.warnings", ()), text)


def annotate(settings: Settings, annotations: Mapping[str, str], folders: Sequence[str]) -> None:
    """The assets that a container asks for, and the hashes they must have.

    :param folders: where they may lie; Clear took any file of the host.
    :raise ConfigError: an annotation is unknown, its path is none that it may have, or its kind of hash is unknown.
    """
    asked = {name.removeprefix(language.ANNOTATION_PREFIX): value for name, value in sorted(annotations.items())
             if name.startswith(language.ANNOTATION_PREFIX) and not name.startswith(language.ANNOTATION_OWN)}
    known = {*language.ANNOTATION_PATHS, *language.ANNOTATION_HASHES, language.HASH_TYPE}
    hashes = {}
    for short, value in asked.items():
        annotation = f"annotation {language.ANNOTATION_PREFIX}{short}"
        if short not in known:
            raise ConfigError(f"unknown {annotation}", nearest(short, known))
        if short == language.HASH_TYPE and value not in language.HASH_TYPES:
            raise ConfigError(f"{annotation}: {value!r} is no known kind of hash",
                              f"it is {' or '.join(language.HASH_TYPES)}")
        if short in language.ANNOTATION_PATHS:
            settings.set(language.ANNOTATION_PATHS[short], chosen_file(value, annotation, folders), annotation)
        elif short in language.ANNOTATION_HASHES:
            hashes[language.ANNOTATION_HASHES[short]] = value
    if "InitrdPath" in asked and "ImagePath" not in asked:
        settings.values.pop("image", None)  # the container's wish goes before the file's image
    if hashes:
        settings.values["extra.hashes"] = hashes
