"""Runs cases with subjects: real engines, real machines, and a record of what was seen."""

from __future__ import annotations

import concurrent.futures
import json
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kata.conformance import deadline, document, leftovers, needs, suites
from kata.conformance.case import Case, Skip
from kata.conformance.engines import host
from kata.conformance.samples import Sampler
from kata.conformance.subject import Subject
from kata.errors import HostError, KataError
from kata.process import last_lines

CASE_TIMEOUT = 240.0  #: seconds; each command in a case has a deadline, too
EVIDENCE = 4000  #: bytes of the end of each log that a failure keeps

#: Told of every result as it comes: case, subject, result.
Progress = Callable[[Case, str, Mapping[str, Any]], None]


class Runner:
    """One run.  ``stop`` may be set from anywhere: what has begun is ended, the rest is left out."""

    def __init__(self, subjects: Sequence[Subject], reference: str, cases: Sequence[Case], jobs: int,
                 progress: Progress) -> None:
        self.subjects, self.cases, self.jobs = subjects, cases, jobs
        self.progress = progress
        self.record = document.new(subjects, reference, cases)
        self.sampler = Sampler()
        self.stop = threading.Event()
        self.tag = leftovers.tag()
        self.folder, self.data = Path("/run") / self.tag, Path("/var/tmp") / self.tag

    def run(self) -> dict[str, Any]:
        """The record of the run.

        :raise HostError: not root, or no folder to work in.
        """
        if missing := needs.missing("root"):
            raise HostError(f"conformance {missing}: it starts engines and machines", "run it as root")
        leftovers.sweep()
        self.folder.mkdir(mode=0o700)
        self.data.mkdir(mode=0o711)
        try:
            self._prove()
            for suite in dict.fromkeys(c.suite for c in self.cases):
                self._suite(suite)
            self._plans()
        except KeyboardInterrupt:  # what was seen until now is kept
            self.record["meta"]["interrupted"] = True
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
            shutil.rmtree(self.data, ignore_errors=True)
        self.record["samples"] = self.sampler.all()
        return self.record

    def _prove(self) -> None:
        """:raise HostError: a subject cannot run a container at all here; its cases would say the same, each anew."""
        from kata.conformance.engines.oci import OciEngine

        runtimes = {s.name: s.command for s in self.subjects}
        engine = OciEngine(self.folder / "prove", self.data / "prove", runtimes, Sampler())
        engine.start()
        try:
            for name in runtimes:
                side = engine.subject(name)
                try:
                    got = side.run("echo ready")
                finally:
                    side.close()
                if got.out != "ready":
                    raise HostError(f"{name} cannot run a container here: {last_lines(got.stderr.encode())}",
                                    "leave it out, or mend that")
        finally:
            _quietly(engine.stop)

    def _suite(self, suite: str) -> None:
        """One suite: its engine, then each subject with all of its cases, ``jobs`` subjects at once."""
        cases = [c for c in self.cases if c.suite == suite]
        runtimes = {s.name: s.command for s in self.subjects}
        engine = suites.make(suite, self.folder / suite, self.data / suite, f"{self.tag}{suite[0]}", runtimes,
                             self.sampler)
        try:
            engine.start()
        except KataError as e:
            names = [s.name for s in self.subjects]
            self._all(cases, names, document.SKIPPED, f"{suite} cannot be used here: {e}")
            _quietly(engine.stop)
            return
        try:
            with concurrent.futures.ThreadPoolExecutor(self.jobs) as pool:
                sides = [pool.submit(self._side, engine, number, s.name, cases)
                         for number, s in enumerate(self.subjects, 1)]
                try:
                    for side in sides:
                        side.result()
                except BaseException:
                    self.stop.set()  # what has begun ends by its own deadlines
                    raise
        finally:
            left = _quietly(engine.stop)
        if left:
            self.record["meta"].setdefault("left", []).append(left)

    def _all(self, cases: Sequence[Case], subjects: Sequence[str], status: str, why: str) -> None:
        for case in cases:
            for subject in subjects:
                self._tell(case, subject, {"status": status, "seen": {}, "why": why, "seconds": 0.0})

    def _side(self, engine: suites.Engine, number: int, name: str, cases: Sequence[Case]) -> None:
        try:
            side = engine.subject(name, number)
        except KataError as e:
            self._all(cases, [name], document.FAILED, str(e))
            return
        try:
            for case in cases:
                if self.stop.is_set():
                    return
                result = self._case(case, side)
                if self.stop.is_set():
                    return  # its commands met the same signal
                self._tell(case, name, result)
        finally:
            close = getattr(side, "close", None)
            if close:
                _quietly(close)

    def _case(self, case: Case, side: Any) -> dict[str, Any]:
        """One case with one subject; it always ends, and never raises."""
        begun = time.monotonic()
        result: dict[str, Any] = {"status": document.RAN, "seen": {}, "why": ""}
        if reasons := [why for need in case.needs if (why := needs.missing(need))]:
            return {**result, "status": document.SKIPPED, "why": "; ".join(reasons), "seconds": 0.0}
        try:
            with deadline.within(CASE_TIMEOUT):
                seen = case.run(side)
            # Through JSON, so that what is compared now is what is compared when it is read again.
            result["seen"] = json.loads(json.dumps(dict(seen), default=str))
        except Skip as e:
            result.update(status=document.SKIPPED, why=str(e))
        except KataError as e:
            result.update(status=document.FAILED, why=str(e))
        except Exception as e:  # a case is wrong, or met what nobody thought of: the others go on
            result.update(status=document.FAILED, why=f"{type(e).__name__}: {e}")
        if result["status"] == document.FAILED:
            result["evidence"] = evidence(self.tag)
        result["seconds"] = round(time.monotonic() - begun, 3)
        return result

    def _tell(self, case: Case, subject: str, result: dict[str, Any]) -> None:
        self.record["results"][case.id][subject] = result
        self.progress(case, subject, result)

    def _plans(self) -> None:
        """The plans of every flavor for one bundle: the reports show what differs in them."""
        from kata.conformance.engines.oci import default_config

        bundle = self.data / "plan"
        (bundle / "rootfs").mkdir(parents=True)
        (bundle / "config.json").write_text(json.dumps(default_config("true")))
        for subject in self.subjects:
            if subject.flavor:
                done = host.run([*subject.command, "plan", str(bundle)])
                if done.code == 0:
                    self.record["plans"][subject.flavor] = json.loads(done.stdout)


def evidence(tag: str) -> dict[str, str]:
    """The ends of the logs of machines that this run has: console, proxy, QEMU."""
    found = {}
    sandboxes = Path("/run/kata/sandboxes")
    for folder in sorted(sandboxes.iterdir()) if sandboxes.exists() else ():
        try:
            if tag.encode() not in (folder / "sandbox.json").read_bytes():
                continue
            for name in ("console.log", "proxy.log", "qemu.log"):
                text = (folder / name).read_bytes()[-EVIDENCE:].decode(errors="replace")
                if text.strip():
                    found[f"{folder.name}/{name}"] = text
        except OSError:  # it is being removed
            continue
    return found


def _quietly(act: Callable[[], Any]) -> str:
    """What is said when it fails; "" when it does not."""
    try:
        act()
    except KataError as e:
        return str(e)
    return ""
