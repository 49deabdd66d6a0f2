"""Debian packages and Python wheels: which version, and a verified file of it.

apt checks every package against its signed index, pip every wheel against the
index's hash.  What was downloaded once is kept and used again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from kata.assets.progress import Progress, megabytes
from kata.errors import HostError
from kata.process import run

DOWNLOAD_TIMEOUT = 900.0  #: seconds
APT_ENV = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
#: The download is root's own file, in a directory that apt's user may not enter.
APT_GET = ("apt-get", "-q", "-o", "APT::Sandbox::User=root")


class StaleIndex(HostError):
    """A package of the index can no longer be downloaded: the index is old."""


class Package(NamedTuple):
    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def cache_dir() -> Path:
    """Where downloads are kept; ``KATA_CACHE_DIR`` overrides ``/var/cache/kata``."""
    return Path(os.environ.get("KATA_CACHE_DIR") or "/var/cache/kata") / "downloads"


def update(progress: Progress) -> None:
    """Refresh apt's index."""
    progress.step("apt-get update")
    run([*APT_GET, "update"], env=APT_ENV, timeout=DOWNLOAD_TIMEOUT, hint="check the mirror in /etc/apt/sources.list")


def candidates(names: Sequence[str], progress: Progress) -> list[Package]:
    """The versions that apt would install now.

    :raise HostError: a name is not in the index, also after an update.
    """
    found = _policy(names)
    if missing := [n for n in names if n not in found]:
        update(progress)
        found = _policy(names)
        if missing := [n for n in names if n not in found]:
            raise HostError(f"apt knows no package {', '.join(missing)}", "check /etc/apt/sources.list")
    return [Package(n, found[n]) for n in names]


def _policy(names: Sequence[str]) -> dict[str, str]:
    text = _ask(["apt-cache", "policy", *names])
    found, name = {}, ""
    for line in text.splitlines():
        if line and not line[0].isspace():
            name = line.rstrip(":").partition(":")[0]
        elif line.strip().startswith("Candidate:"):
            version = line.split()[-1]
            if version != "(none)":
                found[name] = version
    return found


def _ask(argv: Sequence[str]) -> str:
    """What apt-cache answers; asked once for a state of apt's index and settings.

    Where apt keeps no cache of its index (Debian's container images) an answer
    takes a second and more.
    """
    file = cache_dir() / "answers.json"
    state, question = _index_state(), " ".join(argv)
    known: dict[str, str] = {}
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["state"] == state:
            known = kept["answers"]
    except (OSError, ValueError, KeyError, TypeError):
        known = {}
    if question not in known:
        known[question] = run(argv, env=APT_ENV, timeout=60).text
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_name(f".answers-{os.getpid()}")
        aside.write_text(json.dumps({"state": state, "answers": known}), encoding="utf-8")
        aside.rename(file)
    return known[question]


def _index_state() -> str:
    """Changes whenever apt's index, its settings or the installed packages do."""
    folders = [Path(p) for p in ("/etc/apt", "/etc/apt/sources.list.d", "/etc/apt/preferences.d", "/var/lib/apt/lists")]
    paths = [p for folder in folders if folder.is_dir() for p in folder.iterdir() if p.is_file()]
    digest = hashlib.sha256()
    for path in sorted([*paths, Path("/var/lib/dpkg/status")]):
        info = path.stat()
        digest.update(f"{path} {info.st_size} {info.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def dependency(package: Package, pattern: str) -> Package:
    """What ``package`` depends on by exact version and by a name that matches ``pattern``."""
    text = _ask(["apt-cache", "show", f"{package.name}={package.version}"])
    depends = " ".join(re.findall(r"^Depends: (.*)$", text, re.MULTILINE))
    for name, version in re.findall(r"([a-z0-9.+-]+) \(= ([^)]+)\)", depends):
        if re.fullmatch(pattern, name):
            return Package(name, version)
    raise HostError(f"{package} depends on no package like {pattern}")


def fetch(packages: Iterable[Package], progress: Progress) -> list[Path]:
    """Files of these packages, downloaded where they are not in the cache.

    :raise StaleIndex: the mirror no longer has one of them.
    """
    folder = cache_dir()
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {p: folder / f"{p.name}_{quote(p.version, safe='+~')}_amd64.deb" for p in packages}
    missing = [p for p, path in wanted.items() if not path.exists()]
    if missing:
        progress.step("downloading " + ", ".join(map(str, missing)))
        with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as partial:
            names = [f"{p.name}={p.version}" for p in missing]
            try:
                run([*APT_GET, "download", *names], cwd=partial, env=APT_ENV, timeout=DOWNLOAD_TIMEOUT)
            except HostError as e:
                raise StaleIndex(e.text, "check the mirror in /etc/apt/sources.list") from e
            arrived = {path.name.split("_")[0]: path for path in Path(partial).glob("*.deb")}
            for p in missing:
                if p.name not in arrived:
                    raise HostError(f"apt-get download left no file for {p}")
                os.rename(arrived[p.name], wanted[p])
        progress.step(f"downloaded {megabytes(sum(wanted[p].stat().st_size for p in missing))}")
    return list(wanted.values())


def extract(deb: Path, folder: Path) -> None:
    """Unpack the files of a package below ``folder``."""
    run(["dpkg-deb", "-x", deb, folder], timeout=300)


def fetch_wheel(name: str, version: str, progress: Progress) -> Path:
    """The wheel of a distribution for CPython 3.11 on x86-64."""
    folder = cache_dir()
    folder.mkdir(parents=True, exist_ok=True)
    pattern = f"{name}-{version}-*.whl"
    if kept := sorted(folder.glob(pattern)):
        return kept[0]
    progress.step(f"downloading {name} {version} (wheel)")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as partial:
        target = ["--python-version=3.11", "--implementation=cp", "--abi=cp311", "--abi=abi3", "--abi=none"]
        platform = ["--platform=manylinux2014_x86_64", "--platform=manylinux_2_28_x86_64"]
        argv = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q", "--no-deps"]
        argv += ["--only-binary=:all:", *target, *platform, "-d", partial, f"{name}=={version}"]
        run(argv, timeout=DOWNLOAD_TIMEOUT, hint=f"check that pip works: {sys.executable} -m pip --version")
        found = sorted(Path(partial).glob(pattern))
        if not found:
            raise HostError(f"pip download left no {pattern}")
        shutil.move(found[0], folder / found[0].name)
    return folder / found[0].name
