"""Configuration: the language of Kata 1.x, its errors, drop-ins, annotations and the host's file."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kata import state
from kata.config import Settings, check_assets, document, hostfile, kata1
from kata.contract import RuntimeConfig
from kata.errors import ConfigError, HostError

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "configuration.toml"


def read(file: Path, text: str | None = None) -> RuntimeConfig:
    if text is not None:
        file.write_text(text)
    settings = Settings(kata1.LANGUAGE, kata1.REFUSED_TABLES)
    settings.read([str(file)])
    return settings.config()


def annotate(file: Path, text: str, annotations: dict[str, str], folders: tuple[str, ...] = ()) -> RuntimeConfig:
    file.write_text(text)
    settings = Settings(kata1.LANGUAGE, kata1.REFUSED_TABLES)
    settings.read([str(file)])
    settings.annotate(annotations, kata1.ANNOTATIONS, kata1.ANNOTATION_NAMES, kata1.ANNOTATION_HASHES, folders)
    return settings.config()


def error(file: Path, text: str) -> str:
    with pytest.raises(ConfigError) as e:
        read(file, text)
    return str(e.value).replace(str(file), "FILE")


# --- the shipped files -------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("**/*.toml")), ids=lambda p: p.name)
def test_shipped_file_loads_and_its_comments_show_the_defaults(path: Path, file: Path) -> None:
    text = path.read_text()
    config = read(file, text)
    assert config == RuntimeConfig(sources=(str(file),))
    shown = read(file, re.sub(r"^#(\w+ = )", r"\1", text, flags=re.MULTILINE))
    extra = {k: v for k, v in shown.extra.items() if v}
    assert not extra, "a default that has a note, or is none"
    for field in RuntimeConfig.FIELDS:
        if field != "extra":
            assert getattr(shown, field) == getattr(config, field), field


def test_every_key_with_an_effect_is_in_the_shipped_file() -> None:
    text = (CONFIGS / "configuration.toml").read_text()
    for table, keys in kata1.LANGUAGE.items():
        section = text.partition(f"[{table}]")[2].split("\n[")[0]
        for name, key in keys.items():
            if key.target and not key.note and (not key.refused or name == "shared_fs"):
                assert re.search(rf"^#{name} = ", section, re.MULTILINE), f"[{table}] {name}"


def test_targets_are_fields() -> None:
    for table in kata1.LANGUAGE.values():
        for name, key in table.items():
            assert key.target.startswith("extra.") or not key.target or key.target in RuntimeConfig.FIELDS
            assert key.target or key.note or key.refused, f"{name} is parsed and ignored"


def test_a_file_of_kata_1_loads(file: Path) -> None:
    config = read(file, """
        [hypervisor.qemu]
        path = "/usr/bin/qemu-system-x86_64"
        kernel = "/usr/share/kata-containers/vmlinuz.container"
        initrd = "/usr/share/kata-containers/kata-containers-initrd.img"
        machine_type = "pc"
        kernel_params = "agent.log=debug  a=b"
        firmware = ""
        machine_accelerators=""
        default_vcpus = 1
        default_maxvcpus = 0
        default_bridges = 1
        default_memory = 2048
        disable_block_device_use = false
        shared_fs = "virtio-9p"
        virtio_fs_daemon = "/usr/bin/virtiofsd"
        virtio_fs_cache_size = 1024
        virtio_fs_extra_args = []
        virtio_fs_cache = "always"
        block_device_driver = "virtio-scsi"
        enable_iothreads = false
        pflashes = []
        valid_file_mem_backends = [""]
        valid_hypervisor_paths = ["/usr/bin/qemu*"]
        [factory]
        vm_cache_endpoint = "/var/run/kata-containers/cache.sock"
        [proxy.kata]
        path = "/usr/libexec/kata-containers/kata-proxy"
        [shim.kata]
        path = "/usr/libexec/kata-containers/kata-shim"
        [agent.kata]
        kernel_modules = ["e1000e X=1"]
        [netmon]
        path = "/usr/libexec/kata-containers/kata-netmon"
        [runtime]
        internetworking_model="tcfilter"
        disable_guest_seccomp=true
        experimental=["newstore"]
        """)
    assert config.machine_type == "pc" and config.kernel_params == ("agent.log=debug", "a=b")
    assert config.kernel_modules == ("e1000e X=1",) and config.disable_guest_seccomp
    notes = "\n".join(config.extra["notes"])
    assert config.pool_path == "/var/run/kata-containers/cache.sock"
    for name in ("virtio_fs_daemon", "path"):
        assert f": {name} has no effect" in notes
    assert f"{file}:16: virtio_fs_daemon" in notes


# --- errors --------------------------------------------------------------------------------


def test_unknown_names(file: Path) -> None:
    assert error(file, "[hypervisor.qemu]\n\n# c\ndefault_vcpu = 1\n") == \
        "FILE:4: unknown key 'default_vcpu' in [hypervisor.qemu]: did you mean 'default_vcpus'?"
    assert error(file, "[runtime]\nzzz=1").startswith("FILE:2: unknown key 'zzz' in [runtime]: known are disable_")
    assert error(file, "x = 1\n[hypervisor.qemuu]\n") == "FILE:1: unknown table [x]: known are " + \
        ", ".join(sorted(kata1.LANGUAGE))
    assert error(file, "\n[hypervisor.qemuu]\na=1") == \
        "FILE:2: unknown table [hypervisor.qemuu]: did you mean 'hypervisor.qemu'?"
    assert error(file, "\n\n[hypervisor.clh]\n").startswith("FILE:3: the table [hypervisor.clh] cannot hold here: QEMU")
    assert error(file, "[proxy.cc]\n").startswith("FILE:1: the table [proxy.cc] cannot hold here: it is of Clear")
    assert error(file, "runtime = 5").startswith("FILE:1: runtime is a table")


@pytest.mark.parametrize(("line", "text"), [
    ('path = 5', "FILE:2: path: an absolute path or the name of a program is expected, found 5"),
    ('path = "a/b"', "FILE:2: path: an absolute path or"),
    ('kernel = "vmlinuz"', "FILE:2: kernel: an absolute path"),
    ('default_vcpus = true', "FILE:2: default_vcpus: a whole number"),
    ('default_memory = 2.5', "FILE:2: default_memory: a whole number of at least 64 is expected, found 2.5"),
    ('default_memory = 8', "default_memory"),
    ('default_bridges = 9', "a whole number from 0 to 5"),
    ('machine_type = "microvm"', "machine_type: one of 'q35', 'pc'"),
    ('accelerator = "xen"', "one of 'auto', 'kvm', 'tcg'"),
    ('kernel_params = ["a"]', "kernel_params: a string on one line"),
    ('enable_annotations = ["("]', "an array of regular expressions ('('"),
    ('enable_annotations = "x"', "an array of strings"),
    ('use_vsock = true', "use_vsock = True cannot hold here: the agent's channel is a virtio-serial port"),
    ('shared_fs = "virtio-fs"', "shared_fs = 'virtio-fs' cannot hold here"),
    ('enable_iommu = true', "VFIO"),
    ('memory_offset = 5', "NVDIMM"),
    ('pflashes = ["a"]', "pflashes = ['a'] cannot hold here: firmware is one file"),
    ('kernel_params = "agent.channel_token=1"', "set by the runtime itself"),
    ('machine_accelerators = "accel=kvm"', "use the key accelerator"),
    ('default_vcpus = 9\ndefault_maxvcpus = 3', "FILE:2: default_vcpus (9) exceeds default_maxvcpus (3)"),
    ('image = "/i"\ninitrd = "/j"',
     "FILE:3: having both an image and an initrd defined is not supported: image is set at FILE:2"),
])
def test_wrong_values(file: Path, line: str, text: str) -> None:
    assert text in error(file, f"[hypervisor.qemu]\n{line}\n")


def test_cross_checks(file: Path) -> None:
    assert "needs an initrd" in error(file, '[hypervisor.qemu]\nimage = "/i"\n[factory]\nenable_template = true')
    assert "disable_new_netns = True cannot hold here: each sandbox" in error(
        file, "[runtime]\ndisable_new_netns = true")
    for key in ("enable_template = true", "vm_cache_number = 1"):
        assert f"{key.split()[0]} needs our agent" in error(
            file, f'[agent.kata]\ntransport = "yamux-grpc"\n[factory]\n{key}')


@pytest.mark.parametrize(("data", "text"), [
    (b"[runtime\n", "FILE:1: "),
    (b"[runtime]\nx = \n", "FILE:2: "),
    (b"a = 1\na = 2\n", "FILE:2: "),
    (b"x = '\xff'", "FILE:1: is not UTF-8"),
    (b"x = " + b"[" * 5000, "FILE"),
    (b"#" * (2 << 20), "larger than 1 MiB"),
])
def test_what_is_not_toml(file: Path, data: bytes, text: str) -> None:
    file.write_bytes(data)
    with pytest.raises(ConfigError) as e:
        read(file)
    assert text in str(e.value).replace(str(file), "FILE") and len(str(e.value)) < 300


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=80), st.text("[]={}\"'#.\n \\runtimeabg1", max_size=80).map(str.encode)))
def test_any_bytes_are_settings_or_one_error(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    try:
        read(file)
    except ConfigError as e:
        assert str(e).startswith(str(file))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name, text in (("fifo", "not a regular file"), (".", "not a regular file|is a directory")):
        with pytest.raises(ConfigError, match=text):
            Settings(kata1.LANGUAGE).read([str(tmp_path / name)])
    with pytest.raises(ConfigError, match="Cannot find usable config file"):
        Settings(kata1.LANGUAGE).read([str(tmp_path / "gone")], must_exist=True)


# --- search and drop-ins -------------------------------------------------------------------


def test_first_file_wins_and_drop_ins_follow_in_order(tmp_path: Path) -> None:
    for name, text in (("a/c.toml", "default_vcpus = 2\ndefault_memory = 512"), ("b/c.toml", "default_vcpus = 3"),
                       ("a/config.d/20.toml", "default_memory = 1024"), ("a/config.d/10.toml", "default_memory = 99"),
                       ("a/config.d/.30.toml", "nonsense"), ("a/config.d/40.txt", "nonsense")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"[hypervisor.qemu]\n{text}\n")
    settings = Settings(kata1.LANGUAGE)
    settings.read([str(tmp_path / n) for n in ("gone/c.toml", "a/c.toml", "b/c.toml")])
    config = settings.config()
    assert (config.default_vcpus, config.default_memory) == (2, 1024)
    assert config.sources == tuple(str(tmp_path / "a" / n) for n in ("c.toml", "config.d/10.toml", "config.d/20.toml"))


def test_drop_ins_count_without_a_file(tmp_path: Path) -> None:
    (tmp_path / "config.d").mkdir()
    (tmp_path / "config.d" / "x.toml").write_text("[runtime]\nenable_debug = true\n")
    assert read(tmp_path / "configuration.toml").debug_runtime


def test_an_image_from_a_drop_in_against_an_initrd(tmp_path: Path) -> None:
    (tmp_path / "config.d").mkdir()
    (tmp_path / "config.d" / "x.toml").write_text('[hypervisor.qemu]\nimage = "/i"\ninitrd = ""\n')
    config = read(tmp_path / "c.toml", '[hypervisor.qemu]\ninitrd = "/j"\n')
    assert (config.image, config.initrd) == ("/i", "")


# --- annotations -----------------------------------------------------------------------------

H = "io.katacontainers.config.hypervisor."


def test_annotations_are_gated(file: Path) -> None:
    allow = '[hypervisor.qemu]\nenable_annotations = ["default_.*", "kernel", "kernel_modules"]\n'
    config = annotate(file, allow, {
        f"{H}default_vcpus": "3", f"{H}default_max_vcpus": "4", f"{H}kernel": "/chosen/k", "other": "x",
        "io.katacontainers.config.agent.kernel_modules": "a x=1; b"}, ("/chosen",))
    assert (config.default_vcpus, config.default_maxvcpus, config.kernel) == (3, 4, "/chosen/k")
    assert config.kernel_modules == ("a x=1", "b")
    assert f"annotation {H}kernel" in config.sources
    with pytest.raises(ConfigError, match=f"annotation {H}kernel_params is not enabled"):
        annotate(file, allow, {f"{H}kernel_params": "x"})
    with pytest.raises(ConfigError, match="is not enabled"):
        annotate(file, "", {"io.katacontainers.config.runtime.disable_guest_seccomp": "true"})


@pytest.mark.parametrize(("name", "value", "text"), [
    ("default_vcpuss", "1", "unknown annotation .*did you mean 'default_vcpus'"),
    ("enable_annotations", ".*", "unknown annotation"),
    ("enable_debug", "true", "unknown annotation"),
    ("default_vcpus", "many", "annotation .*default_vcpus: a whole number"),
    ("enable_iommu", "true", "cannot hold here"),
    ("path", "/usr/bin/evil", "is not one of the allowed paths"),
    ("path", "/usr/bin/qemu/../evil", "is not one of the allowed paths"),
    ("kernel", "/etc/shadow", "annotation .*kernel: '/etc/shadow' is not in a folder that containers may choose from"),
    ("initrd", "/etc/shadow", "not in a folder that containers may choose from"),
    ("image", "/dev/sda", "not in a folder that containers may choose from"),
    ("firmware", "/chosen/../etc/shadow", "not in a folder that containers may choose from"),
    ("entropy_source", "/etc/shadow", "annotation .*entropy_source: '/etc/shadow' is no source of random numbers"),
    ("machine_accelerators", "usb=off,initrd=/etc/shadow", "'initrd=/etc/shadow' is no switch of a machine"),
    ("machine_accelerators", "kernel=/etc/shadow", "is no switch of a machine"),
])
def test_wrong_annotations(file: Path, name: str, value: str, text: str) -> None:
    allow = '[hypervisor.qemu]\nenable_annotations = [".*"]\nvalid_hypervisor_paths = ["/usr/bin/qemu*"]\n'
    with pytest.raises(ConfigError, match=text):
        annotate(file, allow, {H + name: value}, ("/chosen",))


def test_annotation_values(file: Path) -> None:
    allow = '[hypervisor.qemu]\nenable_annotations = [".*"]\nvalid_hypervisor_paths = ["/usr/bin/qemu*"]\n'
    config = annotate(file, allow, {
        f"{H}path": "/usr/bin/qemu-x", f"{H}enable_swap": "True", f"{H}kernel_params": "a b",
        f"{H}enable_mem_prealloc": "0", f"{H}machine_type": "pc", f"{H}entropy_source": "/dev/random",
        f"{H}machine_accelerators": "usb=off,kernel_irqchip=split", f"{H}firmware": ""})
    assert (config.entropy_source, config.machine_accelerators) == ("/dev/random", "usb=off,kernel_irqchip=split")
    assert (config.qemu_path, config.enable_swap, config.kernel_params) == ("/usr/bin/qemu-x", True, ("a", "b"))


def test_hashes_of_assets(file: Path, tmp_path: Path) -> None:
    (tmp_path / "k").write_bytes(b"kernel")
    text = f'[hypervisor.qemu]\nenable_annotations = [".*"]\nkernel = "{tmp_path}/k"\n'
    good = hashlib.sha512(b"kernel").hexdigest()
    check_assets(annotate(file, text, {f"{H}kernel_hash": good}), "")
    with pytest.raises(ConfigError, match="has not the SHA-512"):
        check_assets(annotate(file, text, {f"{H}kernel_hash": "0" * 128}), "")
    with pytest.raises(ConfigError, match="whose path is not configured"):
        check_assets(annotate(file, text, {f"{H}image_hash": good}), "")


def test_assets_have_to_exist(tmp_path: Path) -> None:
    for field in ("kernel", "image", "initrd", "firmware"):
        for path, why in ((str(tmp_path / "gone"), "there is no such file"), (str(tmp_path), "not a regular file")):
            with pytest.raises(ConfigError, match=f"{field} = .*{why}: set in FILE"):
                check_assets(RuntimeConfig(**{field: path}, sources=("FILE",)), "")


def test_initrd_has_to_fit(tmp_path: Path) -> None:
    with open(tmp_path / "i", "wb") as f:
        f.truncate(64 << 20)
    with pytest.raises(ConfigError, match="does not fit into default_memory"):
        check_assets(RuntimeConfig(default_memory=64), str(tmp_path / "i"))
    check_assets(RuntimeConfig(default_memory=65), str(tmp_path / "i"))
    with pytest.raises(ConfigError, match="no such file"):
        check_assets(RuntimeConfig(), str(tmp_path / "gone"))


# --- the rest ----------------------------------------------------------------------------------


def test_lines_of_keys(file: Path) -> None:
    file.write_text('a.b = 1\n[t."u"] # c\nk = """\nz = 5\n"""\n"q" = 2\n')
    doc = document.read(str(file))
    assert doc.place("a", "b").endswith(":1") and doc.place("t.u").endswith(":2")
    assert doc.place("t.u", "k").endswith(":3") and doc.place("t.u", "q").endswith(":6")
    assert doc.place("none", "x") == str(file)


def test_debug_of_one_component_by_two_keys(file: Path) -> None:
    assert "the proxy writes its log" in read(file, "[proxy.kata]\nenable_debug = true\n").extra["notes"][0]
    assert read(file, "[proxy.kata]\nenable_debug = true\n[netmon]\nenable_debug = false\n").debug_proxy


def test_options_win(file: Path) -> None:
    file.write_text("[hypervisor.qemu]\ndefault_vcpus = 2\n")
    settings = Settings(kata1.LANGUAGE)
    settings.read([str(file)])
    settings.set("default_vcpus", 4, "--default_cpus")
    config = settings.config()
    assert config.default_vcpus == 4 and config.sources[-1] == "--default_cpus"


@pytest.mark.parametrize(("text", "result"), [
    ("", ({}, {})),
    ('[runtime]\ndefault_flavor = "clear"\n', ({"default_flavor": "clear"}, {"default_flavor": ":2"})),
    ("[roadmap]\nphase = 3\n", ({"phase": 3}, {"phase": ":2"})),
    ("[roadmap]\nphase = 4\n", "phase"),
    ("[runtime]\ndefault_flavour = 1\n", "did you mean 'default_flavor'"),
])
def test_host_file(file: Path, text: str, result: Any) -> None:
    file.write_text(text)
    if isinstance(result, str):
        with pytest.raises(ConfigError, match=result):
            hostfile.read(str(file))
        return
    values, places = hostfile.read(str(file))
    assert (values, {key: place.removeprefix(str(file)) for key, place in places.items()}) == result


def test_host_file_that_is_a_broken_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("gone")
    with pytest.raises(ConfigError, match="a link to a file that is missing"):
        hostfile.read(str(tmp_path / "link"))


def test_the_hosts_file_keeps_what_is_not_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comments, line ends, mode and owner; a new one is as the caller's umask makes it."""
    owners = []
    monkeypatch.setattr(os, "fchown", lambda _fd, *ids: owners.append(ids))
    path = tmp_path / "host.toml"
    path.write_bytes(b"# ours\r\n[runtime]\r\ndefault_flavor = 'clear'\r\n")
    path.chmod(0o640)
    hostfile.write(str(path), {("runtime", "default_flavor"): "unified"})
    assert path.read_bytes() == b'# ours\r\n[runtime]\r\ndefault_flavor = "unified"\r\n'
    assert path.stat().st_mode & 0o7777 == 0o640 and owners == [(path.stat().st_uid, path.stat().st_gid)]
    before = os.umask(0o027)
    try:
        hostfile.write(str(tmp_path / "new.toml"), {("runtime", "default_flavor"): "unified"})
    finally:
        os.umask(before)
    assert (tmp_path / "new.toml").stat().st_mode & 0o7777 == 0o640



