"""The root file system of a container: a share in a machine, or a read-only disk; the host's own otherwise."""

from __future__ import annotations

import os
import shutil

from bench.contenders import Contender
from bench.figures import Section
from bench.gate import BLOCK, MB, seconds
from bench.measure import output
from bench.world import SLEEP, World

TITLE = "files of a container's root"
COUNT = 100  #: blocks of the large file
FILES = 1000
SMALL = 4096  #: bytes of a small file
READ = {f"read {FILES} files of 4 KiB": "cat /many/* >/dev/null", f"stat {FILES} files": "ls -l /many >/dev/null"}
READ_LARGE = f"dd if=/large of=/dev/null bs={BLOCK} 2>/dev/null"


def measure(world: World, section: Section) -> None:
    bundle = world.bundle("sleep", SLEEP)
    many = world.rootfs / "many"
    many.mkdir()
    for number in range(FILES):
        (many / f"{number}").write_bytes(bytes(SMALL))
    world.stack.callback(shutil.rmtree, many)
    on_disk(world, section)
    who = [*world.controls, world.template()]
    for number in world.rounds(5, 60):
        for one in world.turns(number, who):
            with world.running(one, bundle) as id:
                large(section, one, id)
                small(section, one, id)


def large(section: Section, one: Contender, id: str) -> None:
    """One file of 100 MiB; the host has it in memory when it is read."""
    size = COUNT * BLOCK / MB
    took = seconds(one, id, f"dd if=/dev/zero of=/large bs={BLOCK} count={COUNT} 2>/dev/null")
    section.add("write 100 MiB", one.name, size / took, "MB/s")
    section.add("read 100 MiB", one.name, size / seconds(one, id, READ_LARGE), "MB/s")
    seconds(one, id, "rm /large")


def small(section: Section, one: Contender, id: str) -> None:
    for metric, script in {
        **READ,
        f"create {FILES} files": f"mkdir /new; cd /new; i=0; while [ $i -lt {FILES} ]; do : >$i; i=$((i+1)); done",
        f"remove {FILES} files": "rm -r /new",
    }.items():
        section.add(metric, one.name, seconds(one, id, script))


def on_disk(world: World, section: Section) -> None:
    """The same files in an erofs image that is mounted: the machine gets the disk.  Nothing can be written to it."""
    large, image, place = world.rootfs / "large", world.work_dir / "root.erofs", world.work_dir / "root-disk"
    with large.open("wb") as f:
        for _ in range(COUNT):
            f.write(os.urandom(BLOCK))
    output(["mkfs.erofs", str(image), str(world.rootfs)])
    large.unlink()
    place.mkdir()
    output(["mount", "-t", "erofs", "-o", "loop,ro", str(image), str(place)])
    world.stack.callback(output, ["umount", str(place)])
    bundle = world.bundle("disk", SLEEP, root={"path": str(place)})
    # Who runs in a mount namespace of its own does not see what was mounted just now.
    for one in (*(one for one in world.controls if one.space < 0), world.template()):
        name = f"{one.name}, root a disk"
        with world.running(one, bundle) as id:
            section.add("read 100 MiB", name, COUNT * BLOCK / MB / seconds(one, id, READ_LARGE), "MB/s")
            for metric, script in READ.items():
                section.add(metric, name, seconds(one, id, script))
                section.add(f"{metric}, again", name, seconds(one, id, script))
