"""Processes: arguments, users, limits, streams, ends."""

from __future__ import annotations

import os
import struct
import time

import pytest

from kata_agent.protocol import agent_pb2, codes, oci_pb2
from tests.agent.client import RpcError, read_all

ALL_CAPS = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP",
            "CAP_NET_RAW", "CAP_SYS_CHROOT", "CAP_MKNOD"]


def status_of(out: str) -> dict[str, str]:
    return {k: v.strip() for k, _, v in (line.partition(":") for line in out.splitlines())}


def test_runs_with_streams_apart(box):
    assert box("sh", "-c", "echo out; echo err >&2; exit 3").run() == (3, "out\n", "err\n")


def test_stdin_until_its_end(box):
    assert box("cat").run(b"hello") == (0, "hello", "")


def test_a_lot_of_stdin_and_stdout(box):
    b = box("cat").create().start()
    data = os.urandom(1 << 20) * 5
    sent, got, pending = 0, b"", None
    while len(got) < len(data):
        if pending is None and sent < len(data):
            chunk = data[sent : sent + 500_000]
            pending = b.client.guest.WriteStream.start(container_id=b.id, offset=sent, data=chunk,
                                                       eof=sent + len(chunk) == len(data))
        answer = b.client.guest.ReadStream(container_id=b.id, stream=1, offset=len(got), ack=len(got), max_len=300_000)
        got += answer.data
        if pending is not None and pending.ready(0.001):
            sent = pending.result().received
            pending = None
    assert got == data
    assert b.client.guest.WaitProcess(container_id=b.id).status == 0


def test_output_is_kept_until_acknowledged_and_the_writer_held_back(box):
    b = box("sh", "-c", "dd if=/dev/zero bs=65536 count=96 2>/dev/null; echo done >&2").create().start()
    first = b.client.guest.ReadStream(container_id=b.id, stream=1, offset=0, max_len=1000)
    assert len(first.data) == 1000 or first.data
    again = b.client.guest.ReadStream(container_id=b.id, stream=1, offset=0, max_len=1000)
    assert again.data[: len(first.data)] == first.data
    assert not b.client.guest.ReadStream.start(container_id=b.id, stream=2, offset=0).ready(0.5)
    assert len(read_all(b.client, b.id)) == 96 * 65536
    assert read_all(b.client, b.id, stream=2) == b"done\n"
    with pytest.raises(RpcError) as info:
        b.client.guest.ReadStream(container_id=b.id, stream=1, offset=0)
    assert info.value.code == codes.OUT_OF_RANGE


def test_reading_without_waiting(box):
    b = box("sh", "-c", "echo one; sleep 100 & exit 0").create().start()
    b.client.guest.WaitProcess(container_id=b.id)
    read = b.client.guest.ReadStream
    got = read(container_id=b.id, stream=1, offset=0, no_wait=True)
    assert (got.data, got.offset) == (b"one\n", 0)
    c = box("sh", "-c", "echo two; read x; echo three").create().start()
    assert read(container_id=c.id, stream=1, offset=0).data == b"two\n"
    got = read(container_id=c.id, stream=1, offset=4, no_wait=True)
    assert (got.data, got.eof, got.offset) == (b"", False, 4)
    waiting = read.start(container_id=c.id, stream=1, offset=4)
    c.client.guest.WriteStream(container_id=c.id, data=b"x\n")
    assert waiting.result().data == b"three\n"
    assert read(container_id=c.id, stream=1, offset=10).eof


def test_a_reader_that_goes_away(box):
    b = box("sh", "-c", "trap '' PIPE; while echo x; do :; done; echo gone >&2").create().start()
    read = b.client.guest.ReadStream
    assert read(container_id=b.id, stream=1, offset=0, max_len=10).data
    got = read(container_id=b.id, stream=1, offset=0, no_wait=True, close=True)
    assert (got.data, got.eof) == (b"", True)
    assert b"gone" in read_all(b.client, b.id, stream=2)
    assert read(container_id=b.id, stream=1, offset=5).eof
    c = box("sh", "-c", "echo x; read x; yes | head -c 300000; exit 6")
    c.spec.Process.Terminal = True
    c.create().start()
    assert read(container_id=c.id, stream=1, offset=0).data == b"x\r\n"
    waiting = read.start(container_id=c.id, stream=1, offset=3)
    assert read(container_id=c.id, stream=1, offset=0, no_wait=True, close=True).eof
    assert waiting.result().eof
    c.client.guest.WriteStream(container_id=c.id, data=b"\n")
    assert c.client.guest.WaitProcess(container_id=c.id).status == 6


