"""The blocking client against a scripted server."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import grpc
import pytest

import bespoke
from bespoke import Client, Delta, Finished, FinishReason, HealthStatus, Started, Template
from fake_server import Context, FakeServer, Response, abort, whole_stream


def test_generate(client: Client, server: FakeServer) -> None:
    generation = client.generate("Hi", persona="novice", temperature=0)
    assert (generation.text, generation.token_ids, generation.seed) == ("Hello", (0, 1), 7)
    assert generation.reason is FinishReason.STOP
    assert generation.choices[0].matched_stop == "!"
    assert generation.usage == bespoke.Usage(prompt_tokens=3, cached_tokens=1, generated_tokens=2)
    assert generation.timings == bespoke.Timings(queue_ms=1, prefill_ms=2, decode_ms=3)
    assert generation.request_id == "r1"
    assert generation.started.persona is None
    assert server.requests[0].spec.persona.text == "novice"


def test_stream(client: Client) -> None:
    events = list(client.stream("Hi"))
    assert [type(event) for event in events] == [Started, Delta, Delta, Finished]
    assert "".join(event.text for event in events if isinstance(event, Delta)) == "Hello"
    last = events[-1]
    assert isinstance(last, Finished)
    assert last.choices == (bespoke.Choice(0, FinishReason.LENGTH, None, 2),)


def test_other_methods(client: Client) -> None:
    score = client.score("Hi", continuation=" Paris", top_logprobs=1)
    assert (score.total_logprob, score.prompt_tokens) == (-0.5, 3)
    assert score.tokens[0].top == (bespoke.TopLogprob(6, b" Lyon", -2.0),)
    assert client.tokenize("ab") == bespoke.Tokenization((4, 5), (b"a", b"\xff"))
    assert client.detokenize([4, 5]) == "ab"
    embedded = client.embed(["a", "b"], normalize=False)
    assert embedded == bespoke.Embeddings((bespoke.Embedding((0.5, 1.0), 3, True),) * 2, "minilm", "d")
    with pytest.raises(TypeError):
        client.embed("ab")
    rendered = client.render_prompt("Hi", persona="p", template="chat", response="yes")
    assert (rendered.template, rendered.persona, rendered.trained) == (Template.CHAT, "p", (False,))
    assert rendered.spans == (bespoke.Span("<s>", bespoke.SpanKind.CONTROL, False),)
    info = client.server_info()
    assert (info.model.name, info.model.eos_token_ids, info.persona_ids) == ("tiny", (2,), ("novice",))
    assert info.model.default_template is Template.PAPER


def test_breaking_out_of_a_loop_cancels(client: Client, server: FakeServer) -> None:
    server.on_stream = server.endless_stream
    for event in client.stream("Hi"):
        if isinstance(event, Delta):
            break
    assert server.cancelled.wait(5)


def test_leaving_the_block_cancels_and_ends_the_stream(client: Client, server: FakeServer) -> None:
    server.on_stream = server.endless_stream
    with client.stream("Hi") as events:
        assert isinstance(next(events), Started)
    assert server.cancelled.wait(5)
    # What arrived before the cancellation may still come; then the stream ends without an error.
    assert all(isinstance(event, Delta) for event in events)


def test_close_by_another_thread_ends_a_waiting_stream(client: Client, server: FakeServer) -> None:
    server.on_stream = server.silent_stream
    events = client.stream("Hi")
    assert isinstance(next(events), Started)
    timer = threading.Timer(0.1, events.close)
    timer.start()
    assert list(events) == []
    assert server.cancelled.wait(5)
    timer.join()


def test_error_in_mid_stream_comes_after_the_events(client: Client, server: FakeServer) -> None:
    def fails(context: Context) -> Iterator[Response]:
        yield from list(whole_stream())[:2]
        abort(context, grpc.StatusCode.INTERNAL, "broken")

    server.on_stream = fails
    events = client.stream("Hi")
    assert isinstance(next(events), Started)
    assert isinstance(next(events), Delta)
    with pytest.raises(bespoke.ServerFault, match="broken"):
        next(events)


def test_timeouts(client: Client, server: FakeServer) -> None:
    server.on_stream = server.silent_stream
    with pytest.raises(bespoke.DeadlineExceeded):
        list(client.stream("Hi", timeout=0.2))
    server.on_call = lambda context: time.sleep(0.5)
    with pytest.raises(bespoke.DeadlineExceeded) as caught:
        client.generate("Hi", timeout=0.1)
    assert caught.value.stage is None


def test_a_refused_request_is_not_sent(client: Client, server: FakeServer) -> None:
    with pytest.raises(ValueError, match="exactly one"):
        client.stream()
    with pytest.raises(TypeError, match="temprature"):
        client.generate("Hi", temprature=1)  # type: ignore[call-arg]
    assert server.requests == []


def test_health_and_wait_ready(client: Client, server: FakeServer) -> None:
    client.wait_ready(timeout=5)
    assert client.health() is HealthStatus.SERVING
    server.set_serving(False)
    assert client.health() is HealthStatus.NOT_SERVING
    with pytest.raises(bespoke.DeadlineExceeded):
        client.wait_ready(timeout=0.2)
    timer = threading.Timer(0.2, server.set_serving, [True])
    timer.start()
    client.wait_ready(timeout=5)
    timer.join()


def test_wait_ready_outlasts_a_server_that_is_not_up_yet() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{unused.getsockname()[1]}"
        with Client(target) as client:
            with pytest.raises(bespoke.Unavailable):
                client.generate("Hi")
            with pytest.raises(bespoke.DeadlineExceeded):
                client.wait_ready(timeout=0.3)
