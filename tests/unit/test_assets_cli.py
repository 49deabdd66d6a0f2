"""``kata image`` and ``kata kernel`` on a store made by hand."""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner

from kata import engines
from kata.assets import options, store, workshop
from kata.assets.progress import Progress
from kata.cli import image, kernel
from kata.cli.context import Context
from kata.errors import ConfigError, HostError, NotFound
from kata.flavors import Choice
from kata.personality import Personality


@pytest.fixture(autouse=True)
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[store.Asset]:
    monkeypatch.setenv("KATA_ASSETS_DIR", str(tmp_path))

    def fill(target: Path, scratch: Path) -> Mapping[str, str]:
        (target / "file").write_bytes(bytes(2_000_000))
        (target / "config").write_text("".join(f"{o.name}={o.value}\n" for o in options.fragments()))
        return {}

    made = []
    progress = Progress(stream=io.StringIO())
    for version, variant in (("1", "stock"), ("2", "minimal")):
        for kind in ("kernel", "initrd"):
            def one(target: Path, scratch: Path, kind: str = kind) -> Mapping[str, str]:
                return {**fill(target, scratch), kind: "file"}

            inputs = {"v": version, "kernel_release": f"6.{version}", "variant": variant}
            if kind == "initrd":
                inputs["kernel"] = made[-1].id
            made.append(workshop.make(kind, f"{kind} {version}", inputs, one, progress))
    store.select(made[0])
    return made


def call(command: object, *words: str) -> list[str]:
    result = CliRunner().invoke(command, words, catch_exceptions=False)  # type: ignore[arg-type]
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


def test_list_marks_what_is_used(assets: list[store.Asset]) -> None:
    head, one, two = call(kernel.command, "list")
    assert head.split() == ["ID", "KIND", "SIZE", "BUILT", "MADE", "OF"]
    assert one.split()[:5] == ["*", assets[0].id, "stock", "2.0", "MB"]
    assert one.endswith("kernel 1")
    assert two.split()[:2] == [assets[2].id, "minimal"]
    assert [line.split()[0] for line in call(image.command, "list")[1:]] == ["*", assets[3].id]


def test_select_takes_the_initrd_along(assets: list[store.Asset]) -> None:
    assert call(kernel.command, "select", assets[2].id[:10]) == [f"selected kernel 2 ({assets[2].id})"]
    assert store.selected("initrd") == assets[3]
    assert call(kernel.command, "select", "stock") == [f"selected kernel 1 ({assets[0].id})"]
    assert store.selected("initrd") == assets[1]


def test_select_names_what_a_kernel_lacks(assets: list[store.Asset]) -> None:
    config = Path(assets[2].path) / "config"
    whole = config.read_text()
    config.write_text(whole.replace("CONFIG_VMGENID=y", "# CONFIG_VMGENID is not set").replace("CONFIG_9P_FS=y", ""))
    with pytest.raises(ConfigError, match=r"CONFIG_VMGENID \(a clone of a saved machine .*CONFIG_9P_FS \(roots and"):
        call(kernel.command, "select", "minimal")
    assert store.selected("kernel") == assets[0]
    config.write_text(whole.replace("CONFIG_9P_FS=y", "CONFIG_9P_FS=m"))
    call(kernel.command, "select", "minimal")


def test_select_refuses_what_does_not_fit(assets: list[store.Asset]) -> None:
    with pytest.raises(ConfigError, match="is for kernel"):
        call(image.command, "select", assets[3].id)
    with pytest.raises(NotFound, match="there is no kernel zz"):
        call(kernel.command, "select", "zz")
    shutil.rmtree(assets[2].path)
    with pytest.raises(NotFound, match="there is no kernel minimal") as e:
        call(kernel.command, "select", "minimal")
    assert e.value.hint == "kata kernel build minimal"


def test_verify(assets: list[store.Asset]) -> None:
    assert len(call(image.command, "verify")) == 2
    assert call(kernel.command, "verify", assets[2].id) == [f"{assets[2].id}  kernel 2: as built"]
    (Path(assets[2].path) / "file").write_bytes(b"")
    with pytest.raises(HostError, match="is not what was built"):
        call(kernel.command, "verify", "minimal")
    (Path(assets[0].path) / "config").write_text("")
    with pytest.raises(HostError, match="config is not what was built"):
        call(kernel.command, "verify")


def test_which_files_may_name_assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of every flavor, whichever is asked for, and the engines'."""
    (tmp_path / "config.d").mkdir()
    for name in ("mine.toml", "config.d/more.toml", "daemon.json"):
        (tmp_path / name).touch()
    monkeypatch.setenv("KATA_CONF_FILE", f"{tmp_path}/mine.toml")
    monkeypatch.setattr(engines, "PLACES", {"docker": {"daemon.json": (f"{tmp_path}/d*.json",)}})
    context = Context("kata", {"debug": False, "timings": False, "log": "", "log_format": "", "kata_config": ""},
                      Choice("runv", ""), Personality(), "image")
    found = [path for path in image.configuration(context) if path.startswith(str(tmp_path))]
    assert found == [f"{tmp_path}/{name}" for name in ("daemon.json", "mine.toml", "config.d/more.toml")]
