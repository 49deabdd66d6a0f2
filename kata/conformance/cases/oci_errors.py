"""Bad input: what cannot be is refused, in a few words, and nothing is left behind."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

from kata.conformance.case import Seen
from kata.conformance.cases.look import oci
from kata.conformance.engines.oci import OciRuntime, merge

TEXTS = {
    "empty": "", "no JSON": "process: {}\n", "half of it": '{"ociVersion": "1.0.2", "process": {', "a list": "[]",
    "a string": '"hello"', "null": "null", "binary": "\x00\x01\x02\x7f" * 10, "nothing in it": "{}",
    "deep": '{"ociVersion": "1.0.2", "x": ' + "[" * 50_000 + "]" * 50_000 + "}",
}


def refused(o: OciRuntime, text: str | None = None, changes: dict[str, Any] | None = None) -> dict[str, object]:
    """How a configuration is taken: whether it was refused, with words, and whether anything is left."""
    bundle = o.bundle()
    path = bundle / "config.json"
    if changes is not None:
        config = json.loads(path.read_text())
        for name, value in changes.items():
            if value is None:
                config.pop(name, None)
            else:
                merge(config, {name: copy.deepcopy(value)})
        text = json.dumps(config)
    assert text is not None
    path.write_text(text)
    with o.container(bundle) as c:
        created = c.try_create() == 0
        started = c.start() if created else None  # where the process is made at start, so are its mounts
        said = c.said + (started.all if started else "")
        return {"refused": started is None or started.code != 0, "said": bool(said.strip()),
                "trace": "Traceback" in said or "goroutine" in said,
                "left": not created and o("state", c.id).code == 0}


def _all_refused(results: dict[str, dict[str, object]]) -> Seen:
    """The names of inputs that were taken, refused without a word, answered with a trace, or left something behind."""
    return {"taken": [n for n, r in results.items() if not r["refused"]],
            "silent": [n for n, r in results.items() if r["refused"] and not r["said"]],
            "traces": [n for n, r in results.items() if r["trace"]],
            "left": [n for n, r in results.items() if r["left"]]}


NOTHING: dict[str, Any] = {"taken": [], "silent": [], "traces": [], "left": []}


@oci("bad-config-text", "config.json that is no configuration: empty, binary, half, too deep, of another kind",
     **NOTHING)
def config_text(o: OciRuntime) -> Seen:
    return _all_refused({name: refused(o, text) for name, text in TEXTS.items()})


@oci("bad-config-missing", "no config.json, no bundle, a bundle that is a file, a config.json that is a folder or"
     " leads nowhere", refused=[True] * 5)
def config_missing(o: OciRuntime) -> Seen:
    bundle = o.bundle()
    config = bundle / "config.json"
    config.unlink()
    plain = o.data / f"plain-{o.new_id()}"
    plain.write_text("")

    def fails(path: Path | str) -> bool:
        return o("create", "--bundle", str(path), o.new_id()).code != 0

    found = [fails(bundle), fails("/nonexistent"), fails(plain)]
    config.mkdir()
    found.append(fails(bundle))
    config.rmdir()
    config.symlink_to("/nowhere/at/all")
    return {"refused": [*found, fails(bundle)]}


def _wrong(name: str, promise: str, **changes: dict[str, Any]) -> None:
    """A case of several wrong values, each by a name."""
    @oci(name, promise, **NOTHING)
    def wrong(o: OciRuntime) -> Seen:
        return _all_refused({key.replace("_", " "): refused(o, changes=change) for key, change in changes.items()})


def _process(**values: Any) -> dict[str, Any]:
    return {"process": values}


def _mount(**values: Any) -> dict[str, Any]:
    return {"mounts": [values]}


def _linux(**values: Any) -> dict[str, Any]:
    return {"linux": values}


_wrong("bad-process-args", "process.args that is no list of words",
       string=_process(args="sh"), empty=_process(args=[]), number=_process(args=["sh", 5]))
_wrong("bad-process-cwd", "process.cwd that is not absolute", relative=_process(cwd="tmp"), empty=_process(cwd=""))
_wrong("bad-process-user", "process.user that is no number a kernel has", string=_process(user={"uid": "root"}),
       negative=_process(user={"uid": -1}), huge=_process(user={"uid": 1 << 40}))
_wrong("bad-process-env", "process.env that is no list", object=_process(env={"A": "b"}))
_wrong("bad-process-limits", "limits and scores that there are not",
       rlimit=_process(rlimits=[{"type": "RLIMIT_X", "hard": 1, "soft": 1}]), oom=_process(oomScoreAdj=5000))
_wrong("bad-root", "root that is not there or no folder", missing={"root": None}, absent={"root": {"path": "nosuch"}},
       file={"root": {"path": "config.json"}})
_wrong("bad-mounts", "mounts that cannot be made", object={"mounts": {}}, nowhere=_mount(type="tmpfs", source="x"),
       of_nothing=_mount(destination="/m", type="bind", source="/no/such", options=["bind"]),
       unknown_type=_mount(destination="/m", type="nosuchfs", source="x"))
_wrong("bad-mount-option", "a mount option that the file system does not know",
       bogus=_mount(destination="/m", type="tmpfs", source="x", options=["bogus=1"]))
_wrong("bad-namespaces", "namespaces that there are not, or twice", unknown=_linux(namespaces=[{"type": "dream"}]),
       twice=_linux(namespaces=[{"type": "pid"}, {"type": "pid"}]))
_wrong("bad-seccomp", "seccomp actions and architectures that there are not",
       action=_linux(seccomp={"defaultAction": "SCMP_ACT_X"}),
       architecture=_linux(seccomp={"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_Z"]}))
_wrong("bad-devices", "linux.devices without a type, or of one that there is not",
       none=_linux(devices=[{"path": "/dev/x", "major": 1, "minor": 3}]),
       unknown=_linux(devices=[{"path": "/dev/x", "type": "q"}]))
_wrong("bad-kinds", "values of the wrong JSON type", version={"ociVersion": 1}, hostname={"hostname": ["a"]},
       hooks={"hooks": []}, annotations={"annotations": ["x"]}, propagation=_linux(rootfsPropagation="sideways"))


@oci("bad-config-not-to-be-kept", "what cannot be kept: taken without a word, or refused by name")
def not_to_be_kept(o: OciRuntime) -> Seen:
    """Runtimes differ here: runc takes all of these."""
    inputs: dict[str, dict[str, Any]] = {
        "unknown capability": _process(capabilities={"bounding": ["CAP_FLY"]}),
        "variable without =": _process(env=["NOEQUALS"]), "argument with NUL": _process(args=["sh", "a\0b"]),
        "rlimit twice": _process(rlimits=[{"type": "RLIMIT_NOFILE", "hard": 9, "soft": 9}] * 2),
        "version 9.9.9": {"ociVersion": "9.9.9"}, "negative memory": _linux(resources={"memory": {"limit": -7}}),
    }
    return {"refused": [name for name, changes in inputs.items() if refused(o, changes=changes)["refused"]]}


@oci("bad-id", "ids that could name another place are refused by every verb, and nothing is made", taken=[],
     made=False)
def bad_id(o: OciRuntime) -> Seen:
    bundle = o.bundle()
    before = sorted(os.listdir(o.root)) if o.root.exists() else []
    taken = [f"{verb[0]} {id!r}" for id in ("", "a/b", "..", "../../x", "a b", "x" * 1100, "ü", "%s%n")
             for verb in (["create", "--bundle", str(bundle)], ["state"], ["delete"], ["kill"])
             if o(*verb, id).code == 0]
    return {"taken": taken, "made": (sorted(os.listdir(o.root)) if o.root.exists() else []) != before}


def _bad_program(o: OciRuntime, program: str) -> dict[str, object]:
    """At which verb a program that cannot run is noticed, and whether it is named."""
    def make() -> dict[str, object]:
        with o.container(o.bundle(changes={"process": {"args": [program]}})) as c:
            if c.try_create() != 0:
                return {"at": "create", "named": program in c.said}
            done = c.start()
            return {"at": "start" if done.code != 0 else "never", "named": program in done.all + c.said}

    found: dict[str, object] = o.shared(f"bad program {program}", make)
    return found


PROGRAMS = ("/nosuch", "/etc/passwd")


@oci("bad-program", "a program that is not there, or that cannot run: an error by name", named=[True, True])
def bad_program(o: OciRuntime) -> Seen:
    return {"named": [_bad_program(o, program)["named"] for program in PROGRAMS]}


@oci("bad-program-when", "when a program that cannot run is noticed: at create, or at start")
def bad_program_when(o: OciRuntime) -> Seen:
    return {"at": [_bad_program(o, program)["at"] for program in PROGRAMS]}


@oci("bad-cwd", "process.cwd that is a file: an error by name", failed=True, named=True)
def bad_cwd(o: OciRuntime) -> Seen:
    done = o.run("true", {"process": {"cwd": "/etc/passwd"}})
    return {"failed": done.code != 0, "named": "/etc/passwd" in done.all or "chdir" in done.all}


@oci("large-config", "10 MB of annotations: run, or refused; never a crash", crash=False)
def large_config(o: OciRuntime) -> Seen:
    done = o.run("echo ran", {"annotations": {f"org.example.{i}": "x" * 1000 for i in range(10_000)}})
    ran = done.code == 0 and done.out == "ran"
    refused = done.code != 0 and bool(done.stderr.strip()) and "Traceback" not in done.stderr
    return {"crash": not (ran or refused)}


@oci("bundle-strange-name", "a bundle whose name has spaces, quotes and letters of other alphabets", output="ran")
def strange_name(o: OciRuntime) -> Seen:
    bundle = o.bundle("echo ran")
    strange = bundle.with_name(f"{bundle.name} 'ünïcode\" $HOME")
    bundle.rename(strange)
    return {"output": o("run", "--bundle", str(strange), o.new_id()).ok().out}
