"""The demonstration: one root file system, made on the spot, run in three ways.

1. ``kata run`` on an OCI bundle, under each of the three flavors
2. ``docker run``, by a docker daemon of its own that has the three as runtimes
3. ``docker exec`` into a container that keeps running

and the kernel each of them meets, beside the host's.  The daemons live in a
network namespace of their own, with their own sockets and data; the host's
docker, its bridge and its firewall are not touched, and nothing stays.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

KATA = str(Path(sys.executable).parent / "kata")
#: Flavor -> the name that its original had in docker.
RUNTIMES = {"unified": "kata", "clear": "cc-runtime", "runv": "runv"}
UNAME = ["uname", "-s", "-r", "-v"]
START = time.monotonic()
DAEMON_TIMEOUT = 60.0  #: seconds until a daemon must answer, and must have ended
RUN_TIMEOUT = 120.0  #: seconds for a container to start, do its work and end

CAPABILITIES = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SETGID",
                "CAP_SETUID"]  # fmt: skip


class Failed(Exception):
    pass


def say(text: str) -> None:
    print(f"[{time.monotonic() - START:6.1f} s] {text}", file=sys.stderr, flush=True)


def run(argv: Sequence[str], *, input: str = "", show: bool = True, env: dict[str, str] | None = None) -> str:
    """Run a command, say so, and return what it printed."""
    if show:
        print(f"\n$ {' '.join(argv)}", flush=True)
    done = subprocess.run(argv, input=input, capture_output=True, text=True, timeout=RUN_TIMEOUT, check=False, env=env)
    if show:
        sys.stdout.write(done.stdout)
        sys.stdout.flush()
    sys.stderr.write(done.stderr)
    if done.returncode:
        raise Failed(f"{' '.join(argv)} ended with code {done.returncode}")
    return done.stdout.strip()


def make_rootfs(root: Path) -> None:
    """A root file system of nothing but busybox."""
    for folder in ("bin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "var"):
        (root / folder).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    busybox = shutil.which("busybox") or "/bin/busybox"
    shutil.copy2(busybox, root / "bin/busybox")
    for applet in subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split():
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")


def make_bundle(bundle: Path, args: Sequence[str]) -> None:
    """An OCI bundle beside ``bundle/rootfs``."""
    kinds = ("pid", "ipc", "uts", "mount", "network")
    config = {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": list(args),
            "env": ["PATH=/bin", "HOME=/root"],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), CAPABILITIES),
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "bundle",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=1777"]},
        ],
        "linux": {"namespaces": [{"type": kind} for kind in kinds]},
    }
    (bundle / "config.json").write_text(json.dumps(config, indent=1))


@contextmanager
def daemon(name: str, argv: Sequence[str], log: Path, ready: Sequence[str]) -> Iterator[int]:
    """A daemon in the background until the block ends; ``ready`` is a command that succeeds once it answers."""
    say(f"starting {name}")
    with log.open("wb") as out:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    try:
        deadline = time.monotonic() + DAEMON_TIMEOUT
        while subprocess.run(ready, capture_output=True, check=False).returncode:
            if process.poll() is not None or time.monotonic() > deadline:
                last = "\n".join(log.read_text(errors="replace").splitlines()[-10:])
                raise Failed(f"{name} does not answer; its last lines:\n{last}")
            # Neither daemon tells when it listens.
            time.sleep(0.2)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(DAEMON_TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def private_docker(run_dir: Path, data: Path) -> Iterator[list[str]]:
    """A docker daemon of our own; yields the start of a docker command line."""
    containerd_socket, docker_socket = run_dir / "containerd.sock", run_dir / "docker.sock"
    config = run_dir / "containerd.toml"
    config.write_text(
        f'version = 2\nroot = "{data}/containerd"\nstate = "{run_dir}/containerd"\n'
        f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "{containerd_socket}"\n'
    )
    docker = ["docker", "-H", f"unix://{docker_socket}"]
    dockerd = [
        "dockerd", f"--host=unix://{docker_socket}", f"--containerd={containerd_socket}",
        f"--data-root={data}/docker", f"--exec-root={run_dir}/exec", f"--pidfile={run_dir}/docker.pid",
        *(f"--add-runtime={name}={Path(KATA).with_name(name)}" for name in RUNTIMES.values()), "--config-file=",
        "--log-level=warn",
    ]  # fmt: skip
    with ExitStack() as stack:
        # One network namespace for both: its docker0 and its firewall are not the host's.
        space = stack.enter_context(network_namespace(run_dir))
        inside = ["nsenter", f"--net={space}", "--"]
        ready = ["ctr", f"--address={containerd_socket}", "version"]
        argv = [*inside, "containerd", f"--config={config}"]
        stack.enter_context(daemon("containerd", argv, data / "containerd.log", ready))
        argv = [*inside, *dockerd]
        stack.enter_context(daemon("dockerd", argv, data / "dockerd.log", [*docker, "version"]))
        try:
            yield docker
        finally:
            listed = subprocess.run([*docker, "ps", "-aq"], capture_output=True, text=True, check=False).stdout.split()
            if listed:
                subprocess.run([*docker, "rm", "-f", *listed], stdout=subprocess.DEVNULL, check=False)


@contextmanager
def network_namespace(run_dir: Path) -> Iterator[str]:
    """A network namespace, held by a process that does nothing; yields its path."""
    reader, writer = os.pipe()
    argv = ["unshare", "--net", "sh", "-c", "ip link set lo up && echo ready && exec cat"]
    holder = subprocess.Popen(argv, stdin=reader, stdout=subprocess.PIPE, text=True)
    os.close(reader)
    try:
        assert holder.stdout is not None
        if holder.stdout.readline() != "ready\n":
            raise Failed("cannot make a network namespace")
        yield f"/proc/{holder.pid}/ns/net"
    finally:
        os.close(writer)
        holder.wait(DAEMON_TIMEOUT)


def unmount_below(folders: Sequence[Path]) -> None:
    """Take down mounts that a killed daemon left."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in reversed(points):
        if any(point == str(f) or point.startswith(f"{f}/") for f in folders):
            subprocess.run(["umount", "-l", point], check=False)


