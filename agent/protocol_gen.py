"""Write the ``*_pb2.py`` and ``*_pb2.pyi`` files of kata_agent/protocol anew.

    python agent/protocol_gen.py [OUTPUT-FOLDER]

Needs grpcio-tools; the results are committed, so that nothing else does.
"""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAMES = ("oci", "types", "agent", "guest", "health", "ttrpc")


def generate(output: Path) -> None:
    """Compile every proto file into ``output``, which mirrors the agent's folder."""
    from grpc_tools import protoc

    include = resources.files("grpc_tools") / "_proto"
    arguments = ["protoc", f"-I{HERE}", f"-I{include}", f"--python_out={output}", f"--pyi_out={output}"]
    code = protoc.main([*arguments, *(f"kata_agent/protocol/{name}.proto" for name in NAMES)])
    if code:
        raise SystemExit(f"protoc failed with exit code {code}")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
