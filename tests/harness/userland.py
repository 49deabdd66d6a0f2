"""Mount namespaces of a worker's own: another distribution's userland, or further programs in /usr/bin.

A process that waits for its standard input to end holds one, so it vanishes
with the test run, however that ends.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from .netns import NetworkNamespace
from .proc import environment

#: Arguments: an empty folder, the userland's folder, places.
USERLAND = """\
root=$1 folder=$2
shift 2
mount -t tmpfs -o mode=755,size=64m userland "$root"
cd "$root"
mkdir -p etc host root run usr var/lib var/log
mkdir -m 1777 tmp var/tmp
ln -s /run var/run
for link in bin lib lib64 sbin; do cp -P "$folder/$link" "$link"; done
cp -a "$folder/etc/." etc
mount --bind "$folder/usr" usr
mount -o remount,bind,ro usr
for tree in proc sys dev; do
    mkdir "$tree"
    mount --rbind "/$tree" "$tree"
    mount --make-rslave "$tree"
done
for place in "$@"; do
    if [ -d "$place" ]; then
        mkdir -p ".$place"
    else
        mkdir -p ".${place%/*}"
        [ -e ".$place" ] || touch ".$place"
    fi
    mount --rbind "$place" ".$place"
done
pivot_root . host
cd /
umount -l /host
rmdir /host
"""
#: Argument: a folder with programs.
PROGRAMS = r"""
# Disks that other tests have mounted are theirs to free.
sed -n 's|^[^ ]* [^ ]* [^ ]* [^ ]* \([^ ]*\) .* - [^ ]* /dev/loop.*|\1|p' /proc/self/mountinfo | xargs -r umount -l
mount -t overlay -o "lowerdir=$1:/usr/bin" programs /usr/bin
"""


class MountNamespace:
    """From :meth:`start` to :meth:`stop`; its mounts are private."""

    def __init__(self, script: str, *arguments: str) -> None:
        """:param script: of the shell; makes the mounts."""
        self.command = ["sh", "-c", f"set -eu\n{script}\necho ready\nread -r end || true", "sh", *arguments]
        self.holder: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process that holds the namespace."""
        assert self.holder, "the namespace has not been started"
        return self.holder.pid

    def start(self) -> None:
        self.holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", *self.command],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(), cwd="/",
        )  # fmt: skip
        assert self.holder.stdout and self.holder.stderr
        if self.holder.stdout.readline() != b"ready\n":
            said = self.holder.stderr.read().decode(errors="replace")
            self.holder.wait(10)
            raise AssertionError(f"the mount namespace cannot be made:\n{said}")

    def argv(self, *argv: str, net: Path | None = None) -> list[str]:
        """A command inside (and in network namespace ``net``)."""
        network = [f"--net={net}"] if net else []
        return ["nsenter", f"--mount=/proc/{self.pid}/ns/mnt", *network, "--", *argv]

    def stop(self) -> None:
        """End the holder; the kernel unmounts everything when no process is in there any more."""
        if self.holder:
            holder, self.holder = self.holder, None
            assert holder.stdin
            holder.stdin.close()
            holder.wait(10)
            for stream in (holder.stdout, holder.stderr):
                if stream:
                    stream.close()


class Userland(MountNamespace):
    """Another distribution's programs.

    A memory file system as root, /usr of a folder (read-only), a copy of its
    /etc, the host's /proc, /sys and /dev, and the places of the host that the
    tests need at the same paths.
    """

    def __init__(self, folder: Path, root: Path, places: Iterable[Path]) -> None:
        """:param root: an empty folder, the mount point of the new root while it is made."""
        super().__init__(USERLAND, str(root), str(folder), *map(str, _outermost(places)))
        self.folder = folder
        self.root = root
        self.lock = -1

    def start(self) -> None:
        self.root.mkdir(parents=True)
        self.lock = os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(self.lock, fcntl.LOCK_SH)  # nobody removes it meanwhile
        super().start()

    def stop(self) -> None:
        super().stop()
        if self.lock >= 0:
            os.close(self.lock)
            self.lock = -1


class InsideNetwork(NetworkNamespace):
    """A network namespace whose commands run in a mount namespace, too."""

    def __init__(self, name: str, userland: MountNamespace) -> None:
        super().__init__(name)
        self.userland = userland

    def argv(self, *argv: str) -> list[str]:
        return self.userland.argv(*argv, net=self.path)


def _outermost(places: Iterable[Path]) -> list[Path]:
    """Without those that lie in another one; none that does not exist."""
    found = sorted({p for p in places if p.exists()})
    return [p for p in found if not any(p != other and p.is_relative_to(other) for other in found)]
