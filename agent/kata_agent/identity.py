"""What a process is: arguments, user, capabilities, limits.

:class:`ProcessPlan` is made and checked by the agent; :func:`prepare` and
:func:`seal` apply it in the child, in the order the kernel's rules leave.
"""

from __future__ import annotations

import errno
import os
import resource
import stat

from kata_agent import log, users
from kata_agent.errors import invalid
from kata_agent.linux import capability
from kata_agent.linux import syscalls as sc
from kata_agent.protocol import guest_pb2, oci_pb2

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import NoReturn

_INFINITY = (1 << 64) - 1
_SYS_ADMIN = 1 << capability.NUMBERS["CAP_SYS_ADMIN"]
_SCHEDULERS = {"SCHED_OTHER": 0, "SCHED_FIFO": 1, "SCHED_RR": 2, "SCHED_BATCH": 3, "SCHED_ISO": 4, "SCHED_IDLE": 5}
_RLIMITS = {
    name: getattr(resource, name)
    for name in ("RLIMIT_AS", "RLIMIT_CORE", "RLIMIT_CPU", "RLIMIT_DATA", "RLIMIT_FSIZE", "RLIMIT_MEMLOCK",
                 "RLIMIT_MSGQUEUE", "RLIMIT_NICE", "RLIMIT_NOFILE", "RLIMIT_NPROC", "RLIMIT_RSS", "RLIMIT_RTPRIO",
                 "RLIMIT_RTTIME", "RLIMIT_SIGPENDING", "RLIMIT_STACK")
    if hasattr(resource, name)
} | {"RLIMIT_LOCKS": 10, "RLIMIT_RTTIME": 15}


class StageError(Exception):
    """A step in the child that failed.

    :param stage: what was being done.
    :param code: errno, 0 if it was no system call.
    :param text: what failed and why; shown as it is.
    """

    def __init__(self, stage: str, code: int, text: str) -> None:
        super().__init__(text)
        self.stage = stage
        self.code = code
        self.text = text


class Capabilities:
    """The five sets, as bit masks."""

    __slots__ = ("ambient", "bounding", "effective", "inheritable", "permitted")

    def __init__(self, sets: oci_pb2.LinuxCapabilities) -> None:
        self.bounding = _mask(sets.Bounding)
        self.effective = _mask(sets.Effective)
        self.inheritable = _mask(sets.Inheritable)
        self.permitted = _mask(sets.Permitted)
        self.ambient = _mask(sets.Ambient)


def _mask(names: Iterable[str]) -> int:
    try:
        asked = capability.to_mask(names)
    except KeyError as error:
        raise invalid(f"unknown capability {error.args[0]}") from None
    known = (2 << capability.last_cap()) - 1
    if asked & ~known:
        log.warning(f"this kernel has no {' '.join(capability.to_names(asked & ~known))}")
    return asked & known


class ProcessPlan:
    """One process, checked as far as that is possible outside of the container."""

    __slots__ = (
        "affinity", "args", "capabilities", "columns", "cwd", "env", "gid", "groups", "io_class", "io_priority",
        "names", "no_new_privileges", "oom_score_adj", "rlimits", "rows", "scheduler", "seccomp", "seccomp_flags",
        "terminal", "uid", "umask",
    )

    def __init__(
        self, process: oci_pb2.Process, extras: guest_pb2.ProcessExtras, names: tuple[str, str, tuple[str, ...]] | None
    ) -> None:
        if not process.Args:
            raise invalid("process.args must not be empty")
        if any("\0" in text for text in (*process.Args, *process.Env, process.Cwd)):
            raise invalid("a zero byte in the arguments, the environment or the working directory")
        self.args = list(process.Args)
        self.env = dict(entry.split("=", 1) for entry in process.Env if "=" in entry[1:])
        self.cwd = process.Cwd or "/"
        if not self.cwd.startswith("/"):
            raise invalid(f"process.cwd must be absolute, not {self.cwd!r}")
        self.terminal = process.Terminal
        self.rows = min(process.ConsoleSize.Height, 0xFFFF)
        self.columns = min(process.ConsoleSize.Width, 0xFFFF)
        self.uid = process.User.UID
        self.gid = process.User.GID
        self.groups = list(process.User.AdditionalGids)
        #: (user, group, additional groups) to look up in the container, or None.
        self.names = names
        if names is None and process.User.Username and not self.uid:
            self.names = (process.User.Username, "", tuple(map(str, self.groups)))
        self.umask = extras.umask & 0o777 if extras.has_umask else -1
        self.capabilities = Capabilities(process.Capabilities)
        self.rlimits = [_rlimit(limit) for limit in process.Rlimits]
        if len({kind for kind, _soft, _hard in self.rlimits}) < len(self.rlimits):
            raise invalid("a resource limit is given twice")
        self.no_new_privileges = process.NoNewPrivileges
        self.oom_score_adj: int | None = None
        if extras.has_oom_score_adj or process.OOMScoreAdj:
            if not -1000 <= process.OOMScoreAdj <= 1000:
                raise invalid(f"oomScoreAdj {process.OOMScoreAdj} is not in -1000..1000")
            self.oom_score_adj = process.OOMScoreAdj
        self.seccomp = extras.seccomp_bpf
        if len(self.seccomp) % 8 or len(self.seccomp) > 8 * 4096:
            raise invalid(f"a seccomp program cannot have {len(self.seccomp)} bytes")
        self.seccomp_flags = extras.seccomp_flags
        self.io_class = extras.io_priority_class
        self.io_priority = extras.io_priority
        self.scheduler: tuple[int, int, int] | None = None
        if extras.has_scheduler:
            if extras.scheduler_policy not in _SCHEDULERS:
                raise invalid(f"unknown scheduler policy {extras.scheduler_policy!r}")
            self.scheduler = (_SCHEDULERS[extras.scheduler_policy], extras.scheduler_nice, extras.scheduler_priority)
        #: processors of an exec'd process, before and after it is in its cgroup.
        self.affinity = [cpu_list(text) for text in extras.exec_cpu_affinity[:2]]