@contextmanager
def scratch() -> Iterator[tuple[Path, Path]]:
    """A short folder for sockets and a roomy one for data; both are gone afterwards."""
    run_dir = Path(tempfile.mkdtemp(prefix="kata-demo-", dir="/run"))
    data = Path(tempfile.mkdtemp(prefix="kata-demo-", dir="/var/tmp"))
    try:
        yield run_dir, data
    finally:
        unmount_below((run_dir, data))
        shutil.rmtree(run_dir, ignore_errors=True)
        shutil.rmtree(data, ignore_errors=True)


def demonstrate() -> list[tuple[str, str]]:
    seen = [("host", " ".join(os.uname()[i] for i in (0, 2, 3)))]
    with scratch() as (run_dir, data):
        say("making a root file system of busybox")
        bundle = data / "bundle"
        make_rootfs(bundle / "rootfs")
        make_bundle(bundle, UNAME)
        name = f"demo-{os.getpid()}"
        for flavor in RUNTIMES:
            say(f"kata run, flavor {flavor}: a virtual machine boots, runs one process, and is gone")
            seen.append((f"kata run, {flavor}", run([KATA, "--flavor", flavor, "run", "--bundle", str(bundle), name])))

        archive = data / "rootfs.tar"
        with tarfile.open(archive, "w") as tar:
            tar.add(bundle / "rootfs", ".")
        with private_docker(run_dir, data) as docker:
            run([*docker, "import", str(archive), "busybox"], show=False)
            say("docker run: the same, asked for by docker, by the names that the originals had there")
            for runtime in RUNTIMES.values():
                seen.append((f"docker run, {runtime}",
                             run([*docker, "run", "--rm", "--runtime", runtime, "busybox", *UNAME])))
            say("a container that stays: exec, a pipe into the guest, its network")
            run([*docker, "run", "-d", "--runtime", "kata", "--name", name, "busybox", "sleep", "1000"])
            run([*docker, "exec", "-i", name, "sh", "-c", "tr a-z A-Z; hostname; ip -4 addr show eth0"],
                input="a pipe into the guest\n")
            seen.append(("docker exec", run([*docker, "exec", name, *UNAME])))
            run([*docker, "rm", "-f", name])
    return seen


def main() -> int:
    if os.geteuid() != 0:
        print("the demonstration needs root", file=sys.stderr)
        return 1
    try:
        seen = demonstrate()
    except (Failed, subprocess.TimeoutExpired) as e:
        print(f"demo: {e}", file=sys.stderr)
        return 1
    print("\nwho ran uname           what it said")
    for who, kernel in seen:
        print(f"{who:22}  {kernel}")
    host = seen[0][1]
    if any(kernel == host for _, kernel in seen[1:]):
        print("demo: a container met the host's kernel", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
