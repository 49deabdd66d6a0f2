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
        # Apart: a container that asks for many names must not push out the end of another.
        self._kept: dict[str, deque[guest_pb2.Event]] = {
            "oom": deque(maxlen=_KEPT), "exit": deque(maxlen=_KEPT), "dns_query": deque(maxlen=_KEPT_QUERIES)}
        self._waiting: list[tuple[guest_pb2.GetEventRequest, Call]] = []
        self._ooms: deque[str] = deque(maxlen=_KEPT)
        self._oom_calls: deque[Call] = deque()
        self.last = 0  #: number of the newest event

    def add(self, event: guest_pb2.Event) -> None:
        """Number an event and tell whoever waits."""
        self.last += 1
        event.seq = self.last
        kind = event.WhichOneof("kind") or ""
        self._kept[kind].append(event)
        waiting, self._waiting = self._waiting, []
        for request, call in waiting:
            if event.seq > request.after and not _unwanted(kind, request):
                call.reply(event)
            elif call.alive:
                self._waiting.append((request, call))

    def get(self, request: guest_pb2.GetEventRequest, call: Call) -> None:
        """Answer with the first event whose number is above ``after``, now or when there is one."""
        newer = (next((e for e in kept if e.seq > request.after), None)
                 for kind, kept in self._kept.items() if not _unwanted(kind, request))
        first = min((e for e in newer if e is not None), key=lambda e: e.seq, default=None)
        if first is not None:
            call.reply(first)
            return
        self._waiting = [(r, c) for r, c in self._waiting if c.alive]
        self._waiting.append((request, call))

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


def _unwanted(kind: str, request: guest_pb2.GetEventRequest) -> bool:
    return kind == "exit" and request.no_exits