def _rlimit(limit: oci_pb2.POSIXRlimit) -> tuple[int, int, int]:
    if limit.Type not in _RLIMITS:
        raise invalid(f"unknown resource limit {limit.Type!r}")
    if limit.Soft > limit.Hard:
        raise invalid(f"{limit.Type}: the soft limit {limit.Soft} is above the hard limit {limit.Hard}")
    soft, hard = (-1 if value == _INFINITY else value for value in (limit.Soft, limit.Hard))
    return _RLIMITS[limit.Type], soft, hard


def cpu_list(text: str) -> set[int]:
    """Processors of a list such as "0-2,4".

    :raise AgentError: INVALID_ARGUMENT, it is no such list.
    """
    result: set[int] = set()
    for part in filter(None, text.replace(" ", "").split(",")):
        first, dash, last = part.partition("-")
        if not part.isascii() or not first.isdigit() or not (last if dash else first).isdigit():
            raise invalid(f"{text!r} is no list of processors")
        low, high = int(first), int(last if dash else first)
        if low > high or high >= 8192:
            raise invalid(f"{text!r} is no list of processors")
        result.update(range(low, high + 1))
    return result


# --- in the child ------------------------------------------------------------------


def prepare(plan: ProcessPlan, stdio: tuple[int, ...], check: bool, first: bool) -> str:
    """Become the user of ``plan``; the path of its executable.

    Capabilities keep CAP_SYS_ADMIN until :func:`seal` where the seccomp filter
    needs it.  Runs with the container's root as root.

    :param stdio: descriptors that shall belong to the user.
    :param check: look at an executable that is named by its path, too; else :func:`execute` tells.
    :param first: of its container, whose working directory is made.
    :raise StageError: a step failed.
    """
    uid, gid, groups, home = plan.uid, plan.gid, plan.groups, ""
    if plan.names is not None:
        try:
            found = users.look_up(*plan.names)
        except users.UserError as error:
            raise StageError("user", 0, str(error)) from None
        uid, gid, groups, home = found.uid, found.gid, found.groups, found.home
    if "HOME" not in plan.env:
        plan.env["HOME"] = home or users.home_of(uid)
    _enter_cwd(plan.cwd, first)
    for fd in stdio:
        _give(fd, uid)
    _schedule(plan)
    for kind, soft, hard in plan.rlimits:
        try:
            resource.setrlimit(kind, (soft, hard))
        except (OSError, ValueError) as error:
            name = next(n for n, number in _RLIMITS.items() if number == kind)
            raise StageError("rlimit", errno.EPERM, f"error setting rlimit {name}: {error}") from None
    _become(plan, uid, gid, groups)
    if uid:
        _chdir(plan.cwd)
    if plan.umask >= 0:
        os.umask(plan.umask)
    else:
        os.umask(0o022)
    if "/" in plan.args[0] and not check:
        return plan.args[0]
    return executable(plan.args[0], plan.env.get("PATH", ""), keep=not check)


def execute(plan: ProcessPlan, path: str) -> NoReturn:
    """execve(2); ``path`` is what :func:`prepare` gave.

    :raise StageError: it failed.
    """
    try:
        os.execve(path, plan.args, plan.env)
    except OSError as error:
        executable(path, "")  # says it better, if that is why
        raise StageError("exec", error.errno or 0, f'exec: "{plan.args[0]}": {_reason(error)}') from None


def seal(plan: ProcessPlan) -> None:
    """The last steps before execve: no_new_privs, seccomp, the final capabilities."""
    if plan.no_new_privileges:
        sc.set_no_new_privs()
    caps = plan.capabilities
    if plan.seccomp:
        try:
            sc.seccomp_set_filter(plan.seccomp, plan.seccomp_flags)
        except OSError as error:
            text = f"cannot install the seccomp filter: {_reason(error)}"
            raise StageError("seccomp", error.errno or 0, text) from None
    if _extra(plan):
        permitted = caps.permitted | caps.effective
        capability.capset(caps.effective & permitted, permitted, caps.inheritable)


