"""How the clients connect: retries, tokens, TLS."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest
from google.rpc import error_details_pb2

import bespoke
from bespoke import AsyncClient, Client, Delta, Finished, cli
from fake_server import Context, FakeServer, Response, abort, whole_stream


class Flaky:
    """Answers UNAVAILABLE so many times, and says when to try again where it is told to."""

    def __init__(self, num_failures: int, retry_after: float | None = None) -> None:
        self.times: list[float] = []
        self._num_failures = num_failures
        self._details = []
        if retry_after is not None:
            info = error_details_pb2.RetryInfo()
            info.retry_delay.FromNanoseconds(round(retry_after * 1e9))
            self._details.append(info)

    @property
    def num_calls(self) -> int:
        return len(self.times)

    @property
    def waits(self) -> list[float]:
        """The seconds between one call and the next."""
        return [later - earlier for earlier, later in zip(self.times, self.times[1:])]

    def call(self, context: Context) -> None:
        self.times.append(time.monotonic())
        if self.num_calls <= self._num_failures:
            abort(context, grpc.StatusCode.UNAVAILABLE, "starting", *self._details)

    def stream(self, context: Context) -> Iterator[Response]:
        self.call(context)
        yield from whole_stream()


def test_unavailable_is_tried_again(server: FakeServer, client: Client) -> None:
    flaky = Flaky(2)
    server.on_call = flaky.call
    assert client.generate("Hi").text == "Hello"
    assert flaky.num_calls == 3


def test_a_stream_that_has_not_begun_is_tried_again(server: FakeServer, client: Client) -> None:
    flaky = Flaky(1)
    server.on_stream = flaky.stream
    assert "".join(event.text for event in client.stream("Hi") if isinstance(event, Delta)) == "Hello"
    assert flaky.num_calls == 2


def test_a_stream_that_has_begun_is_not_tried_again(server: FakeServer, client: Client) -> None:
    def breaks_off(context: Context) -> Iterator[Response]:
        yield next(whole_stream())
        abort(context, grpc.StatusCode.UNAVAILABLE, "stopping")

    server.on_stream = breaks_off
    with pytest.raises(bespoke.Unavailable):
        list(client.stream("Hi"))
    assert len(server.requests) == 1


def test_the_server_says_how_long_to_wait(server: FakeServer, client: Client) -> None:
    # Longer than the backoff of both retries together.
    flaky = Flaky(2, retry_after=0.7)
    server.on_call = flaky.call
    assert client.generate("Hi").text == "Hello"
    assert flaky.num_calls == 3
    assert min(flaky.waits) >= 0.7
    server.on_stream = Flaky(1, retry_after=0.7).stream
    begun = time.monotonic()
    assert isinstance(list(client.stream("Hi"))[-1], Finished)
    assert time.monotonic() - begun >= 0.7


def test_a_wait_past_the_deadline_is_not_begun(server: FakeServer, client: Client) -> None:
    flaky = Flaky(10, retry_after=60)
    server.on_call = flaky.call
    server.on_stream = flaky.stream
    begun = time.monotonic()
    with pytest.raises(bespoke.Unavailable) as caught:
        client.generate("Hi", timeout=30)
    assert caught.value.retry_after == 60
    with pytest.raises(bespoke.Unavailable):
        list(client.stream("Hi", timeout=30))
    assert flaky.num_calls == 2
    assert time.monotonic() - begun < 20


def test_closing_a_stream_ends_its_wait(server: FakeServer, client: Client) -> None:
    flaky = Flaky(10, retry_after=60)
    server.on_stream = flaky.stream
    events = client.stream("Hi")
    closer = threading.Timer(0.3, events.close)
    closer.start()
    assert list(events) == []
    closer.join()
    assert flaky.num_calls == 1


def test_retries_are_bounded_and_can_be_off(server: FakeServer) -> None:
    for retries in (0, 1):
        flaky = Flaky(10)
        server.on_call = flaky.call
        with Client(server.target, retries=retries) as client, pytest.raises(bespoke.Unavailable):
            client.generate("Hi")
        assert flaky.num_calls == retries + 1


def test_other_errors_are_not_tried_again(server: FakeServer, client: Client) -> None:
    server.on_call = lambda context: abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
    with pytest.raises(bespoke.ResourceExhausted):
        client.generate("Hi")
    assert len(server.requests) == 1


def test_asyncio_tries_again(server: FakeServer) -> None:
    call, stream = Flaky(1, retry_after=0.5), Flaky(1, retry_after=0.5)
    server.on_call = call.call
    server.on_stream = stream.stream

    async def body() -> tuple[str, str]:
        async with AsyncClient(server.target) as client:
            streamed = [event.text async for event in client.stream("Hi") if isinstance(event, Delta)]
            return (await client.generate("Hi")).text, "".join(streamed)

    assert asyncio.run(body()) == ("Hello", "Hello")
    assert min(call.waits + stream.waits) >= 0.5
    assert (call.num_calls, stream.num_calls) == (2, 2)


def test_closing_an_asyncio_stream_ends_its_wait(server: FakeServer) -> None:
    flaky = Flaky(10, retry_after=60)
    server.on_stream = flaky.stream

    async def body() -> None:
        async with AsyncClient(server.target) as client:
            events = client.stream("Hi")
            asyncio.get_running_loop().call_later(0.3, events.close)
            assert [event async for event in events] == []

    asyncio.run(body())
    assert flaky.num_calls == 1


def test_the_token_is_sent_with_every_call(server: FakeServer) -> None:
    seen = []
    server.on_call = lambda context: seen.append(dict(context.invocation_metadata()).get("authorization"))
    with Client(server.target, token="secret") as client:
        client.generate("Hi")
        client.server_info()
    assert seen == ["Bearer secret"] * 2


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ValueError, match="TLS"):
        Client("engine.example:50051", token="secret")
    with pytest.raises(ValueError, match="retries"):
        Client(retries=5)
    with pytest.raises(ValueError, match="certificates need"):
        Client(tls=False, root_certificates=b"")
    with pytest.raises(TypeError, match="tsl"):
        Client(tsl=True)  # type: ignore[call-arg]


class Pair(NamedTuple):
    """A certificate that is its own authority, and its key."""

    certificate: Path
    key: Path


def make_pair(folder: Path, name: str) -> Pair:
    if shutil.which("openssl") is None:
        pytest.skip("no `openssl` to make certificates with")
    pair = Pair(folder / f"{name}.pem", folder / f"{name}.key")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(pair.key), "-out", str(pair.certificate), "-days", "2", "-subj", f"/CN={name}"]
    subprocess.run([*command, "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)
    return pair


def test_tls_with_certificates_on_both_sides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own, client_pair = make_pair(tmp_path, "server"), make_pair(tmp_path, "client")
    roots = own.certificate.read_bytes()
    server = FakeServer()
    target = server.listen_tls(own.key.read_bytes(), roots, client_pair.certificate.read_bytes())
    server.start()
    try:
        proof = (client_pair.certificate.read_bytes(), client_pair.key.read_bytes())
        with Client(target, root_certificates=roots, client_certificate=proof, token="secret") as client:
            assert client.generate("Hi").text == "Hello"
        with Client(target, root_certificates=roots, retries=0) as client, pytest.raises(bespoke.Unavailable):
            client.generate("Hi", timeout=5)
        files = ["--root-certificates", str(own.certificate), "--client-certificate", str(client_pair.certificate)]
        assert cli.main(["generate", "Hi", "--target", target, *files, "--client-key", str(client_pair.key)]) == 0
        assert capsys.readouterr().out == "Hello\n"
        assert cli.main(["info", "--target", target, "--root-certificates", str(tmp_path / "absent")]) == 2
    finally:
        server.stop()
