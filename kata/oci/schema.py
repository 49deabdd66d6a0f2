"""What config.json may hold: runtime-spec 1.2, "config" and "config-linux", as checks.

Where the specification lets a runtime choose, an unknown value is refused with
its name: capabilities, rlimits, namespaces, seccomp actions and operators,
schedulers, I/O classes.  Unknown *system calls* are left to the compiler of
the filter (:mod:`kata.seccomp`), which knows the architecture.
"""

from __future__ import annotations

from kata.errors import BundleError
from kata.oci import check as c

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def _names(prefix: str, rest: str) -> frozenset[str]:
    return frozenset(prefix + name for name in rest.split())


CAPABILITIES = _names(
    "CAP_",
    "AUDIT_CONTROL AUDIT_READ AUDIT_WRITE BLOCK_SUSPEND BPF CHECKPOINT_RESTORE CHOWN DAC_OVERRIDE "
    "DAC_READ_SEARCH FOWNER FSETID IPC_LOCK IPC_OWNER KILL LEASE LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE MKNOD "
    "NET_ADMIN NET_BIND_SERVICE NET_BROADCAST NET_RAW PERFMON SETFCAP SETGID SETPCAP SETUID SYSLOG SYS_ADMIN "
    "SYS_BOOT SYS_CHROOT SYS_MODULE SYS_NICE SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_RESOURCE SYS_TIME "
    "SYS_TTY_CONFIG WAKE_ALARM")
RLIMITS = _names("RLIMIT_", "AS CORE CPU DATA FSIZE LOCKS MEMLOCK MSGQUEUE NICE NOFILE NPROC RSS RTPRIO RTTIME "
                            "SIGPENDING STACK")
NAMESPACES = _names("", "pid network mount ipc uts user cgroup time")
PROPAGATION = _names("", "shared slave private unbindable rshared rslave rprivate runbindable") | {""}
SECCOMP_ACTIONS = _names("SCMP_ACT_", "KILL KILL_PROCESS KILL_THREAD TRAP ERRNO TRACE ALLOW LOG NOTIFY")
SECCOMP_OPERATORS = _names("SCMP_CMP_", "NE LT LE EQ GE GT MASKED_EQ")
SECCOMP_FLAGS = _names("SECCOMP_FILTER_FLAG_", "TSYNC LOG SPEC_ALLOW WAIT_KILLABLE_RECV")
SECCOMP_ARCHES = _names(
    "SCMP_ARCH_",
    "X86 X86_64 X32 ARM AARCH64 MIPS MIPS64 MIPS64N32 MIPSEL MIPSEL64 MIPSEL64N32 PPC PPC64 PPC64LE "
    "S390 S390X PARISC PARISC64 RISCV64 LOONGARCH64 M68K SH SHEB")
SCHEDULERS = _names("SCHED_", "OTHER FIFO RR BATCH ISO IDLE DEADLINE")
SCHEDULER_FLAGS = _names("SCHED_FLAG_", "RESET_ON_FORK RECLAIM DL_OVERRUN KEEP_POLICY KEEP_PARAMS UTIL_CLAMP_MIN "
                                        "UTIL_CLAMP_MAX")
HOST_NAME_MAX = 64  #: bytes, uname(2)


# --- rules that look at more than one value ------------------------------------------


def _rlimits(value: Any, at: str, notes: list[str]) -> None:
    c.array(_RLIMIT)(value, at, notes)
    _unique(at, (r["type"] for r in value))


def _unique(at: str, names: Any) -> None:
    seen: set[str] = set()
    for i, name in enumerate(names):
        if name in seen:
            raise BundleError(f"{at}[{i}]: {c.shown(name)} is there twice")
        seen.add(name)


def _rlimit(value: Any, at: str, notes: list[str]) -> None:
    if value["soft"] > value["hard"]:
        raise BundleError(f"{at}: the soft limit of {value['type']} exceeds the hard limit")


