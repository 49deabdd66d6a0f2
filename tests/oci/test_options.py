"""Global options and the small verbs: --log, --root, --pid-file, version, features, spec."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest

from harness.oci import Container, Oci
from harness.proc import run
from harness.wait import alive, eventually


def log_errors(path: Path) -> list[dict[str, str]]:
    """Error lines of a JSON log, as containerd reads them (the last one is its message)."""
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    return [line for line in lines if line.get("level") == "error"]


def test_log_json(oci: Oci) -> None:
    """--log-format json: the shape that containerd parses error messages from."""
    log = oci.work_dir / "log.json"
    bad = oci.bundle().merge({"process": {"args": ["/nosuch/program"]}}).write()
    id = oci.new_id()
    argv = ["--log", str(log), "--log-format", "json", "create", "--bundle", str(bad.path), id]
    failed = oci.verb(*argv).fails(1)
    errors = log_errors(log)
    assert errors, f"no error in {log.read_text()!r} of\n{failed}"
    last = errors[-1]
    assert isinstance(last["msg"], str) and "/nosuch/program" in last["msg"], last
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", last["time"]), last
    assert "/nosuch/program" in failed.stderr
    before = log.read_text()
    oci.verb("--log", str(log), "--log-format", "json", "state", id).fails(1)
    assert log.read_text().startswith(before), "the log was not appended to"
    log.unlink()


def test_log_text(oci: Oci) -> None:
    """--log without a format is text; an unknown format is refused by name."""
    log = oci.work_dir / "log.text"
    oci.verb("--log", str(log), "state", "nosuch").fails(1)
    text = log.read_text()
    assert "level=error" in text and "msg=" in text, text
    log.unlink()
    refused = oci.verb("--log", str(log), "--log-format", "yaml", "list").fails(1)
    assert "yaml" in refused.stderr, refused


def test_unknown_verb_and_option(oci: Oci) -> None:
    """Unknown verbs and options are errors that name them."""
    if oci.runtime.is_vm:
        assert "bogus" in oci.verb("bogus", timeout=10).fails(1).stderr
    assert "bogus" in oci.verb("list", "--bogus", timeout=10).fails().stderr
    oci.verb("create", "--bundle", "/nonexistent", oci.new_id(), timeout=10).fails(1)
    missing = oci.verb("state", timeout=10).fails(1)
    assert missing.stderr.strip(), missing


def test_version(oci: Oci) -> None:
    """--version names the program, its version and the specification's."""
    text = oci.verb("--version").ok().out
    assert re.search(r"\d+\.\d+", text.splitlines()[0]), text
    assert re.search(r"(spec|OCI specs): *1\.\d", text), text
    if oci.runtime.is_vm:
        assert oci.verb("version").ok().out == text


@pytest.mark.control_cannot("runc 1.1 has the features verb behind a build tag only")
def test_features(oci: Oci) -> None:
    """features.md of the runtime specification: what an engine may ask for."""
    features = json.loads(oci.verb("features").ok().stdout)
    assert features["ociVersionMin"].startswith("1.0")
    assert features["ociVersionMax"].startswith("1.")
    for hook in ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"):
        assert hook in features["hooks"], hook
    assert {"ro", "rw", "rbind", "nosuid", "rshared"} <= set(features["mountOptions"])
    linux = features["linux"]
    assert {"pid", "network", "mount", "ipc", "uts", "user"} <= set(linux["namespaces"])
    assert {"CAP_NET_ADMIN", "CAP_SYS_ADMIN"} <= set(linux["capabilities"])
    assert linux["seccomp"]["enabled"] is True
    assert "SCMP_ACT_ERRNO" in linux["seccomp"]["actions"]


def test_spec(oci: Oci) -> None:
    """spec writes a config.json that runs, and does not overwrite one."""
    bundle = oci.bundle()
    run(oci.runtime.path, "spec", cwd=str(bundle.path)).ok()
    config = json.loads((bundle.path / "config.json").read_text())
    assert config["process"]["args"] == ["sh"]
    assert config["root"]["path"] == "rootfs"
    refused = oci.verb("spec", "--bundle", str(bundle.path)).fails(1)
    assert "config.json" in refused.stderr, refused
    config["process"]["args"] = ["echo", "from spec"]
    config["process"]["terminal"] = False
    bundle.config = config
    assert oci.run(bundle).ok().stdout == "from spec\n"


def test_pid_files(shared: Container) -> None:
    """--pid-file, also of exec --detach: the pid of a live process, whose end has the exit code."""
    assert int(shared.pid_file.read_text()) == shared.state()["pid"]
    launch = shared.exec_detached(
        "sh", "-c", "trap 'kill $!; exit 5' TERM; touch /tmp/up; while :; do sleep 3600 & wait $!; done"
    )
    pid = int(launch.pid_file.read_text())
    assert pid != shared.pid and alive(pid)
    eventually("the trap", lambda: shared.exec("test", "-e", "/tmp/up").rc == 0)
    os.kill(pid, signal.SIGTERM)
    assert launch.exit_code() == 5
    launch.gone()
    launch = shared.exec_detached("sleep", "3600")
    os.kill(int(launch.pid_file.read_text()), signal.SIGKILL)
    assert launch.exit_code() == 137


def test_preserve_fds(oci: Oci) -> None:
    """--preserve-fds N passes descriptors 3 to N+2; what cannot be passed is refused or warned about by name."""
    secret = oci.work_dir / "fd3"
    secret.write_text("by descriptor\n")
    bundle = oci.bundle("cat <&3").write()
    argv = oci.argv("run", "--bundle", str(bundle.path), "--preserve-fds", "1", oci.new_id())
    result = run("/bin/sh", "-c", 'file=$1; shift; exec "$@" 3<"$file"', "sh", str(secret), *argv)
    if oci.runtime.is_vm:
        assert "preserve-fds" in result.stderr or result.ok().stdout == "by descriptor\n", result
    else:
        assert result.ok().stdout == "by descriptor\n"


def test_ignored_options(oci: Oci) -> None:
    """Options that engines pass and that change nothing here: --no-pivot, --no-new-keyring, --systemd-cgroup."""
    result = oci.run(oci.bundle("echo ran"), "--no-new-keyring", "--no-pivot")
    assert result.ok().stdout == "ran\n"


def test_timings(oci: Oci) -> None:
    """KATA_TIMINGS: the phases of a start in the order of time, beside the output, not in it."""
    if not oci.runtime.is_vm:
        pytest.skip("only this runtime has it")
    bundle = oci.bundle("echo out").write()
    result = oci.verb("run", "--bundle", str(bundle.path), oci.new_id(), env={"KATA_TIMINGS": "1"}).ok()
    assert result.stdout == "out\n"
    rows = [line.split(maxsplit=3) for line in result.stderr.splitlines()[1:]]
    at = [float(row[0]) for row in rows]
    assert at == sorted(at) and all(float(row[1]) >= 0 for row in rows)
    phases = [(row[2], row[3]) for row in rows]
    wanted = [("verb", "bundle checked"), ("verb", "proxy there"), ("proxy", "QEMU started"),
              ("proxy", "agent answers"), ("proxy", "container made in the guest"), ("verb", "created"),
              ("proxy", "container started in the guest"), ("verb", "its process has ended"), ("verb", "deleted")]
    assert [phase for phase in phases if phase in wanted] == wanted, result.stderr
