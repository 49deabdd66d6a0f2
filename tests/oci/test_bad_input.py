"""Bad input: one clear error, exit code 1, within seconds, nothing left behind."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.bundle import Bundle
from harness.oci import Oci
from harness.proc import Result, run

#: Seconds within which bad input must be refused when no machine has to start for it.
SECONDS = 10.0

#: Cases that only the guest's kernel can judge.
IN_THE_GUEST = ("mount option unknown",)


def refused(oci: Oci, bundle: Bundle, *needles: str, text: str | None = None, seconds: float = SECONDS) -> Result:
    """create must refuse this bundle; the error names ``needles``; nothing is left."""
    bundle.write()
    if text is not None:
        (bundle.path / "config.json").write_text(text)
    container_id = oci.new_id()
    with oci.container(bundle, container_id) as c:
        if text is not None:
            (bundle.path / "config.json").write_text(text)
        result = c.launch_verb("create", timeout=60)
        assert result.rc != 0, f"bad input was accepted\n{result}"
        if oci.runtime.is_vm:
            assert result.rc == 1, result
            assert result.seconds < seconds, f"refused only after {result.seconds:.1f} s\n{result}"
            lines = [line for line in result.stderr.splitlines() if line.strip()]
            assert 1 <= len(lines) <= 3, f"one clear error is expected\n{result}"
            assert "Traceback" not in result.stderr and "Error(" not in result.stderr, result
            missing = [n for n in needles if n.lower() not in result.stderr.lower()]
            assert not missing, f"the error does not name {missing}\n{result}"
        oci.verb("state", container_id).fails(1)
        c.assert_gone()
    return result


def deep(levels: int) -> str:
    return '{"ociVersion": "1.0.2", "x": ' + "[" * levels + "]" * levels + "}"


TEXTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "empty": ("", ("config.json",)),
    "no JSON": ("process: {}\n", ("config.json",)),
    "half of it": ('{"ociVersion": "1.0.2", "process": {', ("config.json",)),
    "a list": ("[]", ("config.json",)),
    "a string": ('"hello"', ("config.json",)),
    "null": ("null", ("config.json",)),
    "binary": ("\x00\x01\x02\x7f" * 10, ("config.json",)),
    "deep": (deep(100_000), ("config.json",)),
    "nothing in it": ("{}", ("config.json",)),
}


@pytest.mark.parametrize("name", TEXTS)
def test_text_that_is_no_configuration(oci: Oci, name: str) -> None:
    text, needles = TEXTS[name]
    refused(oci, oci.bundle(), *needles, text=text)


def test_missing_configuration(oci: Oci) -> None:
    """No config.json, no bundle, a bundle that is a file, a config.json that is a folder or leads nowhere."""
    bundle = oci.bundle().write()
    config = bundle.path / "config.json"
    config.unlink()
    cases: list[tuple[str, str]] = [(str(bundle.path), "config.json"), ("/nonexistent", "/nonexistent")]
    plain = oci.work_dir / "plain"
    plain.write_text("")
    cases.append((str(plain), str(plain)))
    for path, needle in cases:
        result = oci.verb("create", "--bundle", path, oci.new_id(), timeout=15).fails(1)
        assert needle in result.stderr, result
    config.mkdir()
    assert "config.json" in oci.verb("create", "--bundle", str(bundle.path), oci.new_id(), timeout=15).fails(1).stderr
    config.rmdir()
    config.symlink_to("/nowhere/at/all")
    assert "config.json" in oci.verb("create", "--bundle", str(bundle.path), oci.new_id(), timeout=15).fails(1).stderr
    if oci.runtime.is_vm:
        config.unlink()
        os.mkfifo(config)  # must not wait for a writer
        assert (
            "config.json" in oci.verb("create", "--bundle", str(bundle.path), oci.new_id(), timeout=15).fails(1).stderr
        )


#: name: (changes, what the error names, whether runc refuses it too)
WRONG: dict[str, tuple[dict[str, Any], tuple[str, ...], bool]] = {
    "args is a string": ({"process": {"args": "sh"}}, ("process.args",), True),
    "args is empty": ({"process": {"args": []}}, ("process.args",), True),
    "args holds a number": ({"process": {"args": ["sh", 5]}}, ("process.args",), True),
    "argument with NUL": ({"process": {"args": ["sh", "a\0b"]}}, ("process.args",), False),
    "env is an object": ({"process": {"env": {"A": "b"}}}, ("process.env",), True),
    "env without =": ({"process": {"env": ["NOEQUALS"]}}, ("process.env",), False),
    "cwd is relative": ({"process": {"cwd": "tmp"}}, ("process.cwd",), True),
    "cwd is empty": ({"process": {"cwd": ""}}, ("process.cwd",), True),
    "uid is a string": ({"process": {"user": {"uid": "root"}}}, ("process.user.uid",), True),
    "uid is negative": ({"process": {"user": {"uid": -1}}}, ("process.user.uid",), True),
    "uid is 2**40": ({"process": {"user": {"uid": 1 << 40}}}, ("process.user.uid",), True),
    "unknown capability": ({"process": {"capabilities": {"bounding": ["CAP_FLY"]}}}, ("CAP_FLY",), False),
    "unknown rlimit": ({"process": {"rlimits": [{"type": "RLIMIT_X", "hard": 1, "soft": 1}]}}, ("RLIMIT_X",), True),
    "rlimit twice": (
        {"process": {"rlimits": [{"type": "RLIMIT_NOFILE", "hard": 9, "soft": 9}] * 2}}, ("RLIMIT_NOFILE",), False,
    ),
    "oomScoreAdj 5000": ({"process": {"oomScoreAdj": 5000}}, ("oomScoreAdj",), True),
    "root is missing": ({"root": None}, ("root",), True),
    "root is absent": ({"root": {"path": "nosuch"}}, ("nosuch",), True),
    "root is a file": ({"root": {"path": "config.json"}}, ("config.json",), True),
    "root path is empty": ({"root": {"path": ""}}, ("root.path",), False),
    "mounts is an object": ({"mounts": {}}, ("mounts",), True),
    "mount without destination": ({"mounts": [{"type": "tmpfs", "source": "x"}]}, ("destination",), True),
    "mount of nothing": (
        {"mounts": [{"destination": "/m", "type": "bind", "source": "/no/such", "options": ["bind"]}]},
        ("/no/such",), True,
    ),
    "mount of unknown type": (
        {"mounts": [{"destination": "/m", "type": "nosuchfs", "source": "x"}]}, ("nosuchfs",), True,
    ),
    "mount option unknown": (
        {"mounts": [{"destination": "/m", "type": "tmpfs", "source": "x", "options": ["bogus=1"]}]}, ("/m",), True,
    ),
    "unknown namespace": ({"linux": {"namespaces": [{"type": "dream"}]}}, ("dream",), True),
    "namespace twice": ({"linux": {"namespaces": [{"type": "pid"}, {"type": "pid"}]}}, ("pid",), True),
    "unknown seccomp action": ({"linux": {"seccomp": {"defaultAction": "SCMP_ACT_X"}}}, ("SCMP_ACT_X",), True),
    "unknown seccomp architecture": (
        {"linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_Z"]}}},
        ("SCMP_ARCH_Z",), True,
    ),
    "device without type": ({"linux": {"devices": [{"path": "/dev/x", "major": 1, "minor": 3}]}}, ("/dev/x",), True),
    "device of unknown type": ({"linux": {"devices": [{"path": "/dev/x", "type": "q"}]}}, ("/dev/x",), True),
    "unknown propagation": ({"linux": {"rootfsPropagation": "sideways"}}, ("sideways",), True),
    "wrong spec version": ({"ociVersion": "9.9.9"}, ("9.9.9",), False),
    "spec version is a number": ({"ociVersion": 1}, ("ociVersion",), True),
    "hostname is a list": ({"hostname": ["a"]}, ("hostname",), True),
    "hostname too long": ({"hostname": "h" * 300}, ("hostname",), True),
    "hooks is a list": ({"hooks": []}, ("hooks",), True),
    "annotations is a list": ({"annotations": ["x"]}, ("annotations",), True),
    "memory limit negative": ({"linux": {"resources": {"memory": {"limit": -7}}}}, ("memory",), False),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_value(oci: Oci, name: str) -> None:
    """A wrong type or value is refused; the error names the place or the value."""
    changes, needles, control_too = WRONG[name]
    if not (control_too or oci.runtime.is_vm):
        pytest.skip(f"control {oci.runtime.name}: takes it")
    seconds = 60 if name in IN_THE_GUEST else SECONDS
    refused(oci, oci.bundle().merge(copy.deepcopy(changes)), *needles, seconds=seconds)


@pytest.mark.control_cannot("runc skips it without a word")
def test_unknown_syscall(oci: Oci) -> None:
    """A call that the filter cannot refuse, because no library knows it, is not silently allowed."""
    bundle = oci.bundle()
    bundle.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["from_the_future"], "action": "SCMP_ACT_ERRNO"}],
    }  # fmt: skip
    refused(oci, bundle, "from_the_future")


def test_large_configuration(oci: Oci) -> None:
    """10 MB of annotations: refused within seconds, or run; never a crash or a hang."""
    bundle = oci.bundle("echo ran")
    bundle.config["annotations"] = {f"org.example.{i}": "x" * 1000 for i in range(10_000)}
    with oci.container(bundle) as c:
        result = c.launch_verb("create")
        assert "Traceback" not in result.stderr
        if result.rc == 0:
            assert c.finish()[:2] == (0, "ran\n")
        else:
            assert result.rc == 1 and result.seconds < SECONDS and "config.json" in result.stderr, result


def test_paths_stay_in_the_root(oci: Oci) -> None:
    """`..` and links in a container's paths lead nowhere outside its root file system."""
    outside = oci.work_dir / "outside"
    outside.mkdir(exist_ok=True)
    bundle = oci.bundle("ls /; ls /etc/linked; cat /inside/file")
    (bundle.rootfs / "etc/linked").symlink_to(outside)
    (bundle.rootfs / "dots").symlink_to("../../../../../..")
    source = oci.work_dir / "source"
    source.mkdir(exist_ok=True)
    (source / "file").write_text("volume\n")
    bundle.bind(source, "/../../../inside").bind(source, "/etc/linked/deep").bind(source, f"/dots{outside}/dots")
    bundle.tmpfs("/../../tmpfs-here")
    bundle.linux["maskedPaths"] += ["/../../../etc/group"]
    result = oci.run(bundle, timeout=60)
    assert sorted(os.listdir(outside)) == [], "a mount point was made outside the root"
    assert not Path("/inside").exists() and not Path("/tmpfs-here").exists()
    if result.rc == 0:
        assert "volume" in result.stdout, result
    else:
        assert result.rc == 1 and result.stderr.strip(), result
    assert os.stat("/etc/group").st_size > 0


