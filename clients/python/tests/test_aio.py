"""The asyncio client against a scripted server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import grpc
import pytest

import bespoke
from bespoke import AsyncClient, Delta, Finished, HealthStatus, Started
from fake_server import Context, FakeServer, Response, abort, whole_stream

_Result = TypeVar("_Result")


def run(server: FakeServer, body: Callable[[AsyncClient], Awaitable[_Result]]) -> _Result:
    async def connected() -> _Result:
        async with AsyncClient(server.target) as client:
            return await body(client)

    return asyncio.run(asyncio.wait_for(connected(), timeout=20))


async def cancelled(server: FakeServer) -> bool:
    """Waits beside the loop, which has to run for a cancellation to leave."""
    return await asyncio.get_running_loop().run_in_executor(None, server.cancelled.wait, 5)


def test_all_methods(server: FakeServer) -> None:
    async def body(client: AsyncClient) -> None:
        generation = await client.generate("Hi", persona=bespoke.Persona.id("novice"))
        assert (generation.text, generation.seed) == ("Hello", 7)
        assert server.requests[0].spec.persona.id == "novice"
        assert (await client.score("Hi", continuation=[1])).total_logprob == -0.5
        assert (await client.tokenize("ab")).token_ids == (4, 5)
        assert await client.detokenize([4]) == "ab"
        assert (await client.render_prompt("Hi")).text == "<s>"
        assert (await client.embed(["a"])).embeddings[0].num_tokens == 3
        assert (await client.server_info()).version == "1"
        assert await client.health() is HealthStatus.SERVING

    run(server, body)


def test_stream(server: FakeServer) -> None:
    async def body(client: AsyncClient) -> list[bespoke.Event]:
        return [event async for event in client.stream("Hi")]

    events = run(server, body)
    assert [type(event) for event in events] == [Started, Delta, Delta, Finished]


def test_many_streams_at_once(server: FakeServer) -> None:
    async def one(client: AsyncClient) -> str:
        return "".join([event.text async for event in client.stream("Hi") if isinstance(event, Delta)])

    async def body(client: AsyncClient) -> list[str]:
        return await asyncio.gather(*(one(client) for _ in range(20)))

    assert run(server, body) == ["Hello"] * 20


def test_breaking_out_of_a_loop_cancels(server: FakeServer) -> None:
    server.on_stream = server.endless_stream

    async def body(client: AsyncClient) -> None:
        async for event in client.stream("Hi"):
            if isinstance(event, Delta):
                break
        assert await cancelled(server)

    run(server, body)


def test_leaving_the_block_cancels_and_ends_the_stream(server: FakeServer) -> None:
    server.on_stream = server.endless_stream

    async def body(client: AsyncClient) -> None:
        async with client.stream("Hi") as events:
            assert isinstance(await events.__anext__(), Started)
        assert await cancelled(server)
        assert [event async for event in events] == []

    run(server, body)


def test_cancelling_the_task_cancels_the_call(server: FakeServer) -> None:
    server.on_stream = server.silent_stream

    async def body(client: AsyncClient) -> None:
        events = client.stream("Hi")
        assert isinstance(await events.__anext__(), Started)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(events.__anext__(), timeout=0.1)
        assert await cancelled(server)

    run(server, body)


def test_close_by_another_task_ends_a_waiting_stream(server: FakeServer) -> None:
    server.on_stream = server.silent_stream

    async def body(client: AsyncClient) -> None:
        events = client.stream("Hi")
        assert isinstance(await events.__anext__(), Started)
        asyncio.get_running_loop().call_later(0.1, events.close)
        assert [event async for event in events] == []

    run(server, body)


def test_errors_and_timeouts(server: FakeServer) -> None:
    def fails(context: Context) -> Iterator[Response]:
        yield from list(whole_stream())[:2]
        abort(context, grpc.StatusCode.INTERNAL, "broken")

    async def body(client: AsyncClient) -> None:
        server.on_stream = fails
        with pytest.raises(bespoke.ServerFault, match="broken"):
            [event async for event in client.stream("Hi")]
        server.on_stream = server.silent_stream
        with pytest.raises(bespoke.DeadlineExceeded):
            [event async for event in client.stream("Hi", timeout=0.2)]
        server.on_call = lambda context: time.sleep(0.5)
        with pytest.raises(bespoke.DeadlineExceeded):
            await client.generate("Hi", timeout=0.1)
        with pytest.raises(ValueError, match="exactly one"):
            await client.generate("Hi", token_ids=[1])

    run(server, body)


def test_wait_ready(server: FakeServer) -> None:
    async def body(client: AsyncClient) -> None:
        server.set_serving(False)
        with pytest.raises(bespoke.DeadlineExceeded):
            await client.wait_ready(timeout=0.2)
        asyncio.get_running_loop().call_later(0.2, server.set_serving, True)
        await client.wait_ready(timeout=5)

    run(server, body)
