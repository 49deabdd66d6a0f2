"""One container: its states, its processes, and what it holds."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from kata_agent import devicefilter, guesthooks, log
from kata_agent.child import ChildPlan
from kata_agent.errors import AgentError, internal, not_found, precondition
from kata_agent.hooks import Hook
from kata_agent.identity import ProcessPlan
from kata_agent.launch import PerProcess
from kata_agent.limits import Limits
from kata_agent.linux.light import signal
from kata_agent.mountopts import MountOptions
from kata_agent.namespaces import Namespaces, id_map
from kata_agent.process import Process
from kata_agent.protocol import codes, guest_pb2, oci_pb2
from kata_agent.rootfs import Mounts

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from kata_agent.devices import DeviceNode
    from kata_agent.sandbox import Sandbox

CREATING, CREATED, RUNNING, PAUSED, STOPPED = "creating", "created", "running", "paused", "stopped"

#: Signals that end no process by default (signal(7)).
_HARMLESS = frozenset((0, signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH, signal.SIGSTOP,
                       signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU))
_FREEZE_TIMEOUT = 10.0  # seconds
_REMOVE_TIMEOUT = 30.0  # seconds until everything that was killed must be gone
_KEPT_EXECS = 64  # ended processes whose status a Kata 1.x client has got already

Done = Callable[[AgentError | None], None]


class Container:
    """See :mod:`kata_agent.sandbox` for where they are kept.

    :param spec: the OCI configuration.
    :param extras: what it cannot carry.
    :param names: user, group and additional groups by name, or None.
    """

    def __init__(
        self, sandbox: Sandbox, container_id: str, exec_id: str, spec: oci_pb2.Spec,
        extras: guest_pb2.PrepareContainerRequest, names: tuple[str, str, tuple[str, ...]] | None,
        namespaces: Namespaces, seccomp: bytes,
    ) -> None:
        self._sandbox = sandbox
        self._spec = spec
        self._extras = extras
        self._pidfd = -1
        self._starting: Done | None = None  # whoever waits for the start
        self._plan: ChildPlan | None = None  # of a container whose process is made when it starts
        self.id = container_id
        self.namespaces = namespaces
        self.state = CREATING
        self.cgroup = sandbox.cgroups.container(container_id)
        plan = ProcessPlan(spec.Process, extras.process, names)
        plan.seccomp = plan.seccomp or seccomp
        self.init = Process(sandbox.loop, exec_id, plan, sandbox.settings.pipe_size)
        self.execs: dict[str, Process] = {}
        self.storages: list[str] = []  #: mount points that are this container's
        self._limits = Limits(spec.Linux.Resources, dict(extras.unified))

    # --- making it -------------------------------------------------------------------

    def create(self, nodes: list[DeviceNode], done: Done) -> None:
        """Make everything up to the execve; ``done`` is called with None or what went wrong.

        After a failure nothing is left of it.
        """
        try:
            self.cgroup.make()
            self._limits.apply(self.cgroup, "early")
            if self.cgroup.exists:
                devicefilter.attach(self.cgroup.path, devicefilter.rules(self._spec.Linux.Resources.Devices, nodes))
            self.cgroup.watch_oom(lambda: self._sandbox.events.out_of_memory(self.id))
            plan = self._plan = self._child_plan(nodes)
        except BaseException:
            self._abandon()
            raise

        def go_on(error: AgentError | None) -> None:
            if error is not None:
                self._abandon_with(error, done)
            elif self._extras.defer_process:
                self.state = CREATED
                done(None)
            else:
                try:
                    self._fork(plan, done)
                except OSError as problem:
                    self._abandon_with(internal(f"cannot fork: {problem.strerror}"), done)

        self._run_hooks("prestart", go_on)

    def _run_hooks(self, kind: str, done: Done) -> None:
        """Hooks of the guest's image."""
        guesthooks.run(self._sandbox.loop, self._sandbox.hooks.get(kind, []), self._extras.state_json.encode(), done)

    def _hook_failed(self, error: AgentError | None) -> None:
        if error is not None:
            log.warning(f"container {self.id}: {error.text}")

    def _child_plan(self, nodes: list[DeviceNode]) -> ChildPlan:
        spec, extras = self._spec, self._extras
        plan = ChildPlan(self.init.plan)
        self.namespaces.apply(plan)
        by_index = {mount.index: mount for mount in extras.mounts}
        for index, mount in enumerate(spec.Mounts):
            if MountOptions(mount.options).idmap:
                maps = by_index.get(index, guest_pb2.MountExtras())
                if not maps.uid_mappings or not maps.gid_mappings:
                    raise precondition(f"mount {mount.destination}: an idmap mount needs mappings")
                plan.idmaps[index] = (_extras_map(maps.uid_mappings), _extras_map(maps.gid_mappings))
        plan.mounts = Mounts(spec, by_index, nodes, self.cgroup.path, self._sandbox.staging, plan.userns)
        plan.cgroup = self.cgroup.path
        plan.netns = self._sandbox.netns
        if "uts" in self.namespaces.new:
            plan.hostname = spec.Hostname
            plan.domainname = extras.domainname
        plan.sysctl = dict(spec.Linux.Sysctl)
        plan.personality = extras.personality
        plan.keyring = f"_ses.{self.id}"
        plan.start_hooks = [Hook(h.path, h.args, h.env, h.timeout_seconds) for h in extras.start_container_hooks]
        plan.state = extras.state_json.encode()
        plan.wait = not extras.defer_process
        return plan

    def _fork(self, plan: ChildPlan, done: Done) -> None:
        """``done`` is called when the process waits, or (deferred) has executed its program."""
        pending = [done]

        def finish(error: AgentError | None) -> None:
            if pending:
                pending.pop()(error)

        def ready() -> None:
            self.state = CREATED
            finish(None)

        def launched(error: AgentError | None) -> None:
            error = error or self._launched()
            if error is None:
                finish(None)
                self._tell_start(None)
                self._run_hooks("poststart", self._hook_failed)
                return
            give_up = self._abandon_with if self.state == CREATING else self._start_failed
            self.init.kill()
            self.init.when_exited(lambda: give_up(error, finish))

        self.init.fork(
            plan, self.namespaces.per_process, self.namespaces.id_maps,
            oom_score_adj=self.init.plan.oom_score_adj or 0, on_ready=ready, on_done=launched, on_exit=self._init_ended,
        )

    def start(self, done: Done) -> None:
        """Let the first process execute its program.

        :raise AgentError: FAILED_PRECONDITION, it is not "created".
        """
        if self.state != CREATED or self._starting is not None:
            raise precondition(f"container {self.id} is {self.state}, not created")
        self._starting = done
        if self.init.ready:
            self.init.go()
        elif self._plan is not None and self.init.launch is None:
            try:
                self._fork(self._plan, self._tell_start)
            except OSError as error:
                self._tell_start(internal(f"cannot fork: {error.strerror}"))
        else:
            self._tell_start(precondition(f"container {self.id} has no process to start"))

    def _tell_start(self, error: AgentError | None) -> None:
        done, self._starting = self._starting, None
        if done is not None:
            done(error)

    def _launched(self) -> AgentError | None:
        """The program runs: write the limits that had to wait."""
        self._plan = None
        try:
            self._limits.apply(self.cgroup, "late")
        except AgentError as error:
            return error
        if self.state == CREATED:
            self.state = RUNNING
        return None

    def _start_failed(self, error: AgentError, finish: Done) -> None:
        self.state = STOPPED
        finish(error)
        self._tell_start(error)

    def _abandon_with(self, error: AgentError, finish: Done) -> None:
        self._abandon()
        finish(error)

    def _abandon(self) -> None:
        """Forget a container that could not be made."""
        try:
            self.cgroup.remove()
        except OSError as error:
            # One that is made under the same name later removes it.
            log.warning(f"cgroup of container {self.id}: {error.strerror}")
        self._release()

    # --- ends ------------------------------------------------------------------------

    def _init_ended(self) -> None:
        if self.state == CREATING:
            return  # whoever makes it cleans up
        self.state = STOPPED
        if not self.namespaces.own_pid:
            # Nothing in the kernel ends the others with it.
            self._kill_all()
        self._note_end(self.init, "")

    def _note_end(self, process: Process, exec_id: str) -> None:
        process.oom_killed = process.status == 128 + signal.SIGKILL and self.cgroup.oom_kills() > 0
        self._sandbox.events.exited(self.id, exec_id, process.status)

    def _kill_all(self) -> None:
        if self.cgroup.exists:
            self.cgroup.kill()
            return
        for process in (self.init, *self.execs.values()):
            process.kill()

    def remove(self, seconds: float, done: Done) -> None:
        """End every process and give everything back.

        :param seconds: until all must be gone, 0 = 30.
        :raise AgentError: FAILED_PRECONDITION, it is still being made.
        """
        if self.state == CREATING:
            raise precondition(f"container {self.id} is being created")
        seconds = seconds or _REMOVE_TIMEOUT
        self._kill_all()
        if self.init.launch is not None:
            self.init.kill()

        def reaped() -> None:
            self.cgroup.when_empty(seconds, emptied)

        def emptied(empty: bool) -> None:
            if not empty:
                done(internal(f"processes of container {self.id} are still there {seconds:g} s after they were killed"))
                return
            try:
                self.cgroup.remove()
            except OSError as error:
                done(internal(f"cannot remove the cgroup of container {self.id}: {error.strerror}"))
                return
            self.state = STOPPED
            self._release()
            done(None)
            self._run_hooks("poststop", self._hook_failed)

        if self.init.launch is None:
            reaped()
        else:
            self.init.when_exited(reaped)

    def give_back(self) -> None:
        """Release what it took of the sandbox; harmless when that was done."""
        while self.storages:
            self._sandbox.storages.drop(self.storages.pop())

    def _release(self) -> None:
        for process in (self.init, *self.execs.values()):
            process.release()
        self.execs.clear()
        self.give_back()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        self._sandbox.forget(self)

    # --- its processes -----------------------------------------------------------------

    def pidfd(self) -> int:
        """A descriptor of the first process.

        :raise AgentError: FAILED_PRECONDITION, it has none now.
        """
        if self.init.exited or not self.init.pid:
            raise precondition(f"container {self.id} has no running process")
        if self._pidfd < 0:
            self._pidfd = os.pidfd_open(self.init.pid)
        return self._pidfd

    def pids(self) -> list[int]:
        """Every process, in the agent's pid namespace."""
        if self.cgroup.exists:
            return self.cgroup.pids()
        return [p.pid for p in (self.init, *self.execs.values()) if p.pid and not p.exited]

    def process(self, exec_id: str) -> Process:
        """The process of an exec id; "" and the container's id mean the first one.

        :raise AgentError: NOT_FOUND.
        """
        if exec_id in ("", self.init.exec_id, self.id):
            return self.init
        found = self.execs.get(exec_id)
        if found is None:
            raise not_found(f"container {self.id} has no process {exec_id!r}"[:512])
        return found

    def exec(
        self, exec_id: str, process: oci_pb2.Process, extras: guest_pb2.PrepareProcessRequest,
        names: tuple[str, str, tuple[str, ...]] | None, done: Done,
    ) -> None:
        """Run a further process.

        :raise AgentError: the container does not run, or the id is in use.
        """
        if self.state not in (CREATED, RUNNING):
            raise precondition(f"container {self.id} is {self.state}: no process can be started in it")
        if exec_id in self.execs or exec_id in ("", self.id, self.init.exec_id):
            raise AgentError(codes.ALREADY_EXISTS, f"container {self.id} has a process {exec_id!r} already")
        plan = ProcessPlan(process, extras.process, names)
        if not extras.process.seccomp_bpf:
            plan.seccomp, plan.seccomp_flags = self.init.plan.seccomp, self.init.plan.seccomp_flags
        pidfd = self.pidfd()
        child = ChildPlan(plan)
        child.cgroup = self.cgroup.path
        child.sub_cgroup = extras.cgroup
        child.cgroup_mount = self._sandbox.cgroups.mount
        child.neighbour = self.init.pid
        child.join = [(pidfd, self.namespaces.of_exec())]
        child.personality = self._extras.personality
        child.keyring = f"_ses.{self.id}"
        per_process = PerProcess()
        per_process.join = [(pidfd, kind) for kind in self._per_process_kinds()]
        oom_score_adj = plan.oom_score_adj if plan.oom_score_adj is not None else self.init.plan.oom_score_adj or 0
        new = Process(self._sandbox.loop, exec_id, plan, self._sandbox.settings.pipe_size)
        self._forget_old_execs()
        self.execs[exec_id] = new

        def launched(error: AgentError | None) -> None:
            if error is not None:
                new.kill()
                new.when_exited(lambda: failed(error))
            else:
                done(None)

        def failed(error: AgentError) -> None:
            self.execs.pop(exec_id, None)
            new.release()
            done(error)

        def ended() -> None:
            if exec_id in self.execs and new.launch is not None and new.was_running:
                self._note_end(new, exec_id)

        try:
            new.fork(child, per_process, ("", ""), oom_score_adj=oom_score_adj,
                     on_ready=lambda: None, on_done=launched, on_exit=ended)
        except OSError as error:
            self.execs.pop(exec_id, None)
            if error.errno == errno.ESRCH:
                raise precondition(f"container {self.id} is ending: no process can be started in it") from None
            raise internal(f"cannot fork: {error.strerror}") from None

    def _per_process_kinds(self) -> list[int]:
        from kata_agent.linux import syscalls as sc

        kinds = []
        if self.namespaces.own_pid or any(kind == sc.CLONE_NEWPID for _fd, kind in self.namespaces.per_process.join):
            kinds.append(sc.CLONE_NEWPID)
        if self.namespaces.per_process.new & sc.CLONE_NEWTIME or any(
            kind == sc.CLONE_NEWTIME for _fd, kind in self.namespaces.per_process.join
        ):
            kinds.append(sc.CLONE_NEWTIME)
        return kinds

    def _forget_old_execs(self) -> None:
        ended = [exec_id for exec_id, process in self.execs.items() if process.exited and process.wait_asked]
        for exec_id in ended[: max(0, len(ended) - _KEPT_EXECS)]:
            self.execs.pop(exec_id).release()

    def release_process(self, exec_id: str) -> None:
        """Forget an exec'd process that has ended.

        :raise AgentError: it runs, or is the first one.
        """
        process = self.process(exec_id)
        if process is self.init:
            raise precondition("the first process is released with its container")
        if not process.exited:
            raise precondition(f"process {exec_id} of container {self.id} has not ended")
        del self.execs[exec_id]
        process.release()

    def signal(self, exec_id: str, signum: int, everyone: bool) -> None:
        """Send a signal to one process, or to all.

        :raise AgentError: NOT_FOUND or FAILED_PRECONDITION, there is none; INVALID_ARGUMENT, no such signal.
        """
        if not 0 <= signum <= signal.SIGRTMAX:
            raise AgentError(codes.INVALID_ARGUMENT, f"there is no signal {signum}")
        process = self.process(exec_id)
        if self.state == CREATED and self.init.launch is None and (everyone or process is self.init):
            # Its first process is made at start, and can have no handler yet.
            if signum not in _HARMLESS:
                self.init.end_unforked(128 + signum, self._init_ended)
            return
        if everyone and self.cgroup.exists:
            if signum == signal.SIGKILL:
                self.cgroup.kill()
            elif not self.cgroup.signal(signum) and self.init.exited:
                raise precondition(f"container {self.id} is not running")
            return
        if process.exited or not process.pid:
            raise precondition(f"process {exec_id or self.id} of container {self.id} is not running")
        os.kill(process.pid, signum)

    # --- pause, limits -----------------------------------------------------------------

    def freeze(self, frozen: bool, done: Done) -> None:
        """Pause or resume; ``done`` when every process is in that state.

        :raise AgentError: FAILED_PRECONDITION, it is in no state for that.
        """
        wanted = RUNNING if frozen else PAUSED
        if self.state != wanted:
            raise precondition(f"container {self.id} is {self.state}, not {wanted}")
        if not self.cgroup.exists:
            raise precondition("this guest has no cgroup file system, and cannot pause")

        def finished(reached: bool) -> None:
            if not reached:
                if frozen:
                    self.cgroup.set("cgroup.freeze", "0", "the frozen state")
                verb = "frozen" if frozen else "thawed"
                done(internal(f"container {self.id} was not {verb} within {_FREEZE_TIMEOUT:g} s"))
                return
            if self.state == wanted:
                self.state = PAUSED if frozen else RUNNING
            done(None)

        self.cgroup.freeze(frozen, _FREEZE_TIMEOUT, finished)

    def update(self, resources: oci_pb2.LinuxResources, unified: dict[str, str]) -> None:
        """Change limits while it runs.

        :raise AgentError: a limit is wrong or cannot be set.
        """
        if self.state == STOPPED:
            raise precondition(f"container {self.id} is stopped")
        old = self._spec.Linux.Resources.Memory.Limit
        limits = Limits(resources, unified, old)
        if resources.Devices and self.cgroup.exists:
            devicefilter.attach(self.cgroup.path, devicefilter.rules(resources.Devices, ()))
        if self.state == CREATED:
            limits.apply(self.cgroup, "early")
            self._limits.files += limits.files
            self._limits.weights += limits.weights
        else:
            limits.apply(self.cgroup)
        if resources.Memory.Limit:
            self._spec.Linux.Resources.Memory.Limit = resources.Memory.Limit


def _extras_map(maps: object) -> str:
    return id_map((m.container_id, m.host_id, m.size) for m in maps)  # type: ignore[attr-defined]
