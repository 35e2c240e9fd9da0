"""The blocking client. `aio.py` mirrors it for asyncio; `_requests.py` and `_responses.py` hold what both share."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar, cast

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bespoke import _requests, _responses, errors
from bespoke._attempts import Attempts
from bespoke._channel import DEFAULT_TARGET, REWATCH_SECONDS, connection
from bespoke._generated.v1 import (
    embedding_pb2_grpc,
    generation_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    tokenizer_pb2,
    tokenizer_pb2_grpc,
)
from bespoke.events import Event
from bespoke.results import HealthStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from typing_extensions import Self, Unpack

    from bespoke.options import ConnectOptions, GenerateOptions, PromptOptions, RequestOptions
    from bespoke.results import Embeddings, Generation, RenderedPrompt, Score, ServerInfo, Tokenization

_Message = TypeVar("_Message")


class Client:
    """A connection to one server; safe to share between threads.

    `target` is `HOST:PORT`; `ConnectOptions` says how to connect. Every method takes `timeout` in seconds, the deadline
    of the call, and raises a `BespokeError` where the call fails, TypeError or ValueError where the request cannot be
    made.
    """

    def __init__(self, target: str = DEFAULT_TARGET, **options: Unpack[ConnectOptions]) -> None:
        credentials, channel_options, self._metadata, self._retries = connection(target, options)
        if credentials is None:
            self._channel = grpc.insecure_channel(target, options=channel_options)
        else:
            self._channel = grpc.secure_channel(target, credentials, options=channel_options)
        self._generation = generation_pb2_grpc.GenerationServiceStub(self._channel)
        self._tokenizer = tokenizer_pb2_grpc.TokenizerServiceStub(self._channel)
        self._model = model_pb2_grpc.ModelServiceStub(self._channel)
        self._embedding = embedding_pb2_grpc.EmbeddingServiceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)

    def generate(
        self, prompt: str | None = None, *, timeout: float | None = None, **options: Unpack[GenerateOptions]
    ) -> Generation:
        """Returns whole answers."""
        request = _requests.generate(prompt, options)
        return _responses.generation(self._call(self._generation.Generate, request, timeout))

    def stream(
        self, prompt: str | None = None, *, timeout: float | None = None, **options: Unpack[GenerateOptions]
    ) -> EventStream:
        """Starts a generation and returns its events; leaving the stream early cancels it."""
        request = _requests.generate_stream(prompt, options)

        def start(timeout: float | None) -> Any:  # noqa: ANN401 (the stubs have no types)
            return self._generation.GenerateStream(request, timeout=timeout, metadata=self._metadata)

        return EventStream(start, Attempts(self._retries, timeout))

    def score(
        self,
        prompt: str | None = None,
        *,
        continuation: str | Sequence[int],
        top_logprobs: int = 0,
        timeout: float | None = None,
        **options: Unpack[RequestOptions],
    ) -> Score:
        """Returns the log-probability of a given continuation, text or token ids, token by token."""
        request = _requests.score(prompt, continuation, top_logprobs, options)
        return _responses.score(self._call(self._generation.Score, request, timeout))

    def tokenize(
        self, text: str, *, add_special: bool = False, parse_control: bool = False, timeout: float | None = None
    ) -> Tokenization:
        """Returns the tokens of a text."""
        request = tokenizer_pb2.TokenizeRequest(text=text, add_special=add_special, parse_control=parse_control)
        return _responses.tokenization(self._call(self._tokenizer.Tokenize, request, timeout))

    def detokenize(self, token_ids: Sequence[int], *, skip_control: bool = True, timeout: float | None = None) -> str:
        """Returns the text of tokens."""
        request = tokenizer_pb2.DetokenizeRequest(token_ids=token_ids, skip_control=skip_control)
        return cast("str", self._call(self._tokenizer.Detokenize, request, timeout).text)

    def render_prompt(
        self,
        prompt: str | None = None,
        *,
        response: str | None = None,
        timeout: float | None = None,
        **options: Unpack[PromptOptions],
    ) -> RenderedPrompt:
        """Returns what a prompt becomes, or with `response` what a training row becomes."""
        request = _requests.render_prompt(prompt, response, options)
        return _responses.rendered_prompt(self._call(self._tokenizer.RenderPrompt, request, timeout))

    def embed(self, texts: Sequence[str], *, normalize: bool = True, timeout: float | None = None) -> Embeddings:
        """Returns a vector for each text, of unit length unless `normalize` is off."""
        request = _requests.embed(texts, normalize)
        return _responses.embeddings(self._call(self._embedding.Embed, request, timeout))

    def server_info(self, *, timeout: float | None = None) -> ServerInfo:
        """Returns the facts of the server, its model and its present load."""
        return _responses.server_info(self._call(self._model.GetServerInfo, model_pb2.GetServerInfoRequest(), timeout))

    def health(self, *, timeout: float | None = None) -> HealthStatus:
        """Returns what the server's health service says."""
        return _responses.health(self._call(self._health.Check, health_pb2.HealthCheckRequest(), timeout, retries=0))

    def wait_ready(self, timeout: float | None = None) -> None:
        """Waits until the server serves. Raises DeadlineExceeded after `timeout` seconds; None waits for ever."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._watch_until_serving(deadline):
            time.sleep(REWATCH_SECONDS)

    def close(self) -> None:
        """Closes the connection and cancels the calls on it."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _watch_until_serving(self, deadline: float | None) -> bool:
        """Returns whether the server serves; False where it went away before it did."""
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        watch = self._health.Watch(
            health_pb2.HealthCheckRequest(), timeout=timeout, metadata=self._metadata, wait_for_ready=True
        )
        try:
            return any(_responses.health(update) is HealthStatus.SERVING for update in watch)
        except grpc.RpcError as error:
            failure = errors.from_status(cast("errors.RpcStatus", error))
            if isinstance(failure, errors.Unavailable):
                return False
            raise failure from error
        finally:
            watch.cancel()

    def _call(
        self,
        method: Callable[..., Any],
        request: _Message,
        timeout: float | None,
        retries: int | None = None,
    ) -> Any:  # noqa: ANN401
        attempts = Attempts(self._retries if retries is None else retries, timeout)
        while True:
            try:
                return method(request, timeout=attempts.timeout(), metadata=self._metadata)
            except grpc.RpcError as error:
                failure = errors.from_status(cast("errors.RpcStatus", error))
                delay = attempts.delay(failure)
                if delay is None:
                    raise failure from error
            time.sleep(delay)