def test_what_a_file_said_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "RUN_DIR", str(tmp_path / "run"))
    asked: list[str] = []
    parse = document.parse
    monkeypatch.setattr(document, "parse", lambda text, path: asked.append(text) or parse(text, path))
    path = tmp_path / "configuration.toml"

    def read() -> document.Document:
        return document.read(str(path))

    path.write_text('[a.b]\nc = ["x"]\n')
    first = read()
    assert (read(), len(asked)) == (first, 1)
    assert first.place("a.b", "c") == read().place("a.b", "c") == f"{path}:2"
    path.write_text('[a.b]\nc = ["y"]\n')  # as long, and as old as the clock can tell
    assert read().data == {"a": {"b": {"c": ["y"]}}} and len(asked) == 2
    for kept in (tmp_path / "run" / "parsed").iterdir():
        kept.write_text("{")
    assert read().data == {"a": {"b": {"c": ["y"]}}} and len(asked) == 3
    path.write_text("a = 1979-05-27\n")
    assert read() == read() and len(asked) == 5
    for n in range(2 * document.MOST_KEPT):
        (tmp_path / f"{n}.toml").write_text("")
        document.read(str(tmp_path / f"{n}.toml"))
    assert len(list((tmp_path / "run" / "parsed").iterdir())) <= document.MOST_KEPT


def test_two_who_set_a_key_of_the_hosts_file_lose_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes second waits for the first, which may not end."""
    path = str(tmp_path / "host.toml")
    hostfile.write(path, {("runtime", "default_flavor"): "clear"})
    monkeypatch.setattr(hostfile, "LOCK_TIMEOUT", 0.05)
    with state.locked(str(tmp_path)), pytest.raises(HostError, match="another process has held the lock"):
        hostfile.write(path, {("roadmap", "phase"): 2})
    hostfile.write(path, {("roadmap", "phase"): 2})
    assert hostfile.read(path)[0] == {"default_flavor": "clear", "phase": 2}
