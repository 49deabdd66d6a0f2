"""What is built, what is selected, and that a build is all or nothing."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from kata.assets import guest, packages, store, workshop
from kata.assets.progress import Progress
from kata.errors import ConfigError, HostError, NotFound


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KATA_ASSETS_DIR", str(tmp_path / "assets"))
    monkeypatch.setenv("KATA_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "assets"


@pytest.fixture
def progress() -> Progress:
    return Progress(stream=io.StringIO())


def make(kind: str, name: str, progress: Progress, **inputs: str) -> store.Asset:
    def fill(target: Path, scratch: Path) -> Mapping[str, str]:
        (target / "file").write_text(name)
        return {kind: "file"}

    return workshop.make(kind, name, inputs, fill, progress)


class TestStore:
    def test_nothing_yet(self) -> None:
        assert store.list_assets() == []
        assert store.selected_path("kernel") == ""
        assert store.selected("kernel") is None

    def test_select_is_a_relative_link(self, root: Path, progress: Progress) -> None:
        asset = make("kernel", "k", progress)
        store.select(asset)
        assert os.readlink(root / "selected/kernel") == f"../{asset.id}/file"
        assert store.selected_path("kernel") == f"{root}/{asset.id}/file"
        assert store.selected("kernel") == asset
        assert os.listdir(root / "selected") == ["kernel"]

    def test_dangling_selection_is_none(self, root: Path) -> None:
        store.switch("kernel", "../gone/vmlinux")
        assert store.selected_path("kernel") == ""

    def test_find(self, progress: Progress) -> None:
        one, two = (make("kernel", n, progress, version=n) for n in "12")
        assert store.find(["kernel"], one.id) == one
        assert store.find(["initrd", "kernel"], two.id[:12]) == two
        with pytest.raises(NotFound, match="there is no initrd"):
            store.find(["initrd"], one.id)
        with pytest.raises(NotFound, match="more than one kernel"):
            store.find(["kernel"], "")

    def test_unknown_kind_names_the_known(self) -> None:
        with pytest.raises(ConfigError, match=r"unknown kind of asset disk: known: kernel, initrd, image, boot-initrd"):
            store.selected_path("disk")

    def test_images_go_with_their_kernel(self, progress: Progress) -> None:
        old, new = (make("kernel", n, progress, version=n) for n in ("old", "new"))
        initrd_old, initrd_new = (make("initrd", f"i-{k.name}", progress, kernel=k.id) for k in (old, new))
        store.select(old)
        assert store.selected("initrd") == initrd_old
        with pytest.raises(ConfigError, match=f"is for kernel {new.id}") as e:
            store.select(initrd_new)
        assert e.value.hint == f"kata kernel select {new.id}"
        store.select(new)
        assert store.selected("initrd") == initrd_new

    def test_a_kernel_without_images_is_not_selected(self, progress: Progress) -> None:
        kernel = make("kernel", "k", progress)
        make("initrd", "i", progress, kernel=kernel.id)
        store.select(kernel)
        with pytest.raises(ConfigError, match="no initrd is made for"):
            store.select(make("kernel", "other", progress, version="2"))
        assert store.selected("kernel") == kernel

    def test_verify(self, progress: Progress) -> None:
        asset = make("kernel", "k", progress)
        store.verify(asset)
        path = Path(asset.path) / "file"
        path.write_text("else")
        with pytest.raises(HostError, match="is not what was built"):
            store.verify(asset)
        path.unlink()
        with pytest.raises(HostError, match="cannot read"):
            store.verify(asset)

    @pytest.mark.parametrize(
        ("text", "says"),
        [("{", "is damaged"), ("[]", "has version None"), ('{"version": 99}', "has version 99"),
         ('{"version": 1}', "lacks 'kind'")],
    )  # fmt: skip
    def test_manifest_that_cannot_be_read(self, text: str, says: str, progress: Progress) -> None:
        asset = make("kernel", "k", progress)
        (Path(asset.path) / "manifest.json").write_text(text)
        with pytest.raises(HostError, match=says):
            store.load(asset.id)

    def test_import_is_light(self) -> None:
        program = (
            "import sys; import kata.assets.store;"
            "print([m for m in ('subprocess', 'asyncio', 'threading', 'logging', 'typing_extensions', 'pathlib')"
            " if m in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, check=True,
                              env={"PYTHONPATH": str(Path(__file__).parents[2])})  # fmt: skip
        assert done.stdout.strip() == "[]"


class TestWorkshop:
    def test_same_inputs_are_built_once(self, progress: Progress) -> None:
        one = make("kernel", "k", progress, version="1")
        before = os.stat(one.path)
        assert make("kernel", "k", progress, version="1") == one
        assert os.stat(one.path).st_ino == before.st_ino
        assert make("kernel", "k", progress, version="2").id != one.id

    def test_manifest(self, progress: Progress) -> None:
        asset = make("kernel", "k", progress, version="1")
        manifest = json.loads((Path(asset.path) / "manifest.json").read_text())
        assert manifest["inputs"]["version"] == "1"
        assert manifest["sizes"] == {"file": 1}
        assert (Path(asset.path) / "build.log").read_text().startswith("[")

    def test_code_of_the_builder_is_an_input(self, progress: Progress, monkeypatch: pytest.MonkeyPatch) -> None:
        one = make("kernel", "k", progress)
        monkeypatch.setitem(workshop.BUILDERS, "kernel", ("kernel.py",))
        assert make("kernel", "k", progress).id != one.id

    def test_force_replaces(self, progress: Progress) -> None:
        one = make("kernel", "k", progress)

        def fill(target: Path, scratch: Path) -> Mapping[str, str]:
            (target / "file").write_text("again")
            return {"kernel": "file"}

        two = workshop.make("kernel", "k", {}, fill, progress, force=True)
        assert two.id == one.id
        assert (Path(two.path) / "file").read_text() == "again"

    @pytest.mark.parametrize("error", [HostError("no"), OSError(28, "No space left on device"), KeyboardInterrupt()])
    def test_a_failed_build_leaves_nothing(self, error: BaseException, root: Path, progress: Progress) -> None:
        def fill(target: Path, scratch: Path) -> Mapping[str, str]:
            (target / "half").write_text("x")
            raise error

        root.mkdir()
        wanted = HostError if isinstance(error, OSError) else type(error)
        with pytest.raises(wanted):
            workshop.make("kernel", "k", {}, fill, progress)
        assert os.listdir(root) == []

    def test_what_a_killed_build_left_is_removed(self, root: Path, progress: Progress) -> None:
        (root / ".building-0123/asset").mkdir(parents=True)
        with workshop.locked(progress):
            assert os.listdir(root) == ["lock"]

    def test_two_builds_at_once_make_one(self, progress: Progress) -> None:
        began, count = threading.Event(), []

        def fill(target: Path, scratch: Path) -> Mapping[str, str]:
            count.append(1)
            began.set()
            (target / "file").write_text("x")
            return {"kernel": "file"}

        def build() -> None:
            with workshop.locked(Progress(stream=io.StringIO())):
                workshop.make("kernel", "k", {}, fill, Progress(stream=io.StringIO()))

        with workshop.locked(progress):
            others = [threading.Thread(target=build) for _ in range(2)]
            for thread in others:
                thread.start()
            assert not began.wait(0.1)
        for thread in others:
            thread.join(10)
        assert len(count) == 1

    def test_a_build_that_does_not_end(self, progress: Progress, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(workshop, "LOCK_TIMEOUT", 0.05)
        with workshop.locked(progress):
            with pytest.raises(HostError, match=f"waited 0.05 s for the build of pid {os.getpid()}"):
                with workshop.locked(progress):
                    pass

    def test_prune_keeps_what_is_used(self, progress: Progress) -> None:
        first = make("kernel", "k", progress, version="first")
        store.select(first)
        others = [make("kernel", "k", progress, version=str(i)) for i in range(workshop.KEPT + 2)]
        workshop.prune()
        left = {a.id for a in store.list_assets("kernel")}
        assert first.id in left
        assert len(left) == workshop.KEPT + 1
        assert others[-1].id in left

    def test_prune_keeps_what_a_configuration_names(self, root: Path, tmp_path: Path, progress: Progress) -> None:
        """By its path or by a link to it; in a file of a flavor's, in an engine's options, or in a file these name."""
        made = [make("kernel", "k", progress, version=str(i)) for i in range(workshop.KEPT + 6)]
        link = tmp_path / "vmlinuz"
        link.symlink_to(f"{made[1].path}/file")
        (tmp_path / "flavor.toml").write_text(f'kernel = "{made[0].path}/file" # "{link}"\n')
        (tmp_path / "other.toml").write_text(f"initrd = '{root}/x/../{made[2].id}/file'\n")
        (tmp_path / "daemon.json").write_text(json.dumps({"runtimes": {"runv": {"runtimeArgs": [
            f"--kernel={made[3].path}/file", "--kata-config", f"{tmp_path}/other.toml"]}}}))
        for name in ("fifo.toml", "large.toml"):
            os.mkfifo(tmp_path / name) if "fifo" in name else (tmp_path / name).write_bytes(bytes(2 << 20))
        workshop.prune([*map(str, tmp_path.glob("*.[tj]*")), "/proc/self/mem"])  # whose reading fails for anybody
        left = [a.id for a in store.list_assets("kernel")]
        assert [a.id in left for a in made] == [True] * 4 + [False, False] + [True] * workshop.KEPT

    def test_prune_keeps_a_kernel_that_took_long(self, progress: Progress) -> None:
        minimal = make("kernel", "m", progress, variant="minimal")
        for i in range(workshop.KEPT + 2):
            make("kernel", "k", progress, version=str(i))
        workshop.prune()
        assert minimal in store.list_assets("kernel")

    def test_unwritable_root(self, root: Path, progress: Progress) -> None:
        root.parent.mkdir(exist_ok=True)
        root.write_text("a file")
        with pytest.raises(HostError, match="cannot write to"):
            with workshop.locked(progress):
                pass


class TestPackages:
    ANSWER = (
        "libc6:\n  Installed: (none)\n  Candidate: 2.36-9\n  Version table:\n     2.36-9 500\n"
        "zlib1g:amd64:\n  Installed: 1\n  Candidate: 1:1.2\n"
        "gone:\n  Candidate: (none)\n"
    )

    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        asked: list[str] = []
        answers = {"policy": self.ANSWER, "show": "Depends: a (>= 1), linux-image-6.1.0-5-amd64 (= 6.1.5-1)\n"}

        def run(argv: list[str], **_: object) -> object:
            asked.append(" ".join(argv))
            text = answers.get(argv[1], "")
            return type("Completed", (), {"text": text})

        monkeypatch.setattr(packages, "run", run)
        return asked

    def test_candidates(self, asked: list[str], progress: Progress) -> None:
        found = packages.candidates(["libc6", "zlib1g"], progress)
        assert [str(p) for p in found] == ["libc6 2.36-9", "zlib1g 1:1.2"]

    def test_unknown_after_an_update(self, asked: list[str], progress: Progress) -> None:
        with pytest.raises(HostError, match="apt knows no package gone"):
            packages.candidates(["libc6", "gone"], progress)
        assert any(a.startswith("apt-get") and a.endswith("update") for a in asked)

    def test_asked_once_for_a_state_of_the_index(
        self, asked: list[str], progress: Progress, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(packages, "_index_state", lambda: "one")
        packages.candidates(["libc6"], progress)
        packages.candidates(["libc6"], progress)
        assert len(asked) == 1
        monkeypatch.setattr(packages, "_index_state", lambda: "two")
        packages.candidates(["libc6"], progress)
        assert len(asked) == 2

    def test_dependency(self, asked: list[str]) -> None:
        meta = packages.Package("linux-image-amd64", "6")
        found = packages.dependency(meta, r"linux-image-[0-9].*-amd64")
        assert found == ("linux-image-6.1.0-5-amd64", "6.1.5-1")
        with pytest.raises(HostError, match="depends on no package like"):
            packages.dependency(meta, "nothing")


class TestGuest:
    def test_sources_hash_sees_names_and_contents(self, tmp_path: Path) -> None:
        (tmp_path / "a.py").write_text("1")
        one = guest.sources_hash(tmp_path)
        (tmp_path / "__pycache__").mkdir()
        (tmp_path / "__pycache__/a.py").write_text("2")
        assert guest.sources_hash(tmp_path) == one
        (tmp_path / "a.py").write_text("2")
        two = guest.sources_hash(tmp_path)
        (tmp_path / "a.py").rename(tmp_path / "b.py")
        assert len({one, two, guest.sources_hash(tmp_path)}) == 3

    def test_the_agent_is_found_without_importing_it(self) -> None:
        assert (guest.agent_sources() / "__main__.py").exists()