def _namespaces(value: Any, at: str, notes: list[str]) -> None:
    c.array(_NAMESPACE)(value, at, notes)
    _unique(at, (n["type"] for n in value))


def _mounts(value: Any, at: str, notes: list[str]) -> None:
    """A destination may be covered by a later mount, as with runc; the same mount twice is a mistake."""
    c.array(_MOUNT)(value, at, notes)
    seen: dict[tuple[str, str, str], int] = {}
    places: set[str] = set()
    for i, m in enumerate(value):
        key = (m["destination"], m.get("source", ""), m.get("type", ""))
        if key in seen:
            raise BundleError(f"{at}[{i}]: {c.shown(m['destination'])} is mounted already by {at}[{seen[key]}]",
                              "remove one of the two")
        if m["destination"] in places:
            c.note(notes, f"{at}[{i}].destination: {c.shown(m['destination'])} covers an earlier mount")
        seen[key] = i
        places.add(m["destination"])


def _destination(value: Any, at: str, notes: list[str]) -> None:
    if not c.clean_string(value, at):
        raise BundleError(f"{at}: is empty")
    c.no_dots(value, at)
    if not value.strip("/."):
        raise BundleError(f"{at}: a mount on '/' would hide the root file system", "set root.path instead")


def _mount(value: Any, at: str, notes: list[str]) -> None:
    """A relative destination starts at "/" (runtime-spec, "Mounts"); one spelling for all."""
    value["destination"] = "/" + "/".join(p for p in value["destination"].split("/") if p not in ("", "."))
    if bool(value.get("uidMappings")) != bool(value.get("gidMappings")):
        raise BundleError(f"{at}: uidMappings and gidMappings must be given together")


def _sysctl(value: Any, at: str, notes: list[str]) -> None:
    c.table(c.string)(value, at, notes)
    for key in value:
        if key.startswith("/") or ".." in key:
            raise BundleError(f"{at}: {c.shown(key)} is not the name of a kernel parameter")


def _device(value: Any, at: str, notes: list[str]) -> None:
    if value["type"] != "p":
        for key in ("major", "minor"):
            if key not in value:
                raise BundleError(f"{at}.{key}: is missing")


def _access(value: Any, at: str, notes: list[str]) -> None:
    if c.clean_string(value, at).strip("rwm"):
        raise BundleError(f"{at}: {c.shown(value)} holds other letters than r, w and m")


def _variable(value: Any, at: str, notes: list[str]) -> None:
    if "=" not in c.clean_string(value, at):
        raise BundleError(f"{at}: {c.shown(value)} is not NAME=VALUE")


def _cwd(value: Any, at: str, notes: list[str]) -> None:
    if not c.clean_string(value, at).startswith("/"):
        raise BundleError(f"{at}: an absolute path is expected, found {c.shown(value)}")


def _process(value: Any, at: str, notes: list[str]) -> None:
    size = value.get("consoleSize")
    if size and not value.get("terminal"):
        c.note(notes, f"{at}.consoleSize: means nothing without a terminal")


def _swappiness(value: Any, at: str, notes: list[str]) -> None:
    if value != c.UINT64:  # docker writes -1, "leave it", into this unsigned field
        c.integer(0, 200)(value, at, notes)


def _version(value: Any, at: str, notes: list[str]) -> None:
    major, dot, _rest = c.clean_string(value, at).partition(".")
    if major != "1" or not dot:
        raise BundleError(f"{at}: version {c.shown(value)} of the runtime-spec is not supported", "1.0 to 1.2 are")


def _seccomp_call(value: Any, at: str, notes: list[str]) -> None:
    for i, name in enumerate(value["names"]):
        if not name or name.strip("abcdefghijklmnopqrstuvwxyz0123456789_"):
            raise BundleError(f"{at}.names[{i}]: {c.shown(name)} is not the name of a system call")


def _elsewhere(system: str) -> c.Check:
    def check(value: Any, at: str, notes: list[str]) -> None:
        raise BundleError(f"{at}: is for {system}", "this runtime runs Linux containers; remove the section")

    return check


