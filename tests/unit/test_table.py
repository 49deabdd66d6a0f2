"""The quick parser and click read the same words the same way, or the quick one steps aside."""

from __future__ import annotations

from importlib import import_module

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata.cli import OPTIONS, VERBS, full
from kata.errors import UsageError
from kata.table import Verb, parse


def verbs() -> dict[str, Verb]:
    modules = {name: import_module(f"kata.cli.{module}") for name, (module, _help) in VERBS.items()}
    return {name: module.VERB for name, module in modules.items() if hasattr(module, "VERB")}


VERB_TABLES = verbs()
WORDS = [
    *sorted({n for v in VERB_TABLES.values() for o in v.options for n in o.names}),
    "--help", "-", "--", "x", "c1", "9", "--root=/x", "--force=1", "-abc", "table", "json", "", "KILL", "--unknown"]


@given(st.sampled_from(sorted(VERB_TABLES)), st.lists(st.sampled_from(WORDS), max_size=6))
def test_the_quick_parser_agrees_with_click(name: str, words: list[str]) -> None:
    verb = VERB_TABLES[name]
    quick = parse(verb.options, verb.arguments, verb.passthrough, words)
    if quick is None:
        return
    assert quick[0] == full.parse_verb("kata", name, verb, words)


@pytest.mark.parametrize(("words", "expected"), [
    (["--root", "/r", "--log", "/l", "--log-format", "json", "create", "--bundle", "/b", "id"],
     {"root": "/r", "log": "/l", "log_format": "json"}),
    (["--root=/r", "--systemd-cgroup", "state", "x"], {"root": "/r", "systemd_cgroup": True}),
    (["--flavor", "unified", "--debug", "list"], {"flavor": "unified", "debug": True}),
])
def test_what_engines_pass_needs_no_click(words: list[str], expected: dict[str, object]) -> None:
    parsed = parse(OPTIONS, (), False, words, stop_at_first=True)
    assert parsed is not None
    assert {k: parsed[0][k] for k in expected} == expected
    assert words[parsed[1]] in VERBS


def test_engine_shapes_of_hot_verbs_need_no_click() -> None:
    shapes = {
        "create": ["--bundle", "/b", "--pid-file", "/p", "--console-socket", "/s", "id"],
        "start": ["id"], "state": ["id"], "delete": ["--force", "id"], "kill": ["--all", "id", "9"],
        "exec": ["--process", "/p", "--pid-file", "/f", "--detach", "id"], "list": ["--format", "json"],
    }
    for name, words in shapes.items():
        verb = VERB_TABLES[name]
        assert parse(verb.options, verb.arguments, verb.passthrough, words) is not None, name


def test_a_command_keeps_its_own_options() -> None:
    verb = VERB_TABLES["exec"]
    parsed = parse(verb.options, verb.arguments, verb.passthrough, ["-t", "id", "ls", "-t", "--user", "x"])
    assert parsed is not None
    assert parsed[0]["command"] == ("ls", "-t", "--user", "x")
    assert parsed[0]["user"] == ""


def test_usage_errors_name_the_word() -> None:
    with pytest.raises(UsageError, match="--bogus"):
        full.parse_verb("kata", "state", VERB_TABLES["state"], ["--bogus", "x"])
    with pytest.raises(UsageError, match="Missing container ID"):
        full.parse_verb("kata", "state", VERB_TABLES["state"], [])


@pytest.mark.parametrize("words", [["--version"], ["--debug", "--version"], ["--log-format=json", "--version"]])
def test_global_options_without_a_verb(words: list[str]) -> None:
    values, rest = full.parse_global(full.Program("kata", VERBS, OPTIONS, "help"), words)
    assert values["version"] is True
    assert values["log_format"] == ("json" if "--log-format=json" in words else "")
    assert rest == []
