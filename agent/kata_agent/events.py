"""What happens in the guest without being asked for, kept until the host has read it."""

from __future__ import annotations

from kata_agent.linux.light import deque
from kata_agent.protocol import agent_pb2, guest_pb2
from kata_agent.server import Call

_KEPT = 1024
_KEPT_QUERIES = 256


class Events:
    """Numbered events for Guest.GetEvent, and the queue of AgentService.GetOOMEvent."""

    def __init__(self) -> None:
        self._events: deque[guest_pb2.Event] = deque(maxlen=_KEPT)
        # Apart: a container that asks for many names must not push out the end of another.
        self._queries: deque[guest_pb2.Event] = deque(maxlen=_KEPT_QUERIES)
        self._waiting: list[tuple[int, Call]] = []
        self._ooms: deque[str] = deque(maxlen=_KEPT)
        self._oom_calls: deque[Call] = deque()
        self.last = 0  #: number of the newest event

    def add(self, event: guest_pb2.Event) -> None:
        """Number an event and tell whoever waits."""
        self.last += 1
        event.seq = self.last
        (self._queries if event.WhichOneof("kind") == "dns_query" else self._events).append(event)
        waiting, self._waiting = self._waiting, []
        for after, call in waiting:
            self.get(after, call)

    def get(self, after: int, call: Call) -> None:
        """Answer with the first event whose number is above ``after``, now or when there is one."""
        if not call.alive:
            return
        newer = [next((e for e in kept if e.seq > after), None) for kept in (self._events, self._queries)]
        first = min((e for e in newer if e is not None), key=lambda e: e.seq, default=None)
        if first is not None:
            call.reply(first)
            return
        self._waiting = [(a, c) for a, c in self._waiting if c.alive]
        self._waiting.append((after, call))

    def exited(self, container_id: str, exec_id: str, status: int) -> None:
        event = guest_pb2.Event()
        event.exit.container_id = container_id
        event.exit.exec_id = exec_id
        event.exit.status = status
        self.add(event)

    def out_of_memory(self, container_id: str) -> None:
        event = guest_pb2.Event()
        event.oom.container_id = container_id
        self.add(event)
        self._ooms.append(container_id)
        self._serve_ooms()

    def get_oom(self, call: Call) -> None:
        """Answer with the next container that ran out of memory; each is told once."""
        self._oom_calls.append(call)
        self._serve_ooms()

    def _serve_ooms(self) -> None:
        while self._ooms and self._oom_calls:
            call = self._oom_calls.popleft()
            if call.alive:
                call.reply(agent_pb2.OOMEvent(container_id=self._ooms.popleft()))