# --- the tables ------------------------------------------------------------------------

_strings = c.array(c.string)
_capabilities = c.array(c.choice("capability", CAPABILITIES))
_mode = c.integer(0, c.UINT32)
_id = c.integer(0, c.UINT32 - 1)  # the highest is "no user" to the kernel
_ID_MAPS = c.array(c.record(
    {"containerID": c.uint32, "hostID": c.uint32, "size": c.uint32}, ("containerID", "hostID", "size")))
_RLIMIT = c.record({"type": c.choice("rlimit", RLIMITS), "soft": c.uint64, "hard": c.uint64},
                   ("type", "soft", "hard"), _rlimit)
_NAMESPACE = c.record({"type": c.choice("namespace", NAMESPACES), "path": c.host_path}, ("type",))
_MOUNT = c.named(c.record(
    {"destination": _destination, "type": c.string, "source": c.string, "options": _strings,
     "uidMappings": _ID_MAPS, "gidMappings": _ID_MAPS}, ("destination",), _mount), "destination")
_HOOK = c.array(c.record(
    {"path": c.host_path, "args": _strings, "env": _strings, "timeout": c.integer(1, 2**31)}, ("path",)))

HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")

PROCESS = c.record({
    "terminal": c.boolean,
    "consoleSize": c.record({"height": c.integer(0, 65535), "width": c.integer(0, 65535)}, ("height", "width")),
    "user": c.record({"uid": _id, "gid": _id, "umask": c.integer(0, 0o777),
                      "additionalGids": c.array(_id), "username": c.string}),
    "args": c.array(c.string, least=1),
    "commandLine": _elsewhere("Windows"),
    "env": c.array(_variable),
    "cwd": _cwd,
    "capabilities": c.record(
        dict.fromkeys(("bounding", "effective", "inheritable", "permitted", "ambient"), _capabilities)),
    "rlimits": _rlimits,
    "noNewPrivileges": c.boolean,
    "apparmorProfile": c.string,
    "selinuxLabel": c.string,
    "oomScoreAdj": c.integer(-1000, 1000),
    "scheduler": c.record({
        "policy": c.choice("scheduling policy", SCHEDULERS), "nice": c.integer(-20, 19),
        "priority": c.integer(0, 99), "flags": c.array(c.choice("scheduling flag", SCHEDULER_FLAGS)),
        "runtime": c.uint64, "deadline": c.uint64, "period": c.uint64}, ("policy",)),
    "ioPriority": c.record({
        "class": c.choice("I/O class", ("IOPRIO_CLASS_RT", "IOPRIO_CLASS_BE", "IOPRIO_CLASS_IDLE")),
        "priority": c.integer(0, 7)}, ("class",)),
    "execCPUAffinity": c.record({"initial": c.string, "final": c.string}),
}, ("args", "cwd"), _process)

