"""docker run: what a container finds, with docker's defaults and with every option that shapes it."""

from __future__ import annotations

from functools import partial

from kata.conformance.case import Seen, case
from kata.conformance.cases.docker_fixtures import DockerSubject, needs_all_capabilities
from kata.conformance.engines.docker import IMAGE

docker = partial(case, "docker")

REFUSED_READ = "Read-only file system"
DEFAULT_CAPABILITIES = "00000000a80425fb"


# --- defaults ------------------------------------------------------------------


@docker("run-identity", "the first process is root of the image, in /, without further groups", identity="0\n0\n0\n/")
def identity(d: DockerSubject) -> Seen:
    return {"identity": d.plain["identity"]}


@docker("run-capabilities", "docker's fourteen capabilities: permitted, effective and bounding; none ambient",
        sets="\n".join([DEFAULT_CAPABILITIES] * 3 + ["0" * 16]))
def capabilities(d: DockerSubject) -> Seen:
    return {"sets": d.plain["capabilities"]}


@docker("run-seccomp-default", "docker's default profile filters: mode 2, what it refuses is refused",
        mode="2", mount="refused\nrefused")
def seccomp(d: DockerSubject) -> Seen:
    return {"mode": d.plain["seccomp"], "mount": d.plain["mount"]}


@docker("run-environment", "the image's variables, HOME of the user, HOSTNAME", env="image /root\nsame")
def environment(d: DockerSubject) -> Seen:
    return {"env": d.plain["env"]}


@docker("run-first-process", "the command is pid 1 of a pid namespace of its own", pid="1", alone=True)
def first_process(d: DockerSubject) -> Seen:
    return {"pid": d.plain["first"], "alone": int(d.plain["processes"]) < 8}


@docker("run-names", "host name, /etc/hostname and /etc/hosts agree; the name is the container's short id",
        names="1\n13")
def names(d: DockerSubject) -> Seen:
    return {"names": d.plain["names"]}


@docker("run-files-of-docker", "hosts, hostname and resolv.conf are docker's files, one mount each", files="1\n1\n1",
        resolver=True)
def files_of_docker(d: DockerSubject) -> Seen:
    return {"files": d.plain["files"], "resolver": int(d.plain["resolver"]) > 0}


@docker("run-shm", "/dev/shm is 64 MiB and for everyone", shm="65536\n1777")
def shm(d: DockerSubject) -> Seen:
    return {"shm": d.plain["shm"]}


@docker("run-masked-paths", "masked files are empty and masked folders too", masked="0\n0\n0\n0\n0")
def masked_paths(d: DockerSubject) -> Seen:
    return {"masked": d.plain["masked"]}


@docker("run-readonly-paths", "sysctls, sysrq, sysfs and cgroups cannot be written",
        refused=f"{REFUSED_READ}\n /sys ro\nrefused")
def readonly_paths(d: DockerSubject) -> Seen:
    return {"refused": d.plain["readonly"]}


@docker("run-devices", "/dev holds the default devices and nothing of the host's",
        names="fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero",
        numbers="/dev/null 666 1,3|/dev/zero 666 1,5|/dev/full 666 1,7|/dev/random 666 1,8|/dev/urandom 666 1,9"
        "|/dev/tty 666 5,0")
def devices(d: DockerSubject) -> Seen:
    first, _, rest = d.plain["devices"].partition("/dev/null")
    lines = f"/dev/null{rest}".replace(" character special file", "").splitlines()
    return {"names": first.strip(), "numbers": "|".join(lines)}


@docker("run-device-cgroup", "a device node that was made inside cannot be opened", disk="refused")
def device_cgroup(d: DockerSubject) -> Seen:
    return {"disk": d.plain["mknod"]}


@docker("run-root", "the root is the image's, modes and owners kept, and can be written",
        root="0 644\n755 /\n1777 /tmp\n700 /root\n755 /home/user\nuser", tmp="/tmp/t")
def root(d: DockerSubject) -> Seen:
    return {"root": d.plain["root"], "tmp": d.plain["tmp"]}


@docker("run-no-input", "without -i and -t standard input is at its end and nothing is a terminal", stdin="1",
        tty="no\nno")
def no_input(d: DockerSubject) -> Seen:
    return {"stdin": d.plain["stdin"], "tty": d.plain["tty"]}


@docker("run-namespaces", "pid, mount, network, ipc and uts namespaces", kinds="pid mnt net ipc uts")
def namespaces(d: DockerSubject) -> Seen:
    return {"kinds": " ".join(d.plain["namespaces"].split())}