class EventStream(Iterator[Event]):
    """The events of one generation. Ends after Finished, or by raising a `BespokeError`.

    Leaving its `with` block, `close()` and dropping it (as a `break` out of `for _ in client.stream(...)` does) cancel
    what is left of the call.
    """

    def __init__(self, start: Callable[[float | None], Any], attempts: Attempts) -> None:
        self._call: Any = None
        self._closed = threading.Event()
        # A call that is started again and `close()` by another thread know of each other.
        self._restart = threading.RLock()
        self._start = start
        self._attempts = attempts
        self._has_begun = False
        self._call = start(attempts.timeout())

    def __next__(self) -> Event:
        while True:
            try:
                for message in self._call:
                    self._has_begun = True
                    event = _responses.event(message)
                    if event is not None:
                        return event
                raise StopIteration
            except grpc.RpcError as error:
                # Only the cancelled status of this side's own cancellation is an end and not an error.
                if self._closed.is_set():
                    raise StopIteration from None
                failure = errors.from_status(cast("errors.RpcStatus", error))
                delay = None if self._has_begun else self._attempts.delay(failure)
                if delay is None:
                    raise failure from error
            self._closed.wait(delay)
            with self._restart:
                if self._closed.is_set():
                    raise StopIteration
                self._call = self._start(self._attempts.timeout())
                if self._closed.is_set():
                    # By a signal's handler, meanwhile.
                    self._call.cancel()

    def close(self) -> None:
        """Cancels what is left of the call. May be called twice and from another thread."""
        self._closed.set()
        with self._restart:
            if self._call is not None:
                self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
