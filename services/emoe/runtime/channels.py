"""Client channels between services, and the passing on of deadlines."""

from __future__ import annotations

from typing import Any

import grpc

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
KEEPALIVE_SECONDS = 20
_MIN_PING_INTERVAL_SECONDS = 10

_SHARED_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
)

CHANNEL_OPTIONS: tuple[tuple[str, Any], ...] = (
    *_SHARED_OPTIONS,
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # A neighbour that restarts is found again soon, and not through some proxy of the environment.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.enable_http_proxy", 0),
    # Two channels to one address fail and recover apart from each other.
    ("grpc.use_local_subchannel_pool", 1),
)


MAX_PENDING_CALLS = 100_000


def server_options(max_receive_bytes: int = MAX_MESSAGE_BYTES) -> tuple[tuple[str, Any], ...]:
    """Options of a server whose clients come through `open_channel`."""
    return (
        *_SHARED_OPTIONS,
        ("grpc.max_receive_message_length", max_receive_bytes),
        # Below the clients' keepalive interval, or the server would answer pings with ENHANCE_YOUR_CALM.
        ("grpc.http2.min_ping_interval_without_data_ms", _MIN_PING_INTERVAL_SECONDS * 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        # Two processes on one port would share its connections without a word.
        ("grpc.so_reuseport", 0),
        # Calls in a burst wait for the event loop. From 1,000 on gRPC would drop some of them as CANCELLED, at random;
        # what is too much is for the service to say, with a delay after which to try again.
        ("grpc.server.max_pending_requests", MAX_PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING_CALLS),
    )


def open_channel(address: str) -> grpc.aio.Channel:
    """A plaintext channel to `host:port` or `unix:/path`. Connects at first use; the caller closes it."""
    return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)


def remaining_seconds(context: Any, cap: float) -> float:
    """What is left of the incoming call's deadline, at most `cap`: the timeout for a call made on its behalf."""
    remaining = context.time_remaining()
    return cap if remaining is None else min(float(remaining), cap)
