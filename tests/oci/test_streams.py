"""Standard streams and terminals."""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
import subprocess
import termios
import threading

import pytest

from harness.console import ConsoleSocket, Terminal
from harness.oci import Container, Oci
from harness.proc import environment
from harness.wait import eventually

MEGABYTE = 1 << 20


def test_output_and_errors_apart(oci: Oci) -> None:
    result = oci.run(oci.bundle("echo one; echo two >&2; echo three; echo four >&2")).ok()
    assert result.stdout == "one\nthree\n"
    assert result.stderr == "two\nfour\n"


def test_stdin_to_its_end(oci: Oci) -> None:
    """run: input of some megabytes, its end seen by the process, and its sum."""
    data = os.urandom(3 * MEGABYTE)
    result = oci.run(oci.bundle("sha256sum; echo end"), input=data).ok()
    assert result.stdout == f"{hashlib.sha256(data).hexdigest()}  -\nend\n"


def test_stdin_of_nothing(oci: Oci, shared: Container) -> None:
    """Closed and empty inputs end at once."""
    assert shared.exec("cat", input=b"").ok().stdout == ""
    assert shared.exec("wc", "-c", input=b"x").ok().out == "1"


def test_100_megabytes_out(oci: Oci) -> None:
    """100 MB through a pipe, intact, to a reader that is slow to begin."""
    script = "dd if=/dev/zero bs=1048576 count=100 2>/dev/null | tr '\\0' 'k'; echo done >&2"
    bundle = oci.bundle(script).write()
    id = oci.new_id()
    process = subprocess.Popen(
        oci.argv("run", "--bundle", str(bundle.path), id),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
    )  # fmt: skip
    assert process.stdout and process.stderr
    watchdog = threading.Timer(240, process.kill)
    watchdog.start()
    digest, total = hashlib.sha256(), 0
    while block := process.stdout.read(MEGABYTE):
        digest.update(block)
        total += len(block)
    errors = process.stderr.read().decode()
    code = process.wait(60)
    watchdog.cancel()
    oci.verb("delete", "--force", id)
    expected = hashlib.sha256()
    for _ in range(100):
        expected.update(b"k" * MEGABYTE)
    assert (code, total, errors) == (0, 100 * MEGABYTE, "done\n")
    assert digest.digest() == expected.digest()


def test_100_megabytes_through(shared: Container) -> None:
    """100 MB in by stdin and out by stdout at once, by exec; both sums on the way."""
    block = hashlib.sha512(b"seed").digest() * (MEGABYTE // 64)
    argv = shared.oci.argv("exec", shared.id, "/bin/sh", "-c", "cat; echo end >&2")
    process = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    )
    assert process.stdin and process.stdout and process.stderr
    stdin, sent, received, total = process.stdin, hashlib.sha256(), hashlib.sha256(), 0

    def feed() -> None:
        for number in range(100):
            part = struct.pack("<Q", number) + block[8:]
            sent.update(part)
            stdin.write(part)
        stdin.close()

    feeder = threading.Thread(target=feed)
    watchdog = threading.Timer(240, process.kill)
    watchdog.start()
    feeder.start()
    while part := process.stdout.read(MEGABYTE):
        received.update(part)
        total += len(part)
    feeder.join()
    assert process.stderr.read() == b"end\n"
    assert process.wait(60) == 0
    watchdog.cancel()
    assert total == 100 * MEGABYTE
    assert received.hexdigest() == sent.hexdigest()


def test_last_words(shared: Container) -> None:
    """Output written just before the end is never lost, nor the exit code."""
    for round in range(10):
        result = shared.sh(f"head -c 70000 /dev/zero | tr '\\0' x; echo last{round}; exit {round}")
        assert result.rc == round, result
        assert result.stdout.endswith(f"xlast{round}\n") and len(result.stdout) == 70000 + 6, result.stdout[-100:]


def test_reader_gone(shared: Container) -> None:
    """A reader that goes away breaks the writer's pipe; exec ends instead of hanging."""
    argv = shared.oci.argv("exec", shared.id, "/bin/sh", "-c", "yes")
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment())
    assert process.stdout
    process.stdout.read(100000)
    process.stdout.close()
    assert process.wait(30) != 0


@pytest.mark.vm_only
@pytest.mark.parametrize("verb", ["create", "run", "exec"])
def test_terminal_by_console(oci: Oci, verb: str) -> None:
    """--console: the process's terminal is the pseudo terminal at that path (Kata 1.x; runc dropped it)."""
    master, slave = os.openpty()
    console, path = Terminal(master), os.ttyname(slave)
    words = "stty size; read line; echo got $line; exit 5"
    console.resize(29, 91)
    try:
        bundle = oci.bundle() if verb == "exec" else oci.bundle(words)
        bundle.process["terminal"] = verb != "exec"
        with oci.container(bundle) as c:
            if verb == "exec":
                c.launch_verb("create").ok()
                c.start().ok()
                process = c.exec_detached("sh", "-c", words, options=["--tty", "--console", path])
            else:
                c.launch_verb(verb, "--console", path, *(["--detach"] if verb == "run" else [])).ok()
                assert c.launch
                process = c.launch
            if verb == "create":
                c.start().ok()
            console.expect("29 91")
            console.type("word\r")
            console.expect("got word")
            assert process.exit_code() == 5
    finally:
        os.close(slave)
        os.close(master)


