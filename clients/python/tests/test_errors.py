"""Statuses and their google.rpc details become errors."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from google.protobuf import duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2 as details

import bespoke
from bespoke import AsyncClient, Client
from bespoke.errors import Details, decode_details
from fake_server import FakeServer, abort

BAD_REQUEST = details.BadRequest(
    field_violations=[
        details.BadRequest.FieldViolation(field="params.sampling.top_p", description="`top_p` is above 1"),
        details.BadRequest.FieldViolation(field="spec", description="missing"),
    ]
)
RETRY = details.RetryInfo(retry_delay=duration_pb2.Duration(seconds=1, nanos=500_000_000))
RESOURCE = details.ResourceInfo(resource_type="persona", resource_name="x")
INFO = details.ErrorInfo(reason="DEADLINE", domain="bespoke", metadata={"stage": "decode"})


def failure(client: Client, server: FakeServer, code: grpc.StatusCode, *parts: Message) -> bespoke.BespokeError:
    server.on_call = lambda context: abort(context, code, "why", *parts)
    with pytest.raises(bespoke.BespokeError) as caught:
        client.generate("Hi")

    async def awaited() -> bespoke.BespokeError:
        async with AsyncClient(server.target) as aio:
            with pytest.raises(bespoke.BespokeError) as caught:
                await aio.generate("Hi")
            return caught.value

    same = asyncio.run(awaited())
    assert (type(same), same.code, same.details) == (type(caught.value), caught.value.code, caught.value.details)
    return caught.value


def test_invalid_argument(client: Client, server: FakeServer) -> None:
    error = failure(client, server, grpc.StatusCode.INVALID_ARGUMENT, BAD_REQUEST)
    assert isinstance(error, bespoke.InvalidArgument)
    assert error.violations == (
        bespoke.Violation("params.sampling.top_p", "`top_p` is above 1"),
        bespoke.Violation("spec", "missing"),
    )
    assert (str(error), error.message) == ("INVALID_ARGUMENT: why", "why")


def test_retryable(client: Client, server: FakeServer) -> None:
    error = failure(client, server, grpc.StatusCode.RESOURCE_EXHAUSTED, INFO, RETRY)
    assert isinstance(error, bespoke.ResourceExhausted)
    assert (error.retry_after, error.details.reason) == (1.5, "DEADLINE")
    error = failure(client, server, grpc.StatusCode.UNAVAILABLE)
    assert isinstance(error, bespoke.Unavailable)
    assert error.retry_after is None


def test_not_found_and_deadline(client: Client, server: FakeServer) -> None:
    error = failure(client, server, grpc.StatusCode.NOT_FOUND, RESOURCE)
    assert isinstance(error, bespoke.NotFound)
    assert (error.resource_type, error.resource_name) == ("persona", "x")
    error = failure(client, server, grpc.StatusCode.DEADLINE_EXCEEDED, INFO)
    assert isinstance(error, bespoke.DeadlineExceeded)
    assert error.stage == "decode"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.CANCELLED, bespoke.Cancelled),
        (grpc.StatusCode.UNIMPLEMENTED, bespoke.Unimplemented),
        (grpc.StatusCode.INTERNAL, bespoke.ServerFault),
        (grpc.StatusCode.UNKNOWN, bespoke.ServerFault),
        (grpc.StatusCode.PERMISSION_DENIED, bespoke.BespokeError),
    ],
)
def test_other_codes(client: Client, server: FakeServer, code: grpc.StatusCode, kind: type) -> None:
    error = failure(client, server, code)
    assert type(error) is kind
    assert error.code is code


def test_details_that_cannot_be_decoded_are_left_out() -> None:
    assert decode_details(b"\xff\xff") == Details()
    assert decode_details(b"") == Details()
