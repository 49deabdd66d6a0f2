"""The benchmark's own place on the host: contenders, bundles, containers; all of it is gone afterwards."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from bench import contenders, measure
from bench.contenders import Contender
from bench.figures import Section
from bench.pool import Pool
from harness import evidence, leaks, sweep
from harness.bundle import default_config
from harness.proc import TAG_VARIABLE, run
from kata.assets import store
from kata.conformance.engines.host import image_root
from kata.errors import NotFound

START = time.monotonic()
SLEEP = ["sleep", "100000"]
LIMIT = 720.0  #: seconds after which no further round of anything begins


def say(text: str) -> None:
    print(f"[{time.monotonic() - START:6.1f} s] {text}", file=sys.stderr, flush=True)


class World:
    """Everything a section needs.  Use :func:`world`."""

    def __init__(self, tag: str, quick: bool) -> None:
        self.tag = tag
        self.quick = quick
        self.run_dir = Path("/run") / tag
        self.work_dir = Path("/var/tmp") / tag
        self.rootfs = self.work_dir / "rootfs"
        self.stack = ExitStack()  #: undone at the end of the section
        self.lasting = ExitStack()  #: undone at the end of all
        self.controls = contenders.controls(self.run_dir, self.lasting)
        self._pool = Pool(self.run_dir, self.run_dir / "template")
        self._numbers = itertools.count(1)
        self._live: dict[str, Contender] = {}  #: id -> whose container it is
        self._ready: dict[str, Contender] = {}

    # --- contenders ------------------------------------------------------------

    def cold(self) -> list[Contender]:
        """Kata without templates, once for each kind of kernel that is built."""
        found = {}
        for initrd in store.list_assets("initrd"):  # oldest first: the newest stays
            with suppress(NotFound):
                kernel = store.load(initrd.inputs["kernel"])
                found[kernel.variant] = tuple(f"{a.path}/{a.files[a.kind]}" for a in (kernel, initrd))
        return [self._kata(f"cold, {kind}", "cold", *files) for kind, files in found.items()]

    def template(self) -> Contender:
        """Kata with the selected kernel and a template that is there."""
        return self._kata("template", "template")

    def pool(self, size: int) -> Contender:
        """Kata with a pool of ``size`` warmed machines, until the section ends."""
        self.template()  # its machines are clones
        say(f"filling the pool: {size}")
        self._pool.resize(size)
        self.stack.callback(self._pool.resize, 0)
        return self._pool.contender

    def quiet(self) -> None:
        """Wait until the pool, if there is one, is full: nobody is measured while it is being filled."""
        self._pool.refilled()

    @property
    def daemons(self) -> list[int]:
        """Children that stay."""
        return self._pool.pids

    def _kata(self, name: str, boot: str, kernel: str = "", initrd: str = "") -> Contender:
        name = f"kata {name}"
        if name not in self._ready:
            text = contenders.configuration(boot, self.run_dir / "template", kernel=kernel, initrd=initrd)
            found = contenders.kata(self.run_dir, name, boot, text)
            if boot == "template":
                say("making the template")
                found.timed("factory", "init")
            self._ready[name] = found
        return self._ready[name]

    # --- rounds ----------------------------------------------------------------

    def rounds(self, count: int, seconds: float) -> Iterator[int]:
        """At most ``count`` rounds, no new one after ``seconds``; few when it has to be quick.

        On a slow machine later sections have one round each: nobody waits longer than for :data:`LIMIT`.
        """
        end = min(time.monotonic() + (seconds / 4 if self.quick else seconds), START + LIMIT)
        for number in range(min(count, 2) if self.quick else count):
            if number and time.monotonic() > end:
                return
            yield number

    @staticmethod
    def turns(number: int, who: Sequence[Contender]) -> list[Contender]:
        """The contenders in the order of round ``number``: each is first now and then."""
        shift = number % len(who)
        return [*who[shift:], *who[:shift]]

    # --- containers ------------------------------------------------------------

    def bundle(self, name: str, args: Sequence[str], **changes: Any) -> Path:
        """A bundle over the one root file system; ``changes`` replace top-level keys of config.json."""
        path = self.work_dir / f"bundle-{name}"
        if not path.exists():
            path.mkdir()
            root = {"path": str(self.rootfs), "readonly": False}
            config = {**default_config(*args), "root": root, **changes}
            (path / "config.json").write_text(json.dumps(config))
        return path

    def new_id(self, who: Contender) -> str:
        """An id that is deleted at the end, whatever became of its container."""
        id = f"{self.tag}-{next(self._numbers)}"
        self._live[id] = who
        return id

    def gone(self, id: str) -> None:
        """The container has been deleted."""
        del self._live[id]

    def pid_file(self, id: str) -> Path:
        return self.run_dir / f"{id}.pid"

    @contextmanager
    def running(self, who: Contender, bundle: Path) -> Iterator[str]:
        """A container that runs until the block ends; its id."""
        id = self.new_id(who)
        who.timed("run", "--detach", "--bundle", str(bundle), "--pid-file", str(self.pid_file(id)), id)
        try:
            yield id
        finally:
            self.remove(id)

    def remove(self, id: str) -> None:
        """Kill and delete a container."""
        self._live[id].timed("delete", "--force", id)
        measure.drain()
        self.gone(id)

    def show_logs(self) -> None:
        """What machines of containers that are not gone said last."""
        for id, who in self._live.items():
            if who.is_vm:
                evidence.capture(Path(who.root), id)
        for name, text in evidence.collect():
            print(f"-- {name}\n{text[-1500:]}", file=sys.stderr)

    # --- the end ---------------------------------------------------------------

    def close(self) -> None:
        """Remove everything that this run made; problems are told and do not stop it."""
        for id in list(self._live):
            with suppress(measure.Failed):
                self.remove(id)
        with suppress(measure.Failed, subprocess.TimeoutExpired):
            self._pool.close()
        for pid in reversed(measure.descendants()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            measure.settle()
        except measure.Failed as e:
            say(f"left behind: {e}")
        for id, who in self._live.items():  # could not be deleted
            shutil.rmtree(leaks.SANDBOXES / leaks.sandbox_key(Path(who.root), id), ignore_errors=True)
        for mount in reversed(leaks.mounts([self.tag])):
            run("umount", "--lazy", mount)
        for group in sorted(leaks.cgroups([self.tag]), reverse=True):
            with suppress(OSError):
                Path(group).rmdir()
        for name in leaks.netns([self.tag]):
            run("ip", "netns", "delete", name)
        self.lasting.close()
        for folder in (self.run_dir, self.work_dir):
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def world(quick: bool) -> Iterator[World]:
    """A world until the block ends, also when that is by an error or an interrupt."""
    sweep.sweep()
    measure.become_reaper()
    # The letter at the end keeps one tag from being the beginning of another.
    tag = f"ktmx{os.getpid()}e"
    os.environ[TAG_VARIABLE] = tag
    (Path("/run") / tag).mkdir(mode=0o700)
    (Path("/var/tmp") / tag).mkdir(mode=0o711)
    place = World(tag, quick)
    try:
        image_root(place.rootfs)
        yield place
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        say("cleaning up")
        place.close()


@contextmanager
def section(place: World, name: str, title: str) -> Iterator[Section]:
    """A section's figures, with the time it took and the machine's load."""
    say(f"{name}: {title}")
    made = Section(name, title, started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), load_before=measure.load())
    began = time.monotonic()
    with place.stack:
        try:
            yield made
        except Exception:
            place.show_logs()
            raise
    made.seconds = round(time.monotonic() - began, 1)
    made.load_after = measure.load()
