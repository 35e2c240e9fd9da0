"""A gRPC server inside the test process that answers as its script says and remembers what it was asked."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent import futures
from typing import Any, Callable

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from bespoke._generated.v1 import (
    embedding_pb2,
    embedding_pb2_grpc,
    event_pb2,
    generation_pb2,
    generation_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    prompt_pb2,
    tokenizer_pb2,
    tokenizer_pb2_grpc,
)

STARTED = event_pb2.Started(request_id="r1", model_digest="d", template_hash="t", prompt_tokens=3, seed=7)
ENDED = event_pb2.Choice(choice=0, reason=event_pb2.FINISH_REASON_LENGTH, generated_tokens=2)
USAGE = event_pb2.Usage(prompt_tokens=3, cached_tokens=1, generated_tokens=2)
TIMINGS = event_pb2.Timings(queue_ms=1, prefill_ms=2, decode_ms=3)

Context = grpc.ServicerContext
Response = generation_pb2.GenerateStreamResponse


def whole_stream(texts: tuple[str, ...] = ("Hel", "lo")) -> Iterator[Response]:
    """Yields a stream as the server's contract has it."""
    yield Response(started=STARTED)
    for number, text in enumerate(texts):
        yield Response(delta=event_pb2.Delta(text=text, token_ids=[number]))
    yield Response(finished=event_pb2.Finished(choices=[ENDED], usage=USAGE, timings=TIMINGS))


def abort(context: Context, code: grpc.StatusCode, message: str, *details: Message) -> None:
    """Ends a call with a status and google.rpc details."""
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(code, message)


class FakeServer(
    generation_pb2_grpc.GenerationServiceServicer,
    tokenizer_pb2_grpc.TokenizerServiceServicer,
    model_pb2_grpc.ModelServiceServicer,
    embedding_pb2_grpc.EmbeddingServiceServicer,
):
    """The four services. A test replaces `on_call` and `on_stream`; `cancelled` is set when a stream's call ends."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.on_call: Callable[[Context], object] = lambda context: None
        self.on_stream: Callable[[Context], Iterator[Response]] = lambda context: whole_stream()
        self.cancelled = threading.Event()
        self.health = health.HealthServicer()
        self._server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(self, self._server)
        tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server(self, self._server)
        model_pb2_grpc.add_ModelServiceServicer_to_server(self, self._server)
        embedding_pb2_grpc.add_EmbeddingServiceServicer_to_server(self, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def listen_tls(self, key: bytes, chain: bytes, client_roots: bytes | None = None) -> str:
        """Listens with TLS too, before `start`; with `client_roots` clients have to prove who they are."""
        credentials = grpc.ssl_server_credentials(
            [(key, chain)], root_certificates=client_roots, require_client_auth=client_roots is not None
        )
        return f"localhost:{self._server.add_secure_port('localhost:0', credentials)}"

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        self.health.enter_graceful_shutdown()
        self._server.stop(grace=None).wait()

    def set_serving(self, is_serving: bool) -> None:
        status = health_pb2.HealthCheckResponse
        self.health.set("", status.SERVING if is_serving else status.NOT_SERVING)

    def endless_stream(self, context: Context) -> Iterator[Response]:
        """Sends a delta every few milliseconds until the client goes away."""
        context.add_callback(self.cancelled.set)
        yield Response(started=STARTED)
        while not self.cancelled.wait(0.005):
            yield Response(delta=event_pb2.Delta(text="a", token_ids=[1]))

    def silent_stream(self, context: Context) -> Iterator[Response]:
        """Sends only the first event, then waits until the client goes away."""
        context.add_callback(self.cancelled.set)
        yield Response(started=STARTED)
        self.cancelled.wait(10)

    def GenerateStream(self, request: Any, context: Context) -> Iterator[Response]:  # noqa: ANN401
        self.requests.append(request)
        return self.on_stream(context)

    def Generate(self, request: Any, context: Context) -> generation_pb2.GenerateResponse:  # noqa: ANN401
        self._asked(request, context)
        choice = generation_pb2.GeneratedChoice(
            text="Hello", token_ids=[0, 1], reason=event_pb2.FINISH_REASON_STOP, generated_tokens=2
        )
        choice.matched_stop.text = "!"
        return generation_pb2.GenerateResponse(started=STARTED, choices=[choice], usage=USAGE, timings=TIMINGS)

    def Score(self, request: Any, context: Context) -> generation_pb2.ScoreResponse:  # noqa: ANN401
        self._asked(request, context)
        top = event_pb2.TopLogprob(token_id=6, piece=b" Lyon", logprob=-2.0)
        token = event_pb2.TokenLogprob(token_id=5, piece=b" \xffParis", logprob=-0.5, top=[top])
        return generation_pb2.ScoreResponse(tokens=[token], total_logprob=-0.5, prompt_tokens=3)

    def Tokenize(self, request: Any, context: Context) -> tokenizer_pb2.TokenizeResponse:  # noqa: ANN401
        self._asked(request, context)
        return tokenizer_pb2.TokenizeResponse(token_ids=[4, 5], pieces=[b"a", b"\xff"])

    def Detokenize(self, request: Any, context: Context) -> tokenizer_pb2.DetokenizeResponse:  # noqa: ANN401
        self._asked(request, context)
        return tokenizer_pb2.DetokenizeResponse(text="ab")

    def RenderPrompt(self, request: Any, context: Context) -> tokenizer_pb2.RenderPromptResponse:  # noqa: ANN401
        self._asked(request, context)
        span = tokenizer_pb2.Span(text="<s>", kind=tokenizer_pb2.SPAN_KIND_CONTROL)
        return tokenizer_pb2.RenderPromptResponse(
            text="<s>", spans=[span], token_ids=[1], trained=[False], template=prompt_pb2.TEMPLATE_CHAT, persona="p"
        )

    def Embed(self, request: Any, context: Context) -> embedding_pb2.EmbedResponse:  # noqa: ANN401
        self._asked(request, context)
        vectors = [embedding_pb2.Embedding(values=[0.5, 1.0], num_tokens=3, truncated=True) for _ in request.texts]
        return embedding_pb2.EmbedResponse(embeddings=vectors, model="minilm", model_digest="d")

    def GetServerInfo(self, request: Any, context: Context) -> model_pb2.GetServerInfoResponse:  # noqa: ANN401
        self._asked(request, context)
        model = model_pb2.ModelInfo(name="tiny", eos_token_ids=[2], default_template=prompt_pb2.TEMPLATE_PAPER)
        return model_pb2.GetServerInfoResponse(version="1", model=model, persona_ids=["novice"])

    def _asked(self, request: object, context: Context) -> None:
        self.requests.append(request)
        self.on_call(context)