@pytest.mark.vm_only
def test_duplicate_mounts(oci: Oci) -> None:
    """Two mounts at one place: the later one covers the earlier, as the kernel does it."""
    one, two = oci.work_dir / "one", oci.work_dir / "two"
    for path in (one, two):
        path.mkdir(exist_ok=True)
        (path / "name").write_text(path.name)
    bundle = oci.bundle("cat /m/name").bind(one, "/m").bind(two, "/m")
    assert oci.run(bundle).ok().out == "two"


@pytest.mark.parametrize("id", ["", "a/b", "..", ".", "../../x", "a b", "x" * 1100, "ü", "a\nb", "%s%n"])
def test_invalid_id(oci: Oci, id: str) -> None:
    """Ids that could name another place are refused, before anything is made."""
    if id == "." and not oci.runtime.is_vm:
        pytest.skip(f"control {oci.runtime.name}: takes it")
    bundle = oci.bundle().write()
    before = sorted(os.listdir(oci.root)) if oci.root.exists() else []
    for verb in (["create", "--bundle", str(bundle.path)], ["state"], ["delete"], ["kill"]):
        result = oci.verb(*verb, id, timeout=15).fails(1)
        assert result.stderr.strip() and "Traceback" not in result.stderr, result
    assert (sorted(os.listdir(oci.root)) if oci.root.exists() else []) == before