@docker("run-kernel", "which kernel a container runs on: the host's or one of its own")
def kernel(d: DockerSubject) -> Seen:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as host:
        return {"kernel": "the host's" if d.plain["kernel"] == host.read().strip() else "its own",
                "machine": d.plain["arch"]}


# --- options --------------------------------------------------------------------


@docker("option-user", "--user and --group-add, by number and by name", user="1000\n100\n29 44 100")
def user(d: DockerSubject) -> Seen:
    return {"user": d.dressed["user"]}


@docker("option-workdir", "--workdir is made when it does not exist", cwd="/made/here")
def workdir(d: DockerSubject) -> Seen:
    return {"cwd": d.dressed["cwd"]}


@docker("option-env", "-e beside the image's variables", env="1 / two words / image")
def env(d: DockerSubject) -> Seen:
    return {"env": d.dressed["env"]}


@docker("option-hostname", "--hostname, also in /etc/hostname", hostname="named\nnamed")
def hostname(d: DockerSubject) -> Seen:
    return {"hostname": d.dressed["hostname"]}


@docker("option-domainname", "--domainname reaches the kernel", domain="example.org")
def domainname(d: DockerSubject) -> Seen:
    return {"domain": d.dressed["domain"]}


@docker("option-add-host", "--add-host with both families", hosts="10.9.8.7 friend\nfd00::6 six")
def add_host(d: DockerSubject) -> Seen:
    return {"hosts": d.dressed["hosts"]}


@docker("option-dns", "--dns, --dns-search and --dns-option are in resolv.conf",
        resolver="nameserver 10.1.1.1\noptions ndots:3\nsearch lan.test")
def dns(d: DockerSubject) -> Seen:
    return {"resolver": "\n".join(sorted(d.dressed["resolver"].splitlines()))}


@docker("option-ulimit", "--ulimit: soft and hard", ulimits="500\n600\n0")
def ulimit(d: DockerSubject) -> Seen:
    return {"ulimits": d.dressed["ulimits"]}


@docker("option-sysctl", "--sysctl of the network namespace", sysctls="999\n80")
def sysctl(d: DockerSubject) -> Seen:
    return {"sysctls": d.dressed["sysctls"]}


@docker("option-tmpfs", "--tmpfs: size, mode, and docker's flags", tmpfs="1777\n1024\nx",
        flags="nodev\nnoexec\nnosuid")
def tmpfs(d: DockerSubject) -> Seen:
    return {"tmpfs": d.dressed["tmpfs"], "flags": d.dressed["tmpflags"]}


@docker("option-shm-size", "--shm-size", shm="8192")
def shm_size(d: DockerSubject) -> Seen:
    return {"shm": d.dressed["shm"]}


@docker("option-read-only", "--read-only: the root cannot be written, a tmpfs can", readonly=f"{REFUSED_READ}\nok")
def read_only(d: DockerSubject) -> Seen:
    return {"readonly": d.dressed["readonly"]}


@docker("option-no-new-privileges", "--security-opt no-new-privileges", nnp="1", default="0")
def no_new_privileges(d: DockerSubject) -> Seen:
    return {"nnp": d.dressed["nnp"], "default": d.plain["nnp"]}


@docker("option-capabilities", "--cap-drop ALL --cap-add: the bounding set; none effective for a user",
        bounding="0000000002001000", effective="0000000000000000")
def cap_add(d: DockerSubject) -> Seen:
    return {"bounding": d.dressed["bounding"], "effective": d.dressed["effective"]}


@docker("option-oom-score", "--oom-score-adj", score="123")
def oom_score(d: DockerSubject) -> Seen:
    return {"score": d.dressed["oom"]}


@docker("option-memory", "--memory is the limit of the container's cgroup", limit=str(128 << 20))
def memory(d: DockerSubject) -> Seen:
    return {"limit": d.dressed["memory"]}


@docker("option-cpus", "--cpus is the quota of the container's cgroup", quota="50000")
def cpus(d: DockerSubject) -> Seen:
    return {"quota": d.dressed["cpu"]}


@docker("option-cpuset", "--cpuset-cpus", cpus="1\n0")
def cpuset(d: DockerSubject) -> Seen:
    return {"cpus": d.dressed["cpuset"]}


@docker("option-pids-limit", "--pids-limit", limit="77")
def pids_limit(d: DockerSubject) -> Seen:
    return {"limit": d.dressed["pids"]}


@docker("option-init", "--init: docker's init is pid 1, the command its child, orphans are reaped",
        init="docker-init\nchild", zombies="0")
def init(d: DockerSubject) -> Seen:
    return {"init": d.dressed["init"], "zombies": d.dressed["orphans"]}


