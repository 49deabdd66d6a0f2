"""Which flavor, and its plugin: good ones, broken ones, none."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata import flavors, loader
from kata.errors import ConfigError, HostError, UsageError
from kata.personality import Personality

BACKEND = """
    from kata.contract import Backend
    class Good(Backend):
        name = "good"
        def config_paths(self, options): return ()
        def load_config(self, options, annotations): raise NotImplementedError
        def plan_sandbox(self, config, bundle, options): raise NotImplementedError
        def plan_container(self, config, bundle, sandbox_id, role): raise NotImplementedError
        def sandbox_of(self, bundle): return ("single", "")
        def plan_resize(self, config, containers): raise NotImplementedError
    class Named(Good):
        name = "other"
    class Old(Good):
        name = "old"
        contract_version = 0
    class Lacking(Backend):
        name = "lacking"
    class Failing(Good):
        name = "failing"
        def __init__(self): raise OSError("no")
    from kata.personality import Personality
    class Voice(Personality):
        program = "good"
    class OldVoice(Personality):
        contract_version = 0
    class Stranger:
        name = "stranger"
"""


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on sys.path with a module of backends and their entry points."""
    (tmp_path / "test_plugin_module.py").write_text(textwrap.dedent(BACKEND))
    (tmp_path / "test_plugin_broken.py").write_text("raise RuntimeError('at import')")
    info = tmp_path / "testplugin-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: testplugin\nVersion: 1\n")
    names = {"good": "Good", "misnamed": "Named", "old": "Old", "lacking": "Lacking", "failing": "Failing",
             "stranger": "Stranger", "absent": "NoSuchClass"}
    lines = [f"{n} = test_plugin_module:{c}" for n, c in names.items()]
    (info / "entry_points.txt").write_text("\n".join(
        [f"[{loader.VOICES}]", "good = test_plugin_module:Voice", "stranger = test_plugin_module:Good",
         "old = test_plugin_module:OldVoice",
         f"[{loader.GROUP}]", *lines, "broken = test_plugin_broken:X", "gone = test_plugin_gone:X"]))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(loader, "MEMO", str(tmp_path / "flavors"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # where stevedore keeps what it found
    from stevedore import _cache, extension

    monkeypatch.setattr(_cache, "_c", _cache.Cache())
    monkeypatch.setattr(extension.ExtensionManager, "ENTRY_POINT_CACHE", {})
    yield tmp_path
    for name in ("test_plugin_module", "test_plugin_broken"):
        sys.modules.pop(name, None)


def test_a_good_plugin(plugins: Path) -> None:
    backend = loader.load("good")
    assert backend.name == "good" and loader.resolved(backend) == "test_plugin_module:Good"
    assert type(loader.load_resolved("test_plugin_module:Good", "good")) is type(backend)
    assert {"good", "old", "broken"} <= set(loader.available())


def test_stevedore_is_asked_once_until_a_distribution_changes(plugins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader.load("good")
    ask = loader._ask_stevedore
    asked: list[str] = []

    def count(group: str, name: str) -> object:
        asked.append(name)
        return ask(group, name)

    monkeypatch.setattr(loader, "_ask_stevedore", count)
    assert loader.load("good").name == "good" and not asked
    with pytest.raises(HostError, match="for version 0"):
        loader.load("old")
    assert loader.load("good").name == "good" and asked == ["old"]
    other = plugins / "other-1.dist-info"
    other.mkdir()
    (other / "entry_points.txt").write_text("[console_scripts]\n")
    assert loader.load("good").name == "good" and asked == ["old", "good"]
    for memo in (plugins / "flavors").iterdir():
        memo.write_text("{")
    assert loader.load("good").name == "good" and asked == ["old", "good", "good"]


def test_a_class_that_is_gone_is_found_by_its_name(plugins: Path) -> None:
    for reference in ("test_plugin_module:Renamed", "no_such_module:X", ""):
        assert loader.load_resolved(reference, "good").name == "good"
    with pytest.raises(ConfigError, match=r"unknown flavor 'nosuch' \(asked for by the container's state\)"):
        loader.load_resolved("no_such_module:X", "nosuch")


@pytest.mark.parametrize(("name", "text"), [
    ("old", "made for version 0 of the contract, this runtime has 1"),
    ("lacking", "its plugin lacks config_paths, load_config, plan_container"),
    ("misnamed", "calls itself 'other'"),
    ("failing", "cannot be loaded: OSError: no"),
    ("stranger", "is not a kata.contract.Backend"),
    ("absent", "cannot be loaded: AttributeError"),
    ("broken", "cannot be loaded: RuntimeError: at import"),
    ("gone", "cannot be loaded: ModuleNotFoundError"),
])
def test_a_plugin_that_is_no_good(plugins: Path, name: str, text: str) -> None:
    with pytest.raises(HostError) as e:
        loader.load(name)
    assert text in str(e.value) and f"flavor {name!r}" in str(e.value)


def test_personalities(plugins: Path) -> None:
    """A flavor speaks as it says, or as Kata does; one that is broken or unknown is an error."""
    assert type(loader.personality("unified")) is Personality and type(loader.personality("lacking")) is Personality
    assert loader.personality("good").program == "good"
    with pytest.raises(HostError, match=r"is not a kata\.personality\.Personality"):
        loader.personality("stranger")
    with pytest.raises(HostError, match="made for version 0, this runtime has 1"):
        loader.personality("old")
    with pytest.raises(ConfigError, match="unknown flavor 'goodd': did you mean 'good'"):
        loader.personality("goodd")


def test_unknown_flavor(plugins: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown flavor 'goood' \(asked for by --flavor\): did you mean 'good'"):
        loader.load("goood", "--flavor")


def test_choice(tmp_path: Path) -> None:
    host = tmp_path / "host.toml"
    none = str(tmp_path / "none")

    def name(option: str = "", environ: str = "", program: str = "/usr/bin/kata", file: str = none) -> str:
        return flavors.choose(option, {"KATA_FLAVOR": environ, "KATA_HOST_FILE": file}, program).name

    assert name() == "unified" and name(program="kata-runtime") == "unified"
    host.write_text('[runtime]\ndefault_flavor = "runv"\n')
    assert name(file=str(host)) == "runv"
    assert flavors.choose("", {"KATA_HOST_FILE": str(host)}, "kata").origin == f"{host}:2"
    assert name(program="/usr/bin/cc-runtime", file=str(host)) == "clear"
    assert name(environ="unified", program="runv", file=str(host)) == "unified"
    assert name(option="clear", environ="unified", file=str(host)) == "clear"
    assert name(option="runv", program="runv") == "runv"
    with pytest.raises(UsageError, match="--flavor clear and the program name 'runv' ask for different"):
        name(option="clear", program="/bin/runv")