@pytest.mark.vm_only
def test_console_that_is_none(oci: Oci) -> None:
    """A path that is no terminal, a process without one: refused by name, nothing left."""
    bundle = oci.bundle()
    bundle.process["terminal"] = True
    for options, words in ((["--console", "/dev/null"], "/dev/null"), (["--console", "/nosuch"], "/nosuch"),
                           (["--console", "/dev/null", "--console-socket", "/nosuch"], "--console-socket")):
        with oci.container(bundle) as c:
            assert words in c.launch_verb("create", *options).fails(1).stderr
            c.assert_gone()


def test_terminal_by_console_socket(oci: Oci) -> None:
    """create with a terminal: its master comes over the socket; size, resize, echo, ^C, hang-up."""
    script = (
        "trap 'again=1; echo resized $(stty size)' WINCH; test -t 0 && test -t 1 && test -t 2 && echo tty; "
        # A trap may interrupt the read.
        'stty size; while again=; read line || test "$again"; do echo "[$line]"; stty size; done; exit 4'
    )
    bundle = oci.bundle(script)
    bundle.process["terminal"] = True
    bundle.process["consoleSize"] = {"height": 31, "width": 97}
    with ConsoleSocket(oci.run_dir / "con.sock") as socket, oci.container(bundle) as c:
        c.launch_verb("create", "--console-socket", str(socket.path)).ok()
        terminal = socket.receive()
        c.start().ok()
        terminal.expect("tty\r\n")
        terminal.expect("31 97\r\n")
        terminal.resize(44, 121)
        terminal.type("hello\n")
        assert "hello\r\n" in terminal.expect("[hello]\r\n"), "the terminal does not echo"
        terminal.expect("44 121\r\n")
        terminal.type("\x04")
        assert c.wait() == 4
        terminal.drain()


def test_terminal_of_exec(oci: Oci, shared: Container) -> None:
    """exec --tty --console-socket --detach: a terminal of its own; ^C interrupts."""
    with ConsoleSocket(oci.run_dir / "exec.sock") as socket:
        options = ["--tty", "--detach", "--console-socket", str(socket.path)]
        shared.sh("echo ready; cat; echo not reached", options=options).ok()
        terminal = socket.receive()
        terminal.expect("ready\r\n")
        terminal.resize(20, 60)
        terminal.type("abc\n")
        terminal.expect("abc\r\nabc\r\n")
        terminal.type("\x03")
        assert "not reached" not in terminal.drain()


def foreground_terminal(argv: list[str], rows: int, columns: int) -> tuple[subprocess.Popen[bytes], Terminal]:
    """A verb on a terminal of its own, as in a person's shell."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(
        argv, stdin=slave, stdout=slave, stderr=slave, env=environment(), start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - one ioctl, no lock
    )  # fmt: skip
    os.close(slave)
    return process, Terminal(master)


def test_terminal_in_the_foreground(oci: Oci, shared: Container) -> None:
    """exec --tty on a person's terminal: it starts with its size, follows it, and leaves it as it was."""
    argv = oci.argv("exec", "--tty", shared.id, "/bin/sh", "-c", "while read l; do stty size; echo; done; exit 9")
    process, terminal = foreground_terminal(argv, 25, 81)
    before = termios.tcgetattr(terminal.fd)

    def size() -> str:
        terminal.type("x\n")
        return terminal.expect("\r\n\r\n")

    eventually("its size inside", lambda: "25 81" in size(), 20, 0.2)
    terminal.resize(30, 99)
    eventually("the new size inside", lambda: "30 99" in size(), 20, 0.2)
    terminal.type("\x04")
    assert process.wait(30) == 9
    assert termios.tcgetattr(terminal.fd)[3] == before[3], "the terminal was left raw"
    terminal.close()


def test_run_on_a_terminal(oci: Oci) -> None:
    """run with process.terminal in the foreground of a terminal."""
    bundle = oci.bundle("test -t 0 && echo is a tty; stty size; exit 6")
    bundle.process["terminal"] = True
    bundle.write()
    id = oci.new_id()
    process, terminal = foreground_terminal(oci.argv("run", "--bundle", str(bundle.path), id), 40, 100)
    terminal.expect("is a tty\r\n", 60)
    assert process.wait(60) == 6
    terminal.close()


@pytest.mark.parametrize("terminal", [True, False])
def test_terminal_and_socket_belong_together(oci: Oci, terminal: bool) -> None:
    """A detached terminal without a console socket is refused, and a socket without a terminal too."""
    bundle = oci.bundle()
    bundle.process["terminal"] = terminal
    with ConsoleSocket(oci.run_dir / "no.sock") as socket, oci.container(bundle) as c:
        options = [] if terminal else ["--console-socket", str(socket.path)]
        refused = c.launch_verb("create", *options).fails(1)
        assert refused.stderr.strip(), refused


def test_nobody_at_the_console_socket(oci: Oci, shared: Container) -> None:
    """A terminal that nobody takes is an error before anything runs; a process without its pid file is ended."""
    nobody = ["--console-socket", str(oci.run_dir / "nobody.sock")]
    bundle = oci.bundle()
    bundle.process["terminal"] = True
    with oci.container(bundle) as c:
        refused = c.launch_verb("create", *nobody).fails(1)
        assert "nobody.sock" in refused.stderr, refused
    for options in (["--tty", *nobody], ["--pid-file", str(oci.run_dir / "no/such")]):
        refused = oci.verb("exec", "--detach", *options, shared.id, "sleep", "777", timeout=30)
        assert refused.rc in (1, 255) and refused.stderr.strip(), refused
        assert "sleep 777" not in oci.verb("ps", shared.id).ok().stdout
