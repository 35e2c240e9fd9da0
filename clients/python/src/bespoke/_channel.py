"""What both clients share: how they connect and prove who they are."""

from __future__ import annotations

from typing import Any, NamedTuple

import grpc

from bespoke._attempts import RETRIES_MAX
from bespoke.options import ConnectOptions

DEFAULT_TARGET = "127.0.0.1:50051"

# How long `wait_ready` rests before it asks again a server that ended its watch.
REWATCH_SECONDS = 0.05
_CHANNEL_OPTIONS: list[tuple[str, Any]] = [
    # The server bounds what it sends; prompt log-probabilities of a long prompt pass gRPC's default of 4 MiB.
    ("grpc.max_receive_message_length", -1),
    # A server that has just been started is found soon. gRPC's default is 1 s.
    ("grpc.initial_reconnect_backoff_ms", 100),
]
# Targets that never leave this machine.
_LOCAL = ("127.", "localhost", "[::1]", "unix:")


class Connection(NamedTuple):
    """What a channel is made of, the metadata of each call on it, and how often a call is tried again."""

    credentials: grpc.ChannelCredentials | None
    channel_options: list[tuple[str, Any]]
    metadata: tuple[tuple[str, str], ...]
    retries: int


def connection(target: str, options: ConnectOptions) -> Connection:
    """Turns parameters into what a channel needs. Raises TypeError or ValueError where they do not go together."""
    known = ConnectOptions.__optional_keys__
    unknown = sorted(set(options) - known)
    if unknown:
        raise TypeError(f"unknown parameter `{unknown[0]}`; known: {', '.join(sorted(known))}")
    credentials = _credentials(options)
    token = options.get("token")
    if token and credentials is None and not target.startswith(_LOCAL):
        raise ValueError("a `token` is only sent over TLS or to this machine: set `tls`")
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    return Connection(credentials, _CHANNEL_OPTIONS, metadata, _retries(options.get("retries")))


def _credentials(options: ConnectOptions) -> grpc.ChannelCredentials | None:
    credentials, roots = options.get("credentials"), options.get("root_certificates")
    own = options.get("client_certificate")
    if credentials is not None:
        if roots is not None or own is not None:
            raise ValueError("give either `credentials` or certificates")
        return credentials
    if not options.get("tls", roots is not None or own is not None):
        if roots is not None or own is not None:
            raise ValueError("certificates need `tls`")
        return None
    chain, key = own if own is not None else (None, None)
    return grpc.ssl_channel_credentials(root_certificates=roots, private_key=key, certificate_chain=chain)


def _retries(given: int | None) -> int:
    retries = RETRIES_MAX if given is None else given
    if not 0 <= retries <= RETRIES_MAX:
        raise ValueError(f"`retries` is {retries}, must be 0 to {RETRIES_MAX}")
    return retries
