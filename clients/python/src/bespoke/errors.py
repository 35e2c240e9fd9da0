"""Errors of the server and of the connection, one class per gRPC status that a caller treats differently."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable

# Where gRPC carries the google.rpc.Status with its details.
_DETAILS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True)
class Violation:
    """One field of a request that the server refused. `field` is its path, such as `params.sampling.top_p`."""

    field: str
    description: str


@dataclass(frozen=True)
class Details:
    """The google.rpc details of a status, as far as Bespoke sends them."""

    violations: tuple[Violation, ...] = ()
    retry_after: float | None = None
    resource_type: str = ""
    resource_name: str = ""
    reason: str = ""
    metadata: dict[str, str] = field(default_factory=dict)


class BespokeError(Exception):
    """A call failed. Holds the gRPC status `code`, the server's `message` and the decoded `details`."""

    def __init__(self, code: grpc.StatusCode, message: str, details: Details) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message
        self.details = details


class InvalidArgument(BespokeError):
    """A field of the request is wrong."""

    @property
    def violations(self) -> tuple[Violation, ...]:
        """Which fields, and why."""
        return self.details.violations


class NotFound(BespokeError):
    """What the request names is not known to the server."""

    @property
    def resource_type(self) -> str:
        """What kind of thing was named, such as `persona`."""
        return self.details.resource_type

    @property
    def resource_name(self) -> str:
        """The name that is not known."""
        return self.details.resource_name


class _Retryable(BespokeError):
    @property
    def retry_after(self) -> float | None:
        """When to try again, in seconds. None where the server did not say."""
        return self.details.retry_after


class ResourceExhausted(_Retryable):
    """The queue or the KV cache is full."""


class Unavailable(_Retryable):
    """The server cannot be reached, is loading its model, or is draining."""


class DeadlineExceeded(BespokeError):
    """The `timeout` of the call ran out."""

    @property
    def stage(self) -> str | None:
        """Where the request was at that time. None where the client's clock was first."""
        return self.details.metadata.get("stage")


class Cancelled(BespokeError):
    """Someone else cancelled the call, such as a proxy or the server."""


class Unimplemented(BespokeError):
    """The server does not have the method, as with an older version."""


class ServerFault(BespokeError):
    """A fault of the server."""


_CLASSES: dict[grpc.StatusCode, type[BespokeError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
    grpc.StatusCode.INTERNAL: ServerFault,
    grpc.StatusCode.UNKNOWN: ServerFault,
    grpc.StatusCode.DATA_LOSS: ServerFault,
}


class RpcStatus(Protocol):
    """What the errors of grpc and of grpc.aio have in common."""

    def code(self) -> grpc.StatusCode:
        """Returns the status code."""

    def details(self) -> str | None:
        """Returns the message."""

    def trailing_metadata(self) -> Iterable[tuple[str, str | bytes]] | None:
        """Returns what the server sent after the last message."""


def from_status(status: RpcStatus) -> BespokeError:
    """Turns the failed status of a call into the error of its code."""
    details = Details()
    for key, value in status.trailing_metadata() or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            details = decode_details(value)
    return _CLASSES.get(status.code(), BespokeError)(status.code(), status.details() or "", details)


def decode_details(encoded: bytes) -> Details:
    """Decodes a google.rpc.Status. What cannot be decoded is left out: the status itself still tells the error."""
    found = Details()
    bad_request, retry = error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    resource, info = error_details_pb2.ResourceInfo(), error_details_pb2.ErrorInfo()
    try:
        for detail in status_pb2.Status.FromString(encoded).details:
            for message in (bad_request, retry, resource, info):
                if detail.Unpack(message):
                    break
    except DecodeError:
        return found
    return Details(
        violations=tuple(Violation(v.field, v.description) for v in bad_request.field_violations),
        retry_after=_seconds(retry) if retry.HasField("retry_delay") else None,
        resource_type=resource.resource_type,
        resource_name=resource.resource_name,
        reason=info.reason,
        metadata=dict(info.metadata),
    )


def _seconds(retry: error_details_pb2.RetryInfo) -> float:
    return float(retry.retry_delay.seconds + retry.retry_delay.nanos * 1e-9)