def test_used_id(oci: Oci) -> None:
    """A used id is refused and its container is not disturbed; also for a container that has stopped."""
    with oci.running(oci.bundle()) as c:
        other = oci.bundle().write()
        for verb in ("create", "run"):
            oci.verb(verb, "--bundle", str(other.path), c.id, timeout=15).fails(1)
        assert c.sh("echo fine").ok().out == "fine"
        c.kill("KILL").ok()
        c.wait()
        oci.verb("create", "--bundle", str(other.path), c.id, timeout=15).fails(1)
        assert c.status == "stopped"


def test_full_disk(oci: Oci) -> None:
    """A state folder without room: an error that says so, and no container."""
    place = oci.run_dir / "full"
    place.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=16k,nr_inodes=4", "full", str(place)).ok()
    try:
        for name in ("a", "b", "c"):
            try:
                (place / name).write_bytes(b"x" * 8192)
            except OSError:
                break
        bundle = oci.bundle().write()
        result = oci.verb("--root", str(place), "create", "--bundle", str(bundle.path), oci.new_id(), timeout=30).fails(
            1
        )
        assert "no space left" in result.stderr.lower(), result
    finally:
        run("umount", str(place)).ok()
        place.rmdir()


def configured(oci: Oci, change: Callable[[Path], str], *needles: str, seconds: float) -> Result:
    """create with a configuration of its own must fail within ``seconds`` and name ``needles``."""
    folder = oci.work_dir / f"config{oci.new_id()}"
    folder.mkdir()
    config = folder / "configuration.toml"
    config.write_text(change(folder))
    bundle = oci.bundle()
    with oci.container(bundle) as c:
        result = c.launch_verb("create", globals=["--kata-config", str(config)], timeout=seconds + 30).fails(1)
        assert result.seconds < seconds, f"failed only after {result.seconds:.1f} s\n{result}"
        assert "Traceback" not in result.stderr, result
        missing = [n for n in needles if n.lower() not in result.stderr.lower()]
        assert not missing, f"the error does not name {missing}\n{result}"
        oci.verb("state", c.id).fails(1)
        c.assert_gone()
    return result