def test_repeated_bytes_of_stdin_are_skipped_and_gaps_refused(box):
    b = box("cat").create().start()
    write = b.client.guest.WriteStream
    assert write(container_id=b.id, offset=0, data=b"abc").received == 3
    assert write(container_id=b.id, offset=1, data=b"bcd").received == 4
    with pytest.raises(RpcError) as info:
        write(container_id=b.id, offset=9, data=b"x")
    assert info.value.code == codes.OUT_OF_RANGE
    assert write(container_id=b.id, offset=4, eof=True).received == 4
    assert read_all(b.client, b.id) == b"abcd"


def test_writing_to_a_process_that_does_not_read(box):
    b = box("sh", "-c", "exec <&-; sleep 100").create().start()
    time.sleep(0.3)
    assert b.client.guest.WriteStream(container_id=b.id, offset=0, data=b"x").closed


def test_kata_1_streams(box):
    b = box("sh", "-c", "cat; echo end >&2").create().start()
    assert b.client.WriteStdin(container_id=b.id, exec_id=b.id, data=b"hello").len == 5
    assert b.client.ReadStdout(container_id=b.id, exec_id=b.id, len=3).data == b"hel"
    assert b.client.ReadStdout(container_id=b.id, exec_id=b.id, len=30).data == b"lo"
    b.client.CloseStdin(container_id=b.id, exec_id=b.id)
    with pytest.raises(RpcError) as info:
        b.client.ReadStdout(container_id=b.id, exec_id=b.id, len=30)
    assert (info.value.code, info.value.message) == (codes.UNKNOWN, "EOF")
    assert b.client.ReadStderr(container_id=b.id, exec_id=b.id, len=30).data == b"end\n"
    assert b.client.WaitProcess(container_id=b.id, exec_id=b.id).status == 0


@pytest.mark.parametrize(("args", "text"), [
    (["nonesuch"], 'exec: "nonesuch": executable file not found in $PATH'),
    (["/bin/nonesuch"], 'exec: "/bin/nonesuch": stat /bin/nonesuch: no such file or directory'),
    (["/etc/passwd"], 'exec: "/etc/passwd": permission denied'),
    (["/etc"], 'exec: "/etc": is a directory'),
])
def test_what_cannot_be_executed(box, args, text):
    b = box(*args)
    with pytest.raises(RpcError) as info:
        b.create()
    assert info.value.message == text
    assert info.value.code == codes.INVALID_ARGUMENT
    assert not b.client.guest.ListAll().containers
    c = box("sleep", "100").create().start()
    with pytest.raises(RpcError) as info:
        c.exec(args)
    assert info.value.message == text
    assert len(c.client.guest.ListAll().containers[0].processes) == 1


def test_no_executable_format(box, rootfs):
    (rootfs / "bin/odd").write_bytes(b"\x00\x01\x02")
    (rootfs / "bin/odd").chmod(0o755)
    b = box("odd").create()
    with pytest.raises(RpcError) as info:
        b.start()
    assert info.value.message == 'exec: "odd": exec format error'
    assert b.client.guest.ListAll().containers[0].state == "stopped"


def test_arguments_that_are_too_long(box):
    b = box("echo", "x" * 200_000).create()
    with pytest.raises(RpcError) as info:
        b.start()
    assert info.value.message == 'exec: "echo": argument list too long'


def test_environment_home_and_cwd(box):
    b = box("sh", "-c", "echo $A $HOME; pwd; umask")
    b.spec.Process.Env.append("A=1=2")
    b.spec.Process.Cwd = "/made/anew"
    assert b.run() == (0, "1=2 /root\n/made/anew\n0022\n", "")
    b = box("sh", "-c", "echo $HOME; umask")
    b.spec.Process.User.UID = 1000
    b.extras.process.has_umask = True
    b.extras.process.umask = 0o27
    assert b.run() == (0, "/home/alice\n0027\n", "")


