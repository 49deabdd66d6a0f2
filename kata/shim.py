"""The shim: one small process that stands for one process of a container.

Started by a verb as ``python -I -S shim.py OPTIONS``, in the sandbox's network
namespace and the container's cgroup, with the engine's stdio as 0, 1 and 2.
Its pid is the process's pid to the engine; signals it gets go to the process;
it ends with the process's exit code.  Standard library only.

It counts bytes: of standard output and error those it has written, of standard
input those the guest has taken.  When the proxy is restarted it attaches anew
and names these offsets, so nothing is lost or doubled.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # -I and -S leave nothing on the path but the standard library
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import _socket
import select
import stat

from kata import wire
from kata.errors import KataError, ProxyGone
from kata.jsontext import loads

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    import signal
    from collections import deque
    from typing import Any
else:  # built into the interpreter; what wraps them in the library takes milliseconds
    import _signal as signal
    from _collections import deque

STDIN_WINDOW = 1 << 20  #: bytes of standard input on their way to the guest
CHUNK = 64 << 10
OUTPUT_ACK = 128 << 10  #: acknowledge at least this often
DISCARD = (1 << 64) - 1  #: acknowledges everything: the reader is gone
MOST_REVIVALS = 5  #: proxies started without a word from one
MACHINE_GONE = 3  #: what kata.revive ends with when there is nothing to revive
KILLED = 128 + signal.SIGKILL
REVIVE = "import sys; sys.path[:] = sys.argv[1].split(':'); from kata.revive import main; sys.exit(main(sys.argv[2]))"

FORWARDED = frozenset(v for k, v in vars(signal).items() if k.startswith("SIG") and not k.startswith("SIG_")) - {
    signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGPIPE, signal.SIGWINCH, signal.SIGTTIN, signal.SIGTTOU,
    signal.SIGTSTP, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE,
}


class NeverMade(KataError):
    """The container could not be made; the verb that was to make it says why."""


class Output:
    """One of the process's output streams and where it goes.

    A pipe is opened a second time, so that it can be written without blocking
    and without changing the descriptor that the engine shares.
    """

    def __init__(self, stream: int, fd: int) -> None:
        self.stream = stream
        self.fd = fd
        self.blocking = True
        self.queue: deque[bytes | memoryview] = deque()
        self.written = 0  #: bytes given to ``fd``
        self.acked = 0
        self.received = 0
        self.eof = False
        self.broken = False
        try:
            if stat.S_ISFIFO(os.fstat(fd).st_mode):
                self.fd = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                self.blocking = False
        except OSError:
            pass  # the reader is gone, or /proc is not there: the first write tells

    @property
    def done(self) -> bool:
        return self.eof and not self.queue

    def write(self) -> None:
        """Write what the descriptor takes now; call when it is writable."""
        while self.queue:
            data = self.queue[0]
            # What poll() promises of a pipe that may block is 4096 bytes.
            part = data[:select.PIPE_BUF] if self.blocking else data
            try:
                count = os.write(self.fd, part)
            except BlockingIOError:
                return
            except OSError:
                self.broken = True
                self.queue.clear()
                return
            self.written += count
            if count == len(data):
                self.queue.popleft()
            else:
                self.queue[0] = data[count:]
            if self.blocking:
                return


class Shim:
    """The loop.  :meth:`run` returns the exit code of the process.

    :param path: the proxy's control socket.
    :param tty_fd: terminal that is both input and output; -1: 0, 1 and 2.
    :param connection: a connection to the proxy already made.
    """

    def __init__(self, path: str, container: str, exec_id: str, *, terminal: bool = False, tty_fd: int = -1,
                 connection: _socket.socket | None = None) -> None:
        self.path = path
        self.container = container
        self.exec_id = exec_id
        self.terminal = terminal
        self.own_terminal = terminal and tty_fd >= 0
        self.input = tty_fd if tty_fd >= 0 else 0
        self.outputs = {wire.STDOUT: Output(wire.STDOUT, tty_fd if tty_fd >= 0 else 1)}
        if not terminal:
            self.outputs[wire.STDERR] = Output(wire.STDERR, 2)
        self.unacked: deque[tuple[int, bytes]] = deque()  #: standard input
        self.stdin_sent = 0
        self.stdin_acked = 0
        self.stdin_eof = False
        self.stdin_closed = False
        self.status: int | None = None
        self.sock = connection
        self.attached = False
        self.carrier = False  #: of what is written after the exit was reported
        self.revived = 0
        self.decoder = wire.Decoder()
        self.signals: deque[int] = deque()
        self.wake_r, self.wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    # --- connection ---------------------------------------------------------------

    def _attach(self) -> None:
        """Connect if needed, and attach at the offsets reached so far.

        :raise KataError: there is no proxy, or no such process.
        """
        if self.sock is None:
            self.sock = wire.UnixSocket()
            try:
                self.sock.connect(self.path)
            except OSError as e:
                raise ProxyGone(f"cannot reach the sandbox's proxy at {self.path}: {e.strerror}") from e
        self.sock.settimeout(None)
        self.decoder = wire.Decoder()
        for output in self.outputs.values():
            output.acked = 0
            output.received = output.written + sum(map(len, output.queue))
        received = [o.received for o in self.outputs.values()] + [0]
        self.send(wire.pack_json(wire.REQUEST, {
            "v": wire.VERSION, "op": "attach", "id": self.container, "exec_id": self.exec_id,
            "offsets": [self.stdin_acked, received[0], received[1]], "terminal": self.terminal, "pid": os.getpid()}))
        if self.unacked:
            pending = b"".join(data for _offset, data in self.unacked)
            self.send(wire.pack_data(wire.STDIN, self.unacked[0][0], pending))
        if self.stdin_eof:
            self.send(wire.pack_data(wire.STDIN, self.stdin_sent, b"", eof=True))
        if self.terminal:
            self.resize()
        self.attached = True

    def send(self, frame: bytes) -> None:
        assert self.sock is not None
        try:
            self.sock.sendall(frame)
        except OSError as e:
            raise ProxyGone(f"the sandbox's proxy went away: {e.strerror}") from e

    def request(self, op: str, **params: Any) -> None:
        """Ask for something whose answer, empty or an error, does not matter to the loop."""
        self.send(wire.pack_json(wire.REQUEST, {
            "v": wire.VERSION, "op": op, "id": self.container, "exec_id": self.exec_id, **params}))

    # --- the loop -------------------------------------------------------------------

    def run(self) -> int:
        """Carry the process's stdio until it has ended.

        :raise KataError: the process never came to be, or its proxy is gone for good.
        """
        previous = {number: signal.signal(number, self._on_signal) for number in FORWARDED}
        previous[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, self._on_signal)
        signal.set_wakeup_fd(self.wake_w, warn_on_full_buffer=False)
        try:
            while not self._finished():
                try:
                    if not self.attached:
                        self._attach()
                    self._turn()
                except ProxyGone:
                    if not self._finished():
                        self._revive()
            if self.carrier:
                os._exit(0)
            assert self.status is not None
            return self.status
        except KataError:
            if self.carrier:
                os._exit(1)
            raise
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: object) -> None:
        self.signals.append(number)

    def _finished(self) -> bool:
        done = all(o.done for o in self.outputs.values())
        if self.carrier or self.status is None:
            return done and self.carrier
        if done:
            return True
        if any(o.queue for o in self.outputs.values()):
            return False
        # The process has ended and all it wrote is delivered, but a child of
        # its own still holds an output open.  Its exit is reported now, as a
        # kernel would; another process carries the rest.
        self.carrier = os.fork() == 0
        return not self.carrier

    def _turn(self) -> None:
        poll = select.poll()
        if self.sock is not None:
            poll.register(self.sock, select.POLLIN)
        poll.register(self.wake_r, select.POLLIN)
        if self._wants_input():
            poll.register(self.input, select.POLLIN)
        for output in self.outputs.values():
            if output.queue:
                # A terminal is input and output at once.
                wanted = select.POLLOUT | (select.POLLIN if output.fd == self.input else 0)
                poll.register(output.fd, wanted)
        ready = dict(poll.poll())
        if self.wake_r in ready:
            os.read(self.wake_r, 4096)
        while self.signals and self.sock is not None:
            self._forward(self.signals.popleft())
        for output in self.outputs.values():
            if output.queue and ready.get(output.fd, 0) & ~select.POLLIN:
                output.write()
            self._acknowledge(output)
        if ready.get(self.input, 0) & (select.POLLIN | select.POLLHUP | select.POLLERR):
            self._read_input()
        if self.sock is not None and self.sock.fileno() in ready:
            self._receive()

    def _wants_input(self) -> bool:
        open_ = self.sock is not None and not (self.stdin_eof or self.stdin_closed)
        return open_ and self.stdin_sent - self.stdin_acked < STDIN_WINDOW

    def _receive(self) -> None:
        assert self.sock is not None
        try:
            data = self.sock.recv(1 << 18)
        except OSError as e:
            raise ProxyGone(f"the sandbox's proxy went away: {e.strerror}") from e
        if not data:
            raise ProxyGone("the sandbox's proxy went away")
        for kind, flags, payload in self.decoder.feed(data):
            if kind != wire.ERROR:
                self.revived = 0
            if kind == wire.DATA:
                self._take(self.outputs[flags & wire.STREAM_MASK], payload, bool(flags & wire.EOF))
            elif kind == wire.ACK:
                self._acked(wire.OFFSET.unpack(payload)[0])
            elif kind == wire.EXIT:
                self.status = int(loads(payload)["status"])
            elif kind == wire.ERROR and self.status is None:
                op = loads(payload).get("op")
                if op in ("signal", "winsize"):
                    continue  # it came too late
                if op == "attach" and self.exec_id == self.container:
                    raise NeverMade(wire.unpack_error(payload).text)
                raise wire.unpack_error(payload)

    def _take(self, output: Output, payload: bytes, eof: bool) -> None:
        offset, data = wire.unpack_data(payload)
        data = data[max(0, output.received - offset):]
        if data and output.received == 0 and self.own_terminal:
            # conmon turns ONLCR on when it gets the master; the guest's terminal has done that already.
            import termios
            import tty

            try:
                tty.setraw(output.fd, termios.TCSANOW)
            except termios.error:
                pass  # nobody holds the master any more: the write tells
        output.received += len(data)
        output.eof = output.eof or eof
        if data and not output.broken:
            output.queue.append(data)
            if not output.blocking:
                output.write()
        self._acknowledge(output)

    def _acknowledge(self, output: Output) -> None:
        if self.sock is None:
            return
        if output.broken:
            if output.acked != DISCARD:
                output.acked = DISCARD
                self.send(wire.pack_ack(output.stream, DISCARD))
        elif output.written - output.acked >= OUTPUT_ACK or (not output.queue and output.acked < output.written):
            output.acked = output.written
            self.send(wire.pack_ack(output.stream, output.written))

    def _read_input(self) -> None:
        try:
            data = os.read(self.input, CHUNK)
        except BlockingIOError:
            return
        except OSError:  # a terminal that hung up
            data = b""
        if data:
            # Counted first: when there is no proxy to send it to, its successor gets it, from this offset on.
            offset = self.stdin_sent
            self.unacked.append((offset, data))
            self.stdin_sent += len(data)
            self.send(wire.pack_data(wire.STDIN, offset, data))
        else:
            self.stdin_eof = True
            self.send(wire.pack_data(wire.STDIN, self.stdin_sent, b"", eof=True))

    def _acked(self, offset: int) -> None:
        self.stdin_acked = max(self.stdin_acked, min(offset, self.stdin_sent))
        while self.unacked and self.unacked[0][0] + len(self.unacked[0][1]) <= self.stdin_acked:
            self.unacked.popleft()

    def _forward(self, number: int) -> None:
        if number == signal.SIGWINCH:
            if self.terminal:
                self.resize()
        else:
            self.request("signal", signal=int(number))

    def resize(self) -> None:
        """Tell the guest the terminal's size."""
        import fcntl
        import struct
        import termios

        try:
            rows, columns = struct.unpack("HHHH", fcntl.ioctl(self.input, termios.TIOCGWINSZ, bytes(8)))[:2]
        except OSError:
            return
        if rows or columns:
            self.request("winsize", rows=rows, columns=columns)

    def _revive(self) -> None:
        """Start the proxy's successor if nobody else does; without a machine, end as if killed.

        :raise KataError: none came up in time, or one after the other ends at once.
        """
        if self.sock is not None:
            self.sock.close()
        self.sock = None
        self.attached = False
        self.revived += 1
        if self.revived > MOST_REVIVALS:
            raise KataError("the sandbox's proxy ends again and again", "see proxy.log of the sandbox")
        # A program of its own: it needs what the shim, for its size, does without.
        argv = [sys.executable, "-IS", "-c", REVIVE, os.environ.get("KATA_PATH") or os.pathsep.join(sys.path),
                os.path.dirname(self.path)]
        pid = os.posix_spawn(sys.executable, argv, os.environ)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code == MACHINE_GONE:
            self.attached = True
            self.status = KILLED
            for output in self.outputs.values():
                output.eof = True
        elif code != 0:
            raise KataError("the sandbox's proxy is gone, and no other came up", "see proxy.log of the sandbox")


