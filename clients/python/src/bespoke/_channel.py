"""What both clients share: the default target and the options of a channel."""

from __future__ import annotations

DEFAULT_TARGET = "127.0.0.1:50051"

CHANNEL_OPTIONS: list[tuple[str, int]] = [
    # The server bounds what it sends; prompt log-probabilities of a long prompt pass gRPC's default of 4 MiB.
    ("grpc.max_receive_message_length", -1),
    # A server that has just been started is found soon. gRPC's default is 1 s.
    ("grpc.initial_reconnect_backoff_ms", 100),
]

# How long `wait_ready` rests before it asks again a server that ended its watch.
REWATCH_SECONDS = 0.05