def test_cwd_that_is_a_file(box):
    b = box("true")
    b.spec.Process.Cwd = "/etc/passwd"
    with pytest.raises(RpcError) as info:
        b.create()
    assert info.value.message == 'chdir to cwd ("/etc/passwd") set in config.json failed: not a directory'


def test_user_by_number_and_name(box):
    b = box("id")
    b.spec.Process.User.UID, b.spec.Process.User.GID = 1000, 1001
    b.spec.Process.User.AdditionalGids.extend([50, 4242])
    assert b.run()[1] == "uid=1000(alice) gid=1001(alice) groups=50(staff),4242\n"
    names = agent_pb2.StringUser(uid="alice", additionalGids=["audio"])
    assert box("id").run(string_user=names)[1] == "uid=1000(alice) gid=1001(alice) groups=29(audio),50(staff)\n"
    with pytest.raises(RpcError) as info:
        box("id").create(string_user=agent_pb2.StringUser(uid="bob"))
    assert info.value.message == "unable to find user bob: no matching entries in passwd file"


def test_pipes_belong_to_the_user(box):
    b = box("sh", "-c", "echo again > /dev/stdout; echo err > /dev/stderr")
    b.spec.Process.User.UID = 1000
    assert b.run() == (0, "again\n", "err\n")


def test_capabilities(box):
    b = box("cat", "/proc/self/status")
    caps = b.spec.Process.Capabilities
    for kind in ("Bounding", "Effective", "Permitted"):
        getattr(caps, kind).extend(["CAP_CHOWN", "CAP_KILL"])
    found = status_of(b.run()[1])
    want = f"{1 << 0 | 1 << 5:016x}"
    assert [found[k] for k in ("CapBnd", "CapEff", "CapPrm", "CapInh", "CapAmb")] == [want] * 3 + ["0" * 16] * 2
    b = box("cat", "/proc/self/status")
    caps = b.spec.Process.Capabilities
    for kind in ("Bounding", "Effective", "Permitted", "Inheritable", "Ambient"):
        getattr(caps, kind).append("CAP_NET_RAW")
    b.spec.Process.User.UID = 1000
    b.spec.Process.NoNewPrivileges = True
    found = status_of(b.run()[1])
    want = f"{1 << 13:016x}"
    assert [found[k] for k in ("CapBnd", "CapEff", "CapPrm", "CapInh", "CapAmb")] == [want] * 5
    assert found["NoNewPrivs"] == "1"
    b = box("true")
    b.spec.Process.Capabilities.Bounding.append("CAP_FLY")
    with pytest.raises(RpcError) as info:
        b.create()
    assert info.value.message == "unknown capability CAP_FLY"


def test_rlimits_and_oom_score(box):
    b = box("sh", "-c", "ulimit -n; ulimit -H -n; cat /proc/self/oom_score_adj")
    b.spec.Process.Rlimits.add(Type="RLIMIT_NOFILE", Soft=100, Hard=200)
    b.spec.Process.OOMScoreAdj = 321
    assert b.run()[1] == "100\n200\n321\n"
    assert box("cat", "/proc/self/oom_score_adj").run()[1] == "0\n"


def seccomp_errno_on(number: int, errno: int) -> bytes:
    """Allow all but one system call."""
    insn = struct.Struct("=HBBI").pack
    test = insn(0x20, 0, 0, 0) + insn(0x15, 0, 1, number)
    return test + insn(0x06, 0, 0, 0x50000 | errno) + insn(0x06, 0, 0, 0x7FFF0000)


@pytest.mark.parametrize("no_new_privileges", [True, False])
def test_seccomp_bpf(box, no_new_privileges):
    b = box("sh", "-c", "mkdir /tmp/x; grep -E 'Seccomp:|CapEff' /proc/self/status")
    b.extras.process.seccomp_bpf = seccomp_errno_on(83, 38)
    b.spec.Process.NoNewPrivileges = no_new_privileges
    b.spec.Process.User.UID = 1000
    _status, out, err = b.run()
    assert "Function not implemented" in err
    assert out.split() == ["CapEff:", "0" * 16, "Seccomp:", "2"]


