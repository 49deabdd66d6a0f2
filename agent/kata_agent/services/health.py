"""grpc.Health."""

from __future__ import annotations

from kata_agent import __version__
from kata_agent.protocol import health_pb2
from kata_agent.server import Call

SERVICE = "grpc.Health"
_GRPC_VERSION = "1.0.0"  # of the protocol that Kata 1.12's agent speaks


class Health:
    """Whether the agent serves, and which one it is."""

    def check(self, _request: health_pb2.CheckRequest, _call: Call) -> health_pb2.HealthCheckResponse:
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)

    def version(self, _request: health_pb2.CheckRequest, _call: Call) -> health_pb2.VersionCheckResponse:
        return health_pb2.VersionCheckResponse(grpc_version=_GRPC_VERSION, agent_version=__version__)