def _extra(plan: ProcessPlan) -> int:
    """CAP_SYS_ADMIN if it is needed to install the filter and the process is not to have it."""
    if not plan.seccomp or plan.no_new_privileges or plan.capabilities.effective & _SYS_ADMIN:
        return 0
    return _SYS_ADMIN


def _enter_cwd(cwd: str, make: bool) -> None:
    """As runc: a container's missing working directory is made, by root, inside it; that of an exec is an error."""
    # Each look at a path is several messages to the host, so it is not looked at first.
    try:
        os.chdir(cwd)
        return
    except OSError:
        if not make or os.path.lexists(cwd):
            _chdir(cwd)
            return
    try:
        os.makedirs(cwd, 0o755, exist_ok=True)
    except OSError as error:
        text = f'mkdir "{cwd}" (cwd set in config.json): {_reason(error)}'
        raise StageError("cwd", error.errno or 0, text) from None
    _chdir(cwd)


def _chdir(cwd: str) -> None:
    try:
        os.chdir(cwd)
    except OSError as error:
        text = f'chdir to cwd ("{cwd}") set in config.json failed: {_reason(error)}'
        raise StageError("cwd", error.errno or 0, text) from None


def _give(fd: int, uid: int) -> None:
    """Let the user reopen its pipes by /dev/stdout and the like."""
    try:
        info = os.fstat(fd)
        if info.st_uid != uid and not stat.S_ISREG(info.st_mode):
            os.fchown(fd, uid, -1)
    except OSError as error:
        # EPERM, EINVAL: a user namespace without that id; EROFS: a device of a read-only root.
        if error.errno not in (errno.EPERM, errno.EINVAL, errno.EROFS):
            raise


def _schedule(plan: ProcessPlan) -> None:
    try:
        if plan.io_class:
            sc.ioprio_set(0, plan.io_class, plan.io_priority)
        if plan.scheduler is not None:
            policy, nice, priority = plan.scheduler
            sc.sched_setattr(0, policy, nice=nice, priority=priority)
        if plan.affinity and plan.affinity[-1]:
            os.sched_setaffinity(0, plan.affinity[-1])
    except OSError as error:
        raise StageError("scheduler", error.errno or 0, f"cannot set the scheduler: {_reason(error)}") from None


def _become(plan: ProcessPlan, uid: int, gid: int, groups: list[int]) -> None:
    caps = plan.capabilities
    permitted = caps.permitted | caps.effective
    extra = _extra(plan)
    try:
        capability.limit_bounding(caps.bounding)
        _set_groups(groups)
        if gid:
            os.setresgid(gid, gid, gid)
        if uid:
            sc.set_keepcaps(True)
            os.setresuid(uid, uid, uid)
            sc.set_keepcaps(False)
        capability.capset(caps.effective | extra, permitted | extra, caps.inheritable)
        ambient = caps.ambient & caps.inheritable & permitted
        if ambient:
            capability.set_ambient(ambient)
    except OSError as error:
        raise StageError("identity", error.errno or 0, f"cannot become user {uid}:{gid}: {_reason(error)}") from None


def _set_groups(groups: list[int]) -> None:
    try:
        os.setgroups(groups)
    except PermissionError:
        # A user namespace may deny setgroups(2); then there are no groups to lose.
        if groups:
            raise


def _reason(error: OSError) -> str:
    text = error.strerror or str(error)
    return text[0].lower() + text[1:] if text else text


def executable(name: str, path: str, keep: bool = False) -> str:
    """The file that ``name`` stands for; errors read as runc's, which engines look for.

    :param path: PATH of the process.
    :param keep: execve follows at once.

    :raise StageError: there is none, or it may not be executed.
    """
    if "/" in name:
        problem = _problem(name)
        if problem:
            detail = os.strerror(problem).lower()
            if problem == errno.ENOENT:
                detail = f"stat {name}: {detail}"
            raise StageError("exec", problem, f'exec: "{name}": {detail}')
        return name
    # A share forgets a folder that nobody holds, and asks the host for each on the way to it anew: three messages.
    held: list[int] = []
    try:
        for folder in path.split(":"):
            # An empty element means the working directory, which runc (Go) refuses to search.
            if not name or not folder.startswith("/"):
                continue
            try:
                held.append(os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
            except OSError as error:
                if error.errno != errno.EMFILE:  # the process's own limit holds already
                    continue
            candidate = f"{folder}/{name}"
            if not _problem(candidate):
                return candidate
    finally:
        if not keep:
            for fd in held:
                os.close(fd)
    raise StageError("exec", errno.ENOENT, f'exec: "{name}": executable file not found in $PATH')


def _problem(path: str) -> int:
    """errno of an attempt to execute ``path``, 0 if nothing is in the way."""
    try:
        info = os.stat(path)
    except OSError as error:
        return error.errno or errno.ENOENT
    if stat.S_ISDIR(info.st_mode):
        return errno.EISDIR
    if info.st_mode & 0o111 == 0o111:
        return 0
    # Even root needs one x bit.
    if not info.st_mode & 0o111 or not os.access(path, os.X_OK, effective_ids=True):
        return errno.EACCES
    return 0