@pytest.mark.vm_only
def test_machine_that_cannot_be(oci: Oci) -> None:
    """No QEMU, no kernel, no image: found before anything is started; unknown keys named with the nearest."""
    configured(oci, lambda _: '[hypervisor.qemu]\npath = "/nosuch/qemu"\n', "/nosuch/qemu", seconds=SECONDS)
    configured(oci, lambda _: '[hypervisor.qemu]\nkernel = "/nosuch/kernel"\n', "/nosuch/kernel", seconds=SECONDS)
    configured(oci, lambda _: '[hypervisor.qemu]\nimage = "/nosuch/image"\n', "/nosuch/image", seconds=SECONDS)
    configured(oci, lambda _: '[hypervisor.qemu]\nmachine_type = "toaster"\n', "toaster", seconds=SECONDS)
    configured(oci, lambda _: "[hypervisor.qemu]\ndefault_vcpu = 2\n", "default_vcpus", "2", seconds=SECONDS)
    configured(oci, lambda _: '[hypervisor.qemu]\ndefault_vcpus = "two"\n', "default_vcpus", seconds=SECONDS)
    configured(oci, lambda _: "[hypervisor.qemu\n", "configuration.toml", seconds=SECONDS)


@pytest.mark.vm_only
def test_kernel_that_is_none(oci: Oci) -> None:
    """A file that is no kernel: QEMU's own words are in the error."""

    def change(folder: Path) -> str:
        (folder / "kernel").write_bytes(os.urandom(1 << 20))
        return f'[hypervisor.qemu]\nkernel = "{folder}/kernel"\n[agent.kata]\nboot_timeout = 20\n'

    configured(oci, change, "kernel", seconds=45)


@pytest.mark.vm_only
def test_guest_that_never_answers(oci: Oci) -> None:
    """A guest without an agent: within the configured timeout, with the last lines of its console."""

    def change(folder: Path) -> str:
        (folder / "initrd").write_bytes(b"no archive at all")
        return f'[hypervisor.qemu]\ninitrd = "{folder}/initrd"\n[agent.kata]\nboot_timeout = 25\n'

    result = configured(oci, change, "agent", seconds=60)
    assert "panic" in result.stderr.lower() or "console" in result.stderr.lower(), result


def test_bundle_with_a_strange_name(oci: Oci) -> None:
    """Spaces, quotes, commas and colons in paths are paths (QEMU's options split at commas)."""
    plain = oci.bundle("cat /v/f; cat '/v 2/f'; echo end")
    strange = plain.path.with_name("b, 'c' \"d\":e=f%20;g\\h")
    os.rename(plain.path, strange)
    plain.path = strange
    plain.rootfs = strange / "rootfs"
    volume = oci.work_dir / "v,id=x:y"
    volume.mkdir(exist_ok=True)
    (volume / "f").write_text("volume\n")
    plain.bind(volume, "/v").bind(volume, "/v 2")
    assert oci.run(plain).ok().stdout == "volume\nvolume\nend\n"


def test_json_is_json(oci: Oci) -> None:
    """Unknown properties are ignored (config.md, Extensibility); duplicate keys take the last."""
    bundle = oci.bundle("echo ran").merge({"futureProperty": {"x": [1]}, "process": {"futureToo": True}})
    bundle.write()
    text = json.dumps(bundle.config)
    (bundle.path / "config.json").write_text('{"hostname": "first",' + text[1:])
    result = run(*oci.argv("run", "--bundle", str(bundle.path), oci.new_id())).ok()
    assert result.stdout == "ran\n"