_rate = c.array(c.record({"major": c.int64, "minor": c.int64, "rate": c.uint64}, ("major", "minor", "rate")))
_limit = c.integer(-1, c.INT64)  # -1: none
_weight = c.integer(0, 1000)
RESOURCES = c.record({
    "devices": c.array(c.record({
        "allow": c.boolean, "type": c.choice("device type", ("a", "b", "c", "")),
        "major": c.int64, "minor": c.int64, "access": _access}, ("allow",))),
    "memory": c.record({
        **dict.fromkeys(("limit", "reservation", "swap", "kernel", "kernelTCP"), _limit),
        "swappiness": _swappiness,
        **dict.fromkeys(("disableOOMKiller", "useHierarchy", "checkBeforeUpdate"), c.boolean)}),
    "cpu": c.record({
        "shares": c.uint64, "quota": c.int64, "burst": c.uint64, "period": c.uint64,
        "realtimeRuntime": c.int64, "realtimePeriod": c.uint64, "cpus": c.string, "mems": c.string,
        "idle": c.integer(0, 1)}),
    "pids": c.record({"limit": c.int64}),
    "blockIO": c.record({
        "weight": _weight, "leafWeight": _weight,
        "weightDevice": c.array(c.record({"major": c.int64, "minor": c.int64, "weight": _weight,
                                          "leafWeight": _weight}, ("major", "minor"))),
        "throttleReadBpsDevice": _rate, "throttleWriteBpsDevice": _rate,
        "throttleReadIOPSDevice": _rate, "throttleWriteIOPSDevice": _rate}),
    "hugepageLimits": c.array(c.record({"pageSize": c.string, "limit": c.uint64}, ("pageSize", "limit"))),
    "network": c.record({"classID": c.uint32,
                         "priorities": c.array(c.record({"name": c.string, "priority": c.uint32},
                                                        ("name", "priority")))}),
    "rdma": c.table(c.record({"hcaHandles": c.uint32, "hcaObjects": c.uint32})),
    "unified": c.table(c.string),
})

SECCOMP = c.record({
    "defaultAction": c.choice("seccomp action", SECCOMP_ACTIONS),
    "defaultErrnoRet": c.integer(0, 4095),
    "architectures": c.array(c.choice("architecture", SECCOMP_ARCHES)),
    "flags": c.array(c.choice("seccomp flag", SECCOMP_FLAGS)),
    "listenerPath": c.string, "listenerMetadata": c.string,
    "syscalls": c.array(c.record({
        "names": c.array(c.string, least=1),
        "action": c.choice("seccomp action", SECCOMP_ACTIONS),
        "errnoRet": c.integer(0, 4095),
        "args": c.array(c.record({
            "index": c.integer(0, 5), "value": c.uint64, "valueTwo": c.uint64,
            "op": c.choice("seccomp operator", SECCOMP_OPERATORS)}, ("index", "value", "op"))),
    }, ("names", "action"), _seccomp_call)),
}, ("defaultAction",))

LINUX = c.record({
    "uidMappings": _ID_MAPS, "gidMappings": _ID_MAPS,
    "sysctl": _sysctl,
    "resources": RESOURCES,
    "cgroupsPath": c.string,
    "namespaces": _namespaces,
    "devices": c.array(c.named(c.record({
        "path": c.inner_path, "type": c.choice("device type", ("c", "b", "u", "p")), "major": c.int64,
        "minor": c.int64, "fileMode": _mode, "uid": _id, "gid": _id}, ("path", "type"), _device), "path")),
    "seccomp": SECCOMP,
    "rootfsPropagation": c.choice("mount propagation", PROPAGATION),
    "maskedPaths": c.array(c.inner_path), "readonlyPaths": c.array(c.inner_path),
    "mountLabel": c.string,
    "intelRdt": c.record(dict.fromkeys(("closID", "l3CacheSchema", "memBwSchema"), c.string)
                         | dict.fromkeys(("enableCMT", "enableMBM"), c.boolean)),
    "personality": c.record({"domain": c.choice("personality", ("LINUX", "LINUX32")),
                             "flags": c.array(c.choice("personality flag", ()))}, ("domain",)),
    "timeOffsets": c.record({k: c.record({"secs": c.int64, "nanosecs": c.uint32}) for k in ("monotonic", "boottime")}),
})

CONFIG = c.record({
    "ociVersion": _version,
    "process": PROCESS,
    "root": c.record({"path": c.string, "readonly": c.boolean}, ("path",)),
    "hostname": c.text(HOST_NAME_MAX), "domainname": c.text(HOST_NAME_MAX),
    "mounts": _mounts,
    "hooks": c.record(dict.fromkeys(HOOKS, _HOOK)),
    "annotations": c.table(c.string),
    "linux": LINUX,
    **{k: _elsewhere(k) for k in ("windows", "solaris", "vm", "zos", "freebsd")},
}, ("ociVersion", "process", "root", "linux"))
