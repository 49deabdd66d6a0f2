"""A private podman: own storage, run root, temporary files, network configuration, network namespace."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from . import leaks
from .netns import NetworkNamespace
from .proc import Result, environment, run, tagged
from .runtime import Runtime
from .wait import eventually

IMAGE = "localhost/busybox:test"

CONFIG = """\
[containers]
log_driver = "k8s-file"
{limits}
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
[network]
network_backend = "netavark"
network_config_dir = "{run}/networks"
"""


class Podman:
    """podman with the runtime under test; nothing of the host's own podman is touched."""

    def __init__(self, runtime: Runtime, tag: str, run_dir: Path, work_dir: Path) -> None:
        self.runtime = runtime
        self.tag = tag
        self.run_dir = run_dir / "p"
        self.data_dir = work_dir / "podman"
        for path in (self.run_dir, self.data_dir, self.run_dir / "networks"):
            path.mkdir()
        self.config = self.run_dir / "containers.conf"
        # podman asks for 1048576 open files; a host without CAP_SYS_RESOURCE cannot give them, a guest can.
        limits = "" if runtime.is_vm else 'default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]'
        self.config.write_text(CONFIG.format(run=self.run_dir, limits=limits))
        self.netns = NetworkNamespace(f"{tag}p")
        self.namespaces = set(leaks.netns(["netns-"]))

    def argv(self, *argv: str) -> list[str]:
        return self.netns.argv(
            "podman", "--root", str(self.data_dir), "--runroot", str(self.run_dir / "r"),
            "--tmpdir", str(self.run_dir / "t"), "--storage-driver", "overlay", "--cgroup-manager", "cgroupfs",
            "--network-config-dir", str(self.run_dir / "networks"), "--runtime", self.runtime.path, *argv,
        )  # fmt: skip

    def __call__(self, *argv: str, input: bytes | str | None = None, timeout: float = 90) -> Result:
        # conmon leaves a file named oom in its working directory.
        cwd = str(self.run_dir)
        return run(*self.argv(*argv), input=input, timeout=timeout, env=self.environment(), cwd=cwd)

    def environment(self) -> dict[str, str]:
        return {"CONTAINERS_CONF": str(self.config), "XDG_RUNTIME_DIR": str(self.run_dir)}

    def inspect(self, name: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = json.loads(self("inspect", name).ok().stdout)
        return found[0]

    def sh(self, name: str, script: str, *options: str) -> Result:
        return self("exec", *options, name, "sh", "-c", script)

    def start(self, rootfs: Path) -> None:
        self.netns.create()
        tar = subprocess.Popen(["tar", "-C", str(rootfs), "-c", "."], stdout=subprocess.PIPE, env=environment())
        assert tar.stdout
        change = ["--change", 'CMD ["sh"]', "--change", "ENV IMAGE_WORD=image"]
        result = run(*self.argv("import", *change, "-", IMAGE), stdin=tar.stdout, timeout=120, env=self.environment())
        tar.stdout.close()
        assert tar.wait() == 0
        result.ok()

    def stop(self) -> None:
        """Remove everything; what is left on the host then is a failure."""
        problems = []
        ids = self("ps", "-aq", "--no-trunc").ok().out.split()
        for argv in (("pod", "rm", "-af", "-t", "0"), ("rm", "-af", "-t", "0"), ("volume", "rm", "-af"),
                     ("network", "prune", "-f")):  # fmt: skip
            result = self(*argv, timeout=180)
            if result.rc:
                problems.append(str(result))

        def processes() -> list[str]:
            return [f"process {pid} {line}" for pid, line in tagged([str(self.run_dir)]) if "aardvark" not in line]

        try:
            eventually("no process of podman's containers", lambda: not processes(), 15)
        except AssertionError:
            problems += processes()
        problems += [f"mount {m}" for m in leaks.mounts([str(self.data_dir) + "/overlay/"])]
        problems += [f"cgroup {c}" for c in leaks.cgroups(ids)]
        for pid, _ in tagged([str(self.run_dir)]):
            run("kill", "-KILL", str(pid))
        for mount in reversed(leaks.mounts([str(self.run_dir), str(self.data_dir)])):
            run("umount", "--lazy", mount)
        self.netns.delete()
        shutil.rmtree(self.data_dir, ignore_errors=True)
        assert not problems, "left behind by podman:\n" + "\n".join(problems)
