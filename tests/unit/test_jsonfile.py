"""JSON files changed in place."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata.config.jsonfile import edited, parse
from kata.errors import ConfigError

TEXT = """{
  "debug": false,
  "runtimes":   { "runv": {"path": "/usr/bin/runv", "runtimeArgs": [ "--debug" ]} },
  "hosts": ["unix:///run/docker.sock",
            "fd://"],
\t"log-level" : "info"
}
"""


def test_the_rest_stays_byte_for_byte() -> None:
    after = edited(TEXT, {("runtimes", "runv", "path"): "/usr/bin/kata",
                          ("runtimes", "runv", "runtimeArgs"): ["a", "b"],
                          ("debug",): True})
    assert after == TEXT.replace("/usr/bin/runv", "/usr/bin/kata").replace('[ "--debug" ]', '["a", "b"]').replace(
        "false", "true")
    assert edited(TEXT, {("debug",): False, ("hosts",): ["unix:///run/docker.sock", "fd://"]}) == TEXT


def test_new_members_stand_as_their_neighbours() -> None:
    after = edited(TEXT, {("runtimes", "kata"): {"path": "/k", "runtimeArgs": []}, ("default-runtime",): "kata"})
    assert after == TEXT.replace('"info"', '"info",\n\t"default-runtime": "kata"').replace(
        ']} }', ']}, "kata": {\n    "path": "/k",\n    "runtimeArgs": []\n  } }')
    assert edited("", {("runtimes", "kata", "path"): "/k"}) == (
        '{\n    "runtimes": {\n        "kata": {\n            "path": "/k"\n        }\n    }\n}\n')


KEYS = st.text("abc\"\\é\n ", max_size=4)
VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
                      | KEYS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3))
OBJECTS = st.dictionaries(KEYS, VALUES, max_size=4)


@given(OBJECTS, KEYS, VALUES, st.sampled_from([None, 2, "\t"]))
def test_it_is_what_json_says(before: dict[str, Any], key: str, value: Any, indent: Any) -> None:
    text = json.dumps(before, indent=indent)
    assert parse(text, "f").value == before
    assert json.loads(edited(text, {(key,): value})) == {**before, key: value}
    assert json.loads(edited(text, {("x", key): value})) == {**before, "x": {key: value}}


@given(st.text('{}[]",: \n1ab\\', max_size=12))
def test_what_is_no_json_is_an_error(text: str) -> None:
    try:
        expected: Any = json.loads(text)
    except ValueError:
        with pytest.raises(ConfigError):
            parse(text, "f")
        return
    try:
        assert parse(text, "f").value == expected
    except ConfigError as e:
        assert "set twice" in str(e)  # json takes the last of two


@pytest.mark.parametrize(("text", "error"), [
    ('{\n "a": 1,\n "a": 2}', "f:3: 'a' is set twice, first on line 2"),
    ('{"a": 1\n "b": 2}', "f:2: ',' or '}' is expected"), ("{", "f:1: a key in quotes is expected"),
    ('{"a":}', "f:1: a value is expected"),
    ("[" * 200, "f:1: nested too deeply"), ("{} {}", "f:1: more than one value"),
    ('{"a": "x', "f:1: Unterminated string"),
])
def test_errors_have_their_line(text: str, error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "f")
    assert error in str(caught.value)


def test_what_is_no_object_holds_no_key() -> None:
    with pytest.raises(ConfigError, match="f:1: a is no object"):
        edited('{"a": 5}', {("a", "b"): 1}, "f")
