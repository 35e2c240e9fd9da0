"""The `openai` package against `--http-address`."""

from __future__ import annotations

import asyncio
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import Any

import openai
import pytest
from conftest import Server

MESSAGES: list[Any] = [{"role": "user", "content": "How do I cook rice?"}]
PERSONA = {"persona": "The user is a novice cook."}
# What is not OpenAI's goes into `extra_body`, as its users do with every such server.
WHOLE = {"ignore_eos": True}


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.openai, api_key="unused", max_retries=0)


@pytest.fixture
def model(client: openai.OpenAI) -> str:
    (served,) = client.models.list().data
    return served.id


def test_models(client: openai.OpenAI, model: str) -> None:
    served = client.models.retrieve(model)
    assert (served.id, served.object, served.owned_by) == (model, "model", "bespoke")
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-x")
    assert caught.value.code == "model_not_found"


def test_a_chat_whole_and_streamed_is_the_same(client: openai.OpenAI, model: str) -> None:
    options: dict[str, Any] = {"model": model, "messages": MESSAGES, "max_tokens": 20, "seed": 7, "extra_body": WHOLE}
    whole = client.chat.completions.create(**options)
    (choice,) = whole.choices
    assert (choice.message.role, choice.finish_reason) == ("assistant", "length")
    assert choice.message.content
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 20
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + 20

    stream = client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == choice.message.content
    assert len(chunks) > 10
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 20


def test_a_completion_whole_and_streamed_is_the_same(client: openai.OpenAI, model: str) -> None:
    options: dict[str, Any] = {"model": model, "prompt": "tell me", "max_tokens": 20, "temperature": 0}
    options["extra_body"] = WHOLE
    whole = client.completions.create(**options, n=2, logprobs=2)
    first, second = whole.choices
    assert first.text == second.text
    assert first.logprobs is not None
    assert first.logprobs.tokens is not None
    assert len(first.logprobs.tokens) == 20
    streamed = client.completions.create(**options, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed if chunk.choices) == first.text


def test_logprobs_of_a_chat(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=3, logprobs=True, top_logprobs=2, extra_body=WHOLE
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [len(token.top_logprobs) for token in logprobs.content] == [2, 2, 2]


def test_a_persona_is_a_field_more(client: openai.OpenAI, model: str) -> None:
    def prompt_tokens(**extra: object) -> int:
        answer = client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=1, extra_body=extra)
        assert answer.usage is not None
        return answer.usage.prompt_tokens

    plain = prompt_tokens()
    assert prompt_tokens(persona=PERSONA["persona"]) > plain
    assert prompt_tokens(persona={"id": "novice"}) > plain
    with pytest.raises(openai.NotFoundError) as caught:
        prompt_tokens(persona={"id": "absent"})
    assert (caught.value.param, caught.value.code) == ("persona", "persona_not_found")


def test_a_wrong_field_is_a_bad_request(client: openai.OpenAI, model: str) -> None:
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("temperature", {"temperature": -1}),
        ("temprature", {"extra_body": {"temprature": 1}}),
        ("response_format", {"response_format": {"type": "json_object"}}),
    ]
    for field, options in wrong:
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model=model, messages=MESSAGES, **options)
        assert (caught.value.status_code, caught.value.param) == (400, field)
        assert caught.value.type == "invalid_request_error"


def test_a_full_queue_is_a_rate_limit(narrow_server: Server) -> None:
    client = openai.OpenAI(base_url=narrow_server.openai, api_key="unused", max_retries=0)
    (served,) = client.models.list().data

    def long() -> object:
        return client.completions.create(model=served.id, prompt="long", max_tokens=1500, extra_body=WHOLE)

    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(long) for _ in range(8)]
        # One is answered and one waits, both for long; the first that ends is one of those refused.
        ended, _ = wait(asked, return_when=FIRST_COMPLETED)
        error = ended.pop().exception()
        narrow_server.kill()
    assert isinstance(error, openai.RateLimitError), error
    assert error.code == "queue_full"
    assert error.response.headers["retry-after"] == "1"


def test_its_own_retries_outlast_a_full_queue(narrow_server: Server) -> None:
    client = openai.OpenAI(base_url=narrow_server.openai, api_key="unused", max_retries=20)
    (served,) = client.models.list().data

    def ask(_: int) -> int:
        answer = client.completions.create(model=served.id, prompt="short", max_tokens=50, extra_body=WHOLE)
        assert answer.usage is not None
        return answer.usage.completion_tokens

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(ask, range(6))) == [50] * 6


def test_leaving_a_stream_frees_the_server(narrow_server: Server) -> None:
    client = openai.OpenAI(base_url=narrow_server.openai, api_key="unused", max_retries=0, timeout=60)
    (served,) = client.models.list().data
    # One at a time: the next is answered only once the one before has been given up.
    for _ in range(3):
        with client.completions.create(
            model=served.id, prompt="long", max_tokens=1500, stream=True, extra_body=WHOLE
        ) as stream:
            assert next(iter(stream)).object == "text_completion"


def test_asyncio(server: Server, model: str) -> None:
    async def body() -> None:
        async with openai.AsyncOpenAI(base_url=server.openai, api_key="unused") as client:
            stream = await client.chat.completions.create(
                model=model, messages=MESSAGES, max_tokens=10, seed=1, stream=True, extra_body={**WHOLE, **PERSONA}
            )
            chunks = [chunk async for chunk in stream]
        assert chunks[-1].choices[0].finish_reason == "length"

    asyncio.run(body())
