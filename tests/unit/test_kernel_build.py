"""The minimal kernel's fragments and what surrounds its compilation; the compilation itself is ``./dev test``'s."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest

from kata import hostfacts
from kata.assets import minimal, options, packages, workshop
from kata.assets.packages import Package
from kata.assets.progress import Progress
from kata.errors import HostError
from kata.process import follow
from kata_agent import features


@pytest.fixture
def fragments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(options, "folder", lambda: tmp_path)
    return tmp_path


class TestFragments:
    def test_ours_are_well_formed(self) -> None:
        found = options.fragments()
        assert len(found) > 200
        assert all(re.fullmatch(r'y|\d+|"[^"]*"', o.value) for o in found)
        required = [o for o in found if o.reason]
        assert all(o.value == "y" for o in required)
        assert {"CONFIG_VIRTIO_CONSOLE", "CONFIG_9P_FS", "CONFIG_MEMCG"} <= {o.name for o in required}

    def test_a_reason_holds_for_its_paragraph(self, fragments: Path) -> None:
        (fragments / "a.config").write_text(
            "# About.\n\n# Required: it must\nCONFIG_A=y\n# more\nCONFIG_B=y\n\nCONFIG_C=3\n")
        assert options.fragments() == [
            ("CONFIG_A", "y", "it must", "a.config:4"), ("CONFIG_B", "y", "it must", "a.config:6"),
            ("CONFIG_C", "3", "", "a.config:8")]
        assert [o.name for o in options.missing("CONFIG_A=m\n# CONFIG_B is not set\n")] == ["CONFIG_B"]

    @pytest.mark.parametrize(("text", "says"), [
        ("CONFIG_A=y\nCONFIG_A=y\n", "b.config:2: CONFIG_A is set in b.config:1, too"),
        ("A=y\n", "b.config:1: 'A=y' is not CONFIG_NAME=VALUE"),
        ("CONFIG_A y\n", "is not CONFIG_NAME=VALUE")])
    def test_bad_lines(self, fragments: Path, text: str, says: str) -> None:
        (fragments / "b.config").write_text(text)
        with pytest.raises(HostError, match=re.escape(says)):
            options.fragments()

    def test_emulated_processors_need_no_guards_against_speculation(self) -> None:
        for_kvm = {o.name for o in options.fragments()}
        for_all = {o.name for o in options.fragments(kvm=False)}
        assert for_all < for_kvm
        assert {"CONFIG_CPU_MITIGATIONS", "CONFIG_RETPOLINE", "CONFIG_KVM_GUEST"} <= for_kvm - for_all
        assert {"CONFIG_STACKPROTECTOR_STRONG", "CONFIG_VMAP_STACK", "CONFIG_SECCOMP"} <= for_all
        assert all(o.name in for_all for o in options.fragments() if o.reason)

    def test_the_agent_knows_the_same_options(self) -> None:
        """What the agent names at boot is what ``kata kernel select`` asks for."""
        required = {o.name for o in options.fragments() if o.reason}
        tables = [o for o, _, _ in features._VITAL + features._MACHINE]
        tables += [*features._CONTROLLERS.values(), *features._NAMESPACES.values(), *features._FILE_SYSTEMS.values()]
        assert set(tables) <= required


class TestBuild:
    @pytest.mark.parametrize(("usable", "asked", "guarded"), [
        (False, False, False), (True, False, True), (False, True, True)])
    def test_the_host_or_the_user_decides_what_it_is_for(
        self, monkeypatch: pytest.MonkeyPatch, usable: bool, asked: bool, guarded: bool
    ) -> None:
        """The key of the asset depends on it, by the options."""
        made: list[dict[str, str]] = []
        monkeypatch.setattr(hostfacts, "collect", lambda: hostfacts.HostFacts(1, 1024, usable, 0))
        monkeypatch.setattr(packages, "candidates", lambda names, _: [Package(names[0], "6.1.5-1")])
        monkeypatch.setattr(minimal, "_require_tools", lambda: None)
        monkeypatch.setattr(workshop, "make", lambda kind, name, inputs, *_, **__: made.append(inputs))
        for kvm in (asked, True):
            minimal.build_kernel_minimal(Progress(quiet=True), kvm=kvm)
        assert (made[0]["options"] == made[1]["options"]) == guarded

    def test_names_the_missing_packages(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(minimal, "TOOLS", {"sh": "bin/sh", "flex": "nosuch/flex", "bison": "nosuch/bison"})
        monkeypatch.setattr(packages, "candidates", lambda names, _: [Package(names[0], "6.1.5-1")])
        with pytest.raises(HostError, match="these packages are missing: flex, bison") as e:
            minimal.build_kernel_minimal(Progress(quiet=True))
        assert e.value.hint == "apt-get install flex bison"

    def test_an_option_that_kconfig_drops(self) -> None:
        wanted = [options.Option("CONFIG_A", "y", "", "a.config:1"), options.Option("CONFIG_B", "64", "", "a.config:2")]
        minimal._check("CONFIG_A=y\nCONFIG_B=64\n", wanted)
        with pytest.raises(HostError, match=r"a.config:2: CONFIG_B=64 is not taken over: .* has 8"):
            minimal._check("CONFIG_A=y\nCONFIG_B=8\n", wanted)
        with pytest.raises(HostError, match=r"a.config:1: CONFIG_A=y is not taken over: .* has n"):
            minimal._check("CONFIG_B=64\n", wanted)

    def test_progress_counts_files(self) -> None:
        said, log = io.StringIO(), io.StringIO()
        progress = Progress(stream=said)
        progress.log_to(log)
        line = minimal._reporter(progress)
        for n in range(minimal.EVERY):
            line(f"  CC      fs/file{n}.o")
        line("  LD      vmlinux")
        assert f"{minimal.EVERY} files compiled, now fs/file{minimal.EVERY - 1}.o" in said.getvalue()
        assert said.getvalue().count("\n") == 1
        assert "LD      vmlinux" in log.getvalue()


class TestFollow:
    def test_lines_come_one_by_one(self) -> None:
        lines: list[str] = []
        follow(["sh", "-c", "echo one; echo two >&2"], lines.append, timeout=30)
        assert lines == ["one", "two"]

    def test_failure_repeats_the_last_lines(self) -> None:
        with pytest.raises(HostError, match=r"failed with exit code 3: reason"):
            follow(["sh", "-c", "echo reason; exit 3"], lambda _: None, timeout=30)

    def test_timeout_ends_all_that_it_started(self) -> None:
        program = "import subprocess; subprocess.run(['sleep', '600'])"
        with pytest.raises(HostError, match=r"did not end within 0.1 s and was killed"):
            # sleep holds the pipe: this returns only if it is killed, too.
            follow([sys.executable, "-c", program], lambda _: None, timeout=0.1)

    def test_missing_program(self) -> None:
        with pytest.raises(HostError, match="cannot run nosuchprogram"):
            follow(["nosuchprogram"], lambda _: None, timeout=1)
