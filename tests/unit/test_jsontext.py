"""JSON without the library's ``json``: what is wrong is a ValueError, also in an interpreter that has not loaded it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kata import jsontext

WRONG = ('{"a":', '{"a" 1}', '{"a":1', '["', '{"a":1,}', "[1 2]", "x", "", "NaN", "1 2")


@pytest.mark.parametrize("text", WRONG)
def test_wrong_text(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        jsontext.loads(text)


def test_wrong_text_in_a_bare_interpreter() -> None:
    program = f"""
import sys
sys.path.append({str(Path(__file__).parents[2])!r})
from kata import jsontext
for text in {WRONG!r}:
    assert "json.decoder" not in sys.modules or text != {WRONG[0]!r}
    try:
        jsontext.loads(text)
    except ValueError as e:
        assert str(e)
    else:
        raise SystemExit(text)
"""
    subprocess.run([sys.executable, "-I", "-S", "-c", program], check=True, timeout=30)
