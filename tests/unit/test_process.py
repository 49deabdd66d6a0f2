"""The door to other programs: what a failure says."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from kata.errors import HostError
from kata.process import last_lines, run


def test_result() -> None:
    done = run(["sh", "-c", "cat; echo err >&2"], input=b"in", timeout=10)
    assert (done.code, done.stdout, done.stderr, done.text) == (0, b"in", b"err\n", "in")


def test_no_input_is_the_end_of_input() -> None:
    assert run(["cat"], timeout=10).stdout == b""


def test_failure_names_command_code_and_last_lines() -> None:
    with pytest.raises(HostError, match=r"sh -c '.*' failed with exit code 3: one \| two \| three") as e:
        run(["sh", "-c", "echo one >&2; echo >&2; echo two >&2; echo three >&2; exit 3"], timeout=10, hint="do so")
    assert e.value.hint == "do so"


def test_failure_that_wrote_to_standard_output() -> None:
    with pytest.raises(HostError, match="exit code 1: said"):
        run(["sh", "-c", "echo said; exit 1"], timeout=10)


def test_signal() -> None:
    with pytest.raises(HostError, match="failed with signal 9"):
        run(["sh", "-c", "kill -9 $$"], timeout=10)


def test_unchecked() -> None:
    assert run(["false"], timeout=10, check=False).code == 1


def test_missing_program() -> None:
    with pytest.raises(HostError, match="cannot run no-such-program: program not found") as e:
        run(["no-such-program"], timeout=10)
    assert e.value.hint == "install no-such-program"


def test_missing_directory_is_not_a_missing_program() -> None:
    with pytest.raises(HostError, match="directory /nowhere does not exist"):
        run(["true"], cwd="/nowhere", timeout=10)


def test_not_executable(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(HostError, match="Permission denied"):
        run([tmp_path / "x"], timeout=10)


def test_timeout_says_how_long_and_what_was_said() -> None:
    with pytest.raises(HostError, match=r"did not end within 0.2 s and was killed; it last said: begun"):
        run(["sh", "-c", "echo begun; exec sleep 60"], timeout=0.2)


def test_output_to_a_file() -> None:
    with tempfile.TemporaryFile() as out:
        assert run(["echo", "x"], stdout=out, timeout=10).stdout == b""
        out.seek(0)
        assert out.read() == b"x\n"


def test_last_lines() -> None:
    assert last_lines(b"") == ""
    assert last_lines(b"a\n\n \nb\xff\n", 2) == "a | b\ufffd"
    assert last_lines("\n".join(map(str, range(10))).encode(), 3) == "7 | 8 | 9"
