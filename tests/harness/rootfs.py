"""A minimal root file system of busybox, made on the spot."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

FOLDERS = ("bin", "dev", "etc", "home/user", "mnt", "proc", "root", "run", "sys", "tmp", "usr", "var/tmp")
PASSWD = """\
root:x:0:0:root:/root:/bin/sh
user:x:1000:1000:User:/home/user:/bin/sh
nobody:x:65534:65534:nobody:/:/bin/false
"""
GROUP = """\
root:x:0:
tty:x:5:
audio:x:29:user
video:x:44:user
users:x:100:
user:x:1000:
nogroup:x:65534:
"""


def busybox_rootfs(path: Path) -> Path:
    """Make a root at ``path``: static busybox with all its applets, three users."""
    for folder in FOLDERS:
        (path / folder).mkdir(parents=True, exist_ok=True)
    (path / "tmp").chmod(0o1777)
    (path / "root").chmod(0o700)
    os.chown(path / "home/user", 1000, 1000)
    (path / "sbin").symlink_to("bin")
    (path / "usr/bin").symlink_to("../bin")
    (path / "usr/sbin").symlink_to("../bin")
    busybox = shutil.which("busybox")
    assert busybox, "busybox-static is not installed"
    shutil.copy(busybox, path / "bin/busybox")
    for applet in subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split():
        if applet != "busybox":
            (path / "bin" / applet).symlink_to("busybox")
    (path / "etc/passwd").write_text(PASSWD)
    (path / "etc/group").write_text(GROUP)
    (path / "etc/os-release").write_text('ID=test\nPRETTY_NAME="Test root"\n')
    return path
