"""`grpcio-health-checking` against the gRPC port, as `grpc-health-probe` and load balancers ask."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import grpc
import openai
import pytest
from conftest import Server
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVICES = [
    "",
    "bespoke.v1.GenerationService",
    "bespoke.v1.ModelService",
    "bespoke.v1.TokenizerService",
    "inference.GRPCInferenceService",
]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def health(server: Server) -> Iterator[health_pb2_grpc.HealthStub]:
    with grpc.insecure_channel(server.grpc) as channel:
        yield health_pb2_grpc.HealthStub(channel)


@pytest.mark.parametrize("service", SERVICES)
def test_every_service_has_a_status(health: health_pb2_grpc.HealthStub, service: str) -> None:
    request = health_pb2.HealthCheckRequest(service=service)
    assert health.Check(request, timeout=60).status == SERVING
    watch = health.Watch(request, timeout=60)
    assert next(watch).status == SERVING
    watch.cancel()


@pytest.mark.parametrize("service", ["absent", "bespoke.v1.EmbeddingService"])
def test_what_is_not_served_is_not_found(health: health_pb2_grpc.HealthStub, service: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        health.Check(health_pb2.HealthCheckRequest(service=service), timeout=60)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_server_that_drains_says_so(narrow_server: Server) -> None:
    client = openai.OpenAI(base_url=narrow_server.openai, api_key="unused")
    (served,) = client.models.list().data
    answer = client.completions.create(
        model=served.id, prompt="long", max_tokens=300, stream=True, extra_body={"ignore_eos": True}
    )
    with grpc.insecure_channel(narrow_server.grpc) as channel:
        request = health_pb2.HealthCheckRequest(service=SERVICES[1])
        watch = health_pb2_grpc.HealthStub(channel).Watch(request, timeout=60)
        assert next(watch).status == SERVING
        next(answer)
        narrow_server.process.send_signal(signal.SIGTERM)
        assert next(watch).status == NOT_SERVING
        # What was taken in is still answered.
        assert [*answer][-1].choices[0].finish_reason == "length"
        watch.cancel()
    assert narrow_server.process.wait(timeout=60) == 0
