"""Stands for QEMU: the very machine, but what answers at its serial port is a Kata 1.x agent's wire.

A process of its own takes the listening socket that QEMU would have, and is a
yamux server there; behind it are gRPC, with nothing but ``grpc.AgentService``
and ``grpc.Health``, and the agent in the guest.  It ends with QEMU.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import socket
import sys
import threading
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]
sys.path += [str(HERE), str(HERE / "agent"), str(HERE / "tests")]
QEMU = "/usr/bin/qemu-system-x86_64"
PR_SET_PDEATHSIG = 1


def main() -> None:
    argv = sys.argv[1:]
    place = next((n for n, word in enumerate(argv) if word.startswith("socket,id=channel,fd=")), None)
    if place is not None:
        fd = int(argv[place].split("fd=")[1].split(",")[0])
        console = next(word for word in argv if word.startswith("file,id=console"))
        folder = os.path.dirname(re.findall(r"path=([^,]+)", console)[0])
        token = re.findall(r"agent\.channel_token=(\w+)", " ".join(argv))[0]
        ours = socket.socket(socket.AF_UNIX)
        ours.bind(f"{folder}/ours.sock")
        ours.listen()
        os.set_inheritable(ours.fileno(), True)
        argv[place] = argv[place].replace(f"fd={fd},", f"fd={ours.fileno()},")
        if os.fork() == 0:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, 9)
            ours.close()
            try:
                translate(socket.socket(fileno=fd), folder, token)
            finally:
                os._exit(1)
        os.close(fd)
    os.execv(QEMU, [QEMU, *argv])


def translate(listener: socket.socket, folder: str, token: str) -> None:
    from harness.mux import Mux, splice
    from kata.agent_client import AgentClient
    from kata.transport import grpc_gate

    grpc_gate.METHODS = {key: method for key, method in grpc_gate.METHODS.items() if key[0] != "kata.v1.Guest"}
    inner = f"{folder}/translator.sock"
    there = threading.Event()

    async def serve() -> None:
        client = AgentClient(f"{folder}/ours.sock", token)
        await client.connect()

        async def reach() -> AgentClient:
            return client

        server = await grpc_gate.serve(inner, reach)
        there.set()
        await server.wait_for_termination()

    threading.Thread(target=lambda: asyncio.run(serve()), daemon=True).start()
    sock, _ = listener.accept()
    there.wait()  # a guest that boots does not answer
    mux = Mux(sock, client=False)
    while (stream := mux.opened.get()) is not None:
        far = socket.socket(socket.AF_UNIX)
        far.connect(inner)
        threading.Thread(target=splice, args=(stream, far), daemon=True).start()


if __name__ == "__main__":
    main()