@docker("option-label", "--label and the image's: seen by inspect and ps, not inside", labels="test yes", inside="0",
        found=True)
def label(d: DockerSubject) -> Seen:
    labels = d.inspect(d.dressed_box)["Config"]["Labels"]
    found = d("ps", "--filter", "label=dressed=yes", "--format", "{{.Names}}").ok().out.split()
    return {"labels": f"{labels.get('kind')} {labels.get('dressed')}", "inside": d.dressed["labels"],
            "found": d.dressed_box in found}


@docker("option-seccomp-profile", "--security-opt seccomp=FILE: a user's own filter", result="refused", mode="2")
def seccomp_profile(d: DockerSubject) -> Seen:
    profile = d.docker.folder / f"seccomp-{d.runtime}.json"
    profile.write_text('{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"],'
                       ' "action": "SCMP_ACT_ERRNO"}]}')
    got = d.once("mkdir /tmp/d 2>/dev/null && echo made || echo refused; sed -n 's/^Seccomp:.//p' /proc/self/status",
                 "--security-opt", f"seccomp={profile}").out.split()
    return {"result": got[0], "mode": got[1]}


@docker("option-privileged", "--privileged: all capabilities, no filter, mounts and sysctls of its kernel",
        capabilities="all", seccomp="0", mount="ok", sysctl="1", cgroup="ok")
def privileged(d: DockerSubject) -> Seen:
    said = d.once(
        "sed -n 's/^CapEff:.//p' /proc/self/status; sed -n 's/^Seccomp:.//p' /proc/self/status;"
        "mount -t tmpfs x /mnt && echo ok; echo 1 > /proc/sys/net/ipv4/ip_forward; cat /proc/sys/net/ipv4/ip_forward;"
        "(mkdir /sys/fs/cgroup/pids/own 2>/dev/null || mkdir /sys/fs/cgroup/own) && echo ok", "--privileged")
    if said.code:
        needs_all_capabilities(said.stderr)
    eff, mode, mount, forward, group = said.ok().out.split()
    with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as last:
        everything = int(eff, 16).bit_count() >= min(int(last.read()), 37)
    return {"capabilities": "all" if everything else eff, "seccomp": mode, "mount": mount, "sysctl": forward,
            "cgroup": group}


# --- how a run ends ----------------------------------------------------------------


@docker("exit-code-and-streams", "the process's own exit code; input to its end; output and errors apart",
        code=42, output="through", errors="errors")
def exit_code(d: DockerSubject) -> Seen:
    got = d.once("cat; echo errors >&2; exit 42", "-i", input="through")
    return {"code": got.code, "output": got.out, "errors": got.stderr.strip()}


@docker("program-missing", "127 and the reason when the program does not exist; no container is left running",
        code=127, named=True, reason=True)
def program_missing(d: DockerSubject) -> Seen:
    got = d("run", "--rm", "--runtime", d.entry, IMAGE, "/no/such/program")
    return {"code": got.code, "named": "/no/such/program" in got.stderr,
            "reason": "no such file or directory" in got.stderr}


@docker("program-not-executable", "126 and the reason when the program may not be executed", code=126, reason=True)
def program_not_executable(d: DockerSubject) -> Seen:
    got = d("run", "--rm", "--runtime", d.entry, IMAGE, "/etc/passwd")
    return {"code": got.code, "reason": "permission denied" in got.stderr}


@docker("bad-sysctl", "a sysctl that does not exist fails the start, by name; nothing is left", failed=True, named=True,
        left=0)
def bad_sysctl(d: DockerSubject) -> Seen:
    name = d.name()
    got = d.once("true", "--sysctl", "net.nosuch.key=1", "--name", name)
    left = d("ps", "-aq", "--filter", f"name={name}").out.split()
    return {"failed": got.code != 0, "named": "nosuch" in got.stderr, "left": len(left)}


@docker("run-terminal", "-t: a terminal inside, one stream with carriage returns", output="tty\r\nerr\r\n", code=6)
def terminal(d: DockerSubject) -> Seen:
    got = d.once("test -t 0 && test -t 1 && echo tty; echo err >&2; exit 6", "-t")
    return {"output": got.stdout, "code": got.code}


@docker("entrypoint", "create, then start -a: --entrypoint with the command as its arguments", status="created",
        output="one two", code=0)
def entrypoint(d: DockerSubject) -> Seen:
    name = d.name()
    d("create", "--runtime", d.entry, "--name", name, "--entrypoint", "/bin/echo", IMAGE, "one", "two").ok()
    status = d.state(name)["Status"]
    got = d("start", "-a", name)
    d.remove(name)
    return {"status": status, "output": got.out, "code": got.code}
