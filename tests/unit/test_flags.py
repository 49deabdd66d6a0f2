"""Options as Go programs take them."""

from __future__ import annotations

import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from kata.components.flags import Flags, HelpWanted, parse, usage
from kata.errors import UsageError

FLAGS: Flags = {"path": ("", "a path"), "log": ("warn", "a level"), "on": (False, "a switch"), "off": (True, "another")}


@pytest.mark.parametrize(("words", "changed"), [
    ([], {}), (["-path", "x"], {"path": "x"}), (["--path=x=y"], {"path": "x=y"}), (["-path="], {"path": ""}),
    (["-on"], {"on": True}), (["-on", "-off=false", "-log", "-on"], {"on": True, "off": False, "log": "-on"}),
    (["-on=F"], {}), (["-path", "a", "-path", "b"], {"path": "b"}), (["-on", "--"], {"on": True}),
])
def test_values(words: list[str], changed: dict[str, str | bool]) -> None:
    assert parse(FLAGS, words) == {"path": "", "log": "warn", "on": False, "off": True} | changed


@pytest.mark.parametrize(("words", "text"), [
    (["-nope"], "not defined: -nope"), (["-path"], "needs an argument: -path"), (["-on=2"], "invalid boolean value"),
    (["x"], "unexpected argument: x"), (["-on", "--", "-log"], "unexpected argument: -log"), (["-"], "unexpected"),
])
def test_errors(words: list[str], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        parse(FLAGS, words)


def test_help() -> None:
    with pytest.raises(HelpWanted):
        parse(FLAGS, ["-on", "-help"])
    assert "-log string\n    \ta level (default warn)" in usage("p", FLAGS)


@pytest.mark.parametrize("name", ["kata-proxy", "kata-shim"])
def test_installed_as_programs(name: str) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"][name].partition(":")
    assert callable(getattr(import_module(module), function))
