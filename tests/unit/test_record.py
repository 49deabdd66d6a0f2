"""Frozen values, and JSON for who lives for milliseconds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata import jsontext
from kata.errors import StateError
from kata.planjson import from_json, to_json
from kata.record import Record, replace


class Part(Record):
    name: str
    sizes: tuple[int, ...] = ()


class Whole(Record):
    part: Part
    parts: tuple[Part, ...]
    more: Mapping[str, Any] = {}


WHOLE = Whole(Part("a"), (Part("b", (1, 2)), Part(name="c")), more={"x": [1, None]})


def test_a_record_is_its_fields() -> None:
    assert Part("a") == Part("a", ()) != Part("b")
    assert {Part("a", (1,)), Part("a", (1,))} == {Part("a", (1,))}
    assert repr(Part("a")) == "Part(name='a', sizes=())"
    assert replace(Part("a", (1,)), name="b") == Part("b", (1,))


def test_it_is_frozen_and_complete() -> None:
    with pytest.raises(AttributeError, match="frozen"):
        Part("a").name = "b"  # type: ignore[misc]
    with pytest.raises(TypeError, match="lacks name"):
        Part()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="colour"):
        Part("a", colour=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Part("a", (), 1)  # type: ignore[call-arg]


def test_values_do_not_share_a_default() -> None:
    one, two = Whole(Part("a"), ()), Whole(Part("a"), ())
    assert one.more == two.more == {} and one.more is not two.more


def test_plans_survive_json() -> None:
    assert from_json(Whole, json.loads(json.dumps(to_json(WHOLE)))) == WHOLE
    with pytest.raises(StateError, match=r"unknown fields \['x'\], missing fields \['part'\]"):
        from_json(Whole, {"parts": [], "more": {}, "x": 1})


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda v: st.lists(v, max_size=5) | st.dictionaries(st.text(max_size=9), v, max_size=5), max_leaves=12)


@given(VALUES)
def test_json_is_what_the_library_makes_of_it(value: Any) -> None:
    assert jsontext.dumps(value) == json.dumps(value, separators=(",", ":"))
    assert jsontext.loads(f" \n{json.dumps(value, indent=1)} ") == value
    assert jsontext.loads(json.dumps(value).encode(), dict) == value


@pytest.mark.parametrize("text", ["", "nul", "{", "[1,]", "1 2", "NaN", '{"a": -Infinity}', b"\xff", '"\n"'])
def test_what_is_not_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        jsontext.loads(text)