def test_seccomp_by_rules(box):
    b = box("sh", "-c", "mkdir /tmp/x; uname -n")
    seccomp = b.spec.Linux.Seccomp
    seccomp.DefaultAction = "SCMP_ACT_ALLOW"
    seccomp.Architectures.extend(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"])
    seccomp.Syscalls.add(Names=["mkdir", "mkdirat", "no_such_call"], Action="SCMP_ACT_ERRNO")
    b.spec.Hostname = "boxed"
    _status, out, err = b.run()
    assert "Operation not permitted" in err
    assert out == "boxed\n"
    b = box("true")
    b.spec.Linux.Seccomp.DefaultAction = "SCMP_ACT_NONE"
    with pytest.raises(RpcError) as info:
        b.create()
    assert info.value.code == codes.INVALID_ARGUMENT


def test_ends(box):
    assert box("sh", "-c", "kill -9 $$").run()[0] in (0, 137)
    b = box("sleep", "100").create().start()
    other = b.client.guest.GetEvent.start(after=b.client.guest.ListAll().last_event, no_exits=True)
    b.client.SignalProcess(container_id=b.id, exec_id=b.id, signal=9)
    end = b.client.guest.WaitProcess(container_id=b.id)
    assert end.status == 137
    assert abs(end.exited_at_nsec - time.time_ns()) < 10**10
    with pytest.raises(RpcError) as info:
        b.client.SignalProcess(container_id=b.id, exec_id=b.id, signal=9)
    assert info.value.code == codes.FAILED_PRECONDITION
    event = b.client.guest.GetEvent(after=b.client.guest.ListAll().last_event - 1)
    assert (event.exit.container_id, event.exit.exec_id, event.exit.status) == (b.id, "", 137)
    # The exit's answer to the other request, which was first, would have come before.
    assert other.stream_id not in b.client.responses


def test_a_created_container_ends_by_sigterm(box):
    b = box("sleep", "100").create()
    assert b.client.guest.ListAll().containers[0].state == "created"
    b.client.SignalProcess(container_id=b.id, exec_id=b.id, signal=15)
    assert b.client.guest.WaitProcess(container_id=b.id).status == 143
    with pytest.raises(RpcError) as info:
        b.start()
    assert info.value.code == codes.FAILED_PRECONDITION


def test_exec_joins_everything(box):
    b = box("sleep", "100")
    b.spec.Hostname = "inside"
    b.create().start()
    status, out, _ = b.exec(["sh", "-c", "hostname; readlink /proc/1/exe; ls /; exit 7"])
    assert status == 7
    assert out.splitlines()[:2] == ["inside", "/bin/busybox"]
    assert "proc" in out
    user = oci_pb2.User(UID=1000)
    assert b.exec(["id", "-u"], User=user) == (0, "1000\n", "")


def test_twenty_execs_at_once(box):
    b = box("sleep", "100").create().start()
    started = []
    for number in range(20):
        process = oci_pb2.Process(Args=["sh", "-c", f"echo {number}; exit {number}"], Env=["PATH=/bin"], Cwd="/")
        started.append(b.client.ExecProcess.start(container_id=b.id, exec_id=f"x{number}", process=process))
    for each in started:
        each.result()
    for number in range(20):
        assert read_all(b.client, b.id, f"x{number}") == f"{number}\n".encode()
        assert b.client.guest.WaitProcess(container_id=b.id, exec_id=f"x{number}").status == number
        b.client.guest.ReleaseProcess(container_id=b.id, exec_id=f"x{number}")
    assert len(b.client.guest.ListAll().containers[0].processes) == 1


def test_the_end_of_the_first_process_ends_all(box):
    b = box("sleep", "100").create().start()
    process = oci_pb2.Process(Args=["sleep", "1000"], Env=["PATH=/bin"], Cwd="/")
    b.client.ExecProcess(container_id=b.id, exec_id="x", process=process)
    b.client.SignalProcess(container_id=b.id, exec_id=b.id, signal=9)
    assert b.client.guest.WaitProcess(container_id=b.id, exec_id="x").status == 137
    with pytest.raises(RpcError) as info:
        b.client.ExecProcess(container_id=b.id, exec_id="y", process=process)
    assert info.value.code == codes.FAILED_PRECONDITION


def test_terminal(box):
    b = box("sh", "-c", "tty; stty size; ls -l /dev/console >&2; read line; echo got $line; stty size")
    b.spec.Process.Terminal = True
    b.spec.Process.ConsoleSize.Height, b.spec.Process.ConsoleSize.Width = 30, 100
    b.create().start()
    seen = b""
    while b"30 100" not in seen:
        seen += b.client.guest.ReadStream(container_id=b.id, stream=1, offset=len(seen)).data
    b.client.TtyWinResize(container_id=b.id, exec_id=b.id, row=40, column=120)
    b.client.guest.WriteStream(container_id=b.id, data=b"word\n")
    out = read_all(b.client, b.id).decode().replace("\r", "")
    lines = out.splitlines()
    assert lines[0] == "/dev/pts/0"
    assert "got word" in out
    assert lines[-1] == "40 120"
    assert b.client.guest.ReadStream(container_id=b.id, stream=2, offset=0).eof


def test_terminal_of_an_exec(box):
    b = box("sleep", "100").create().start()
    _status, out, _ = b.exec(["sh", "-c", "tty; test -t 0 && echo yes"], Terminal=True)
    assert out.replace("\r", "") == "/dev/pts/0\nyes\n"
    with pytest.raises(RpcError) as info:
        b.client.TtyWinResize(container_id=b.id, row=1, column=1)
    assert info.value.code == codes.FAILED_PRECONDITION


def test_orphans_are_reaped(box):
    b = box("sh", "-c", "sleep 100 & exec sleep 100").create().start()
    b.client.RemoveContainer(container_id=b.id)
    assert not b.client.guest.ListAll().containers


def test_deferred_process(box):
    b = box("nonesuch")
    b.extras.defer_process = True
    b.create()
    assert b.client.guest.ListAll().containers[0].state == "created"
    with pytest.raises(RpcError) as info:
        b.start()
    assert "executable file not found" in info.value.message
    b = box("echo", "late")
    b.extras.defer_process = True
    assert b.run() == (0, "late\n", "")


@pytest.mark.parametrize("everyone", [False, True])
def test_a_signal_before_the_process_is_made(box, everyone):
    """What it does by default: the process can have no handler."""
    b = box("echo", "late")
    b.extras.defer_process = True
    b.create()
    name = "" if everyone else b.id
    b.client.SignalProcess(container_id=b.id, exec_id=name, signal=17)  # SIGCHLD
    assert b.client.guest.ListAll().containers[0].state == "created"
    b.client.SignalProcess(container_id=b.id, exec_id=name, signal=15)
    assert b.client.guest.ListAll().containers[0].state == "stopped"
    assert b.finish(None) == (128 + 15, "", "")
    with pytest.raises(RpcError) as info:
        b.start()
    assert info.value.code == codes.FAILED_PRECONDITION


def test_start_hooks(box):
    b = box("cat", "/tmp/log")
    b.extras.state_json = '{"id":"x"}'
    for word in ("one", "two"):
        b.extras.start_container_hooks.add(
            path="/bin/sh", args=["sh", "-c", f"echo {word} $A >> /tmp/log; cat >> /tmp/log; echo >> /tmp/log"],
            env=["A=5", "PATH=/bin"])
    assert b.run()[1] == 'one 5\n{"id":"x"}\ntwo 5\n{"id":"x"}\n'
    b = box("true")
    b.extras.start_container_hooks.add(path="/bin/sh", args=["sh", "-c", "echo no >&2; exit 3"], env=["PATH=/bin"])
    b.create()
    with pytest.raises(RpcError) as info:
        b.start()
    assert info.value.message == "hook /bin/sh failed: exit status 3: no"
    b = box("true")
    b.extras.start_container_hooks.add(path="/bin/sleep", args=["sleep", "10"], timeout_seconds=1)
    b.create()
    with pytest.raises(RpcError) as info:
        b.start()
    assert info.value.message == "hook /bin/sleep took longer than 1 s"


def test_personality_and_scheduling(box):
    b = box("uname", "-m")
    b.extras.personality = 8
    assert b.run()[1] in ("i686\n", "i386\n")
    b = box("sh", "-c", "cut -d' ' -f19 /proc/self/stat; ionice")
    b.extras.process.has_scheduler = True
    b.extras.process.scheduler_policy = "SCHED_BATCH"
    b.extras.process.scheduler_nice = 5
    b.extras.process.io_priority_class = 3
    assert b.run()[1].startswith("5\nidle")