def open_console(console_socket: int) -> int:
    """Make a pseudo terminal, send its master over ``console_socket``, which is connected; return the slave.

    The slave becomes the controlling terminal, so that a resize by the engine
    arrives as SIGWINCH, and is raw: the guest's terminal does the line editing.

    :raise KataError: the other end is gone.
    """
    import fcntl
    import socket
    import termios
    import tty

    try:
        master, slave = os.openpty()
        with socket.socket(fileno=console_socket) as sock:
            socket.send_fds(sock, [os.ttyname(slave).encode()], [master])
        os.close(master)
        tty.setraw(slave, termios.TCSANOW)
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    except (OSError, termios.error) as e:
        raise KataError(f"cannot hand a terminal over to the console socket: {e}") from e
    return slave


def use_console(path: str) -> int:
    """Open the slave of a pseudo terminal whose master somebody else holds; raw, as above.

    :raise KataError: it is gone.
    """
    import termios
    import tty

    try:
        slave = os.open(path, os.O_RDWR)
        tty.setraw(slave, termios.TCSANOW)
    except (OSError, termios.error) as e:
        raise KataError(f"cannot use the terminal {path}: {e}") from e
    return slave


def set_title(args: list[str]) -> None:
    """Look like the process in ``ps``: engines show the command lines of the pids they are given.

    The words are written over the program's own argument area, which held them
    and more, so they fit.
    """
    with open("/proc/self/stat", "rb") as f:
        fields = f.read().rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start, arg_end: proc(5), fields 48 and 49
    text = b"\0".join(os.fsencode(arg) for arg in args)[: end - start - 1]
    try:
        with open("/proc/self/mem", "r+b", buffering=0) as f:
            f.seek(start)
            f.write(text.ljust(end - start, b"\0"))
    except OSError:
        pass  # only how it looks


def main(argv: list[str]) -> int:
    """``shim.py PATH CONTAINER EXEC-ID TERMINAL CONSOLE-SOCKET-FD CONSOLE CONNECTION-FD ARGS...``."""
    path, container, exec_id, terminal, console_socket, console, connection = argv[:7]
    with open("/proc/self/comm", "w") as f:
        f.write("kata-shim")
    set_title(argv[7:])
    sock = _socket.socket(fileno=int(connection)) if connection != "-" else None
    try:
        tty_fd = open_console(int(console_socket)) if console_socket else use_console(console) if console else -1
        return Shim(path, container, exec_id, terminal=terminal == "1", tty_fd=tty_fd, connection=sock).run()
    except NeverMade:
        return 255
    except KataError as e:
        if not console_socket:
            os.write(2, f"kata: {e}\n".encode())
        return 255


if __name__ == "__main__":
    # Everything is written; the interpreter's own end would keep the engine waiting for the exit code.
    os._exit(main(sys.argv[1:]))
