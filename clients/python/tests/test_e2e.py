"""Both clients and the command line against the real server; skipped where `BESPOKE_ENGINE_BIN` is not set."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TypedDict

import pytest
from conftest import RealServer

import bespoke
from bespoke import AsyncClient, Client, Delta, Finished, Persona, Started

# Sixteen answers that no end token shortens: work for much longer than a deadline or a cancellation takes.
LONG = bespoke.GenerateOptions(template="none", max_new_tokens=400, ignore_end=True, n=16)
# A debug build on a busy machine frees a cancelled request within a step.
IDLE_SECONDS = 20.0


class Golden(TypedDict):
    ids: list[int]
    text: str


@pytest.fixture
def golden(model_folder: Path) -> Golden:
    path = model_folder / "golden_greedy.json"
    if not path.exists():
        pytest.skip(f"no `{path.name}` beside the model")
    known: Golden = json.loads(path.read_text(encoding="utf-8"))
    return known


def wait_until_idle(client: Client) -> None:
    deadline = time.monotonic() + IDLE_SECONDS
    while (load := client.server_info().load).num_running or load.num_waiting:
        assert time.monotonic() < deadline, load
        time.sleep(0.02)


def joined(events: list[bespoke.Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


def test_greedy_is_golden(real_client: Client, golden: Golden) -> None:
    # The first id is BOS, which the server adds to the empty prompt.
    answer_ids = golden["ids"][1:]
    generation = real_client.generate("", template="none", temperature=0, max_new_tokens=len(answer_ids))
    assert list(generation.token_ids) == answer_ids
    assert generation.text == golden["text"]
    assert generation.usage.prompt_tokens == 1
    assert generation.usage.generated_tokens == len(answer_ids)


def test_stream_joined_is_unary(real_client: Client) -> None:
    options = bespoke.GenerateOptions(template="none", temperature=1, seed=11, max_new_tokens=80, logprobs=True)
    whole = real_client.generate("Once upon a time", **options)
    events = list(real_client.stream("Once upon a time", **options))
    started, finished = events[0], events[-1]
    assert isinstance(started, Started)
    assert isinstance(finished, Finished)
    deltas = [event for event in events[1:-1] if isinstance(event, Delta)]
    assert len(deltas) == len(events) - 2
    assert joined(events) == whole.text
    assert tuple(token_id for delta in deltas for token_id in delta.token_ids) == whole.token_ids
    assert tuple(logprob for delta in deltas for logprob in delta.logprobs) == whole.logprobs
    assert (started.seed, started.model_digest) == (11, whole.started.model_digest)
    assert finished.choices[0].reason is whole.reason
    assert finished.usage.generated_tokens == whole.usage.generated_tokens


def test_asyncio_streams_together_are_as_alone(real_server: RealServer) -> None:
    async def one(client: AsyncClient, seed: int) -> str:
        stream = client.stream("Once", template="none", temperature=1, seed=seed, max_new_tokens=40)
        return joined([event async for event in stream])

    async def body() -> None:
        async with AsyncClient(real_server.target) as client:
            alone = [await one(client, seed) for seed in range(4)]
            assert await asyncio.gather(*(one(client, seed) for seed in range(4))) == alone

    asyncio.run(body())


def test_score_agrees_with_sampled_logprobs(real_client: Client) -> None:
    generation = real_client.generate("Once", template="none", temperature=0, max_new_tokens=10, logprobs=True)
    score = real_client.score("Once", template="none", continuation=generation.token_ids)
    sampled = [token.logprob for token in generation.logprobs]
    assert [token.logprob for token in score.tokens] == pytest.approx(sampled, abs=1e-4)
    assert score.total_logprob == pytest.approx(sum(logprob or 0.0 for logprob in sampled), abs=1e-3)


def test_tokenizer_and_renderer(real_client: Client) -> None:
    tokens = real_client.tokenize("Once upon a time")
    assert len(tokens.pieces) == len(tokens.token_ids) > 0
    assert real_client.detokenize(tokens.token_ids).strip() == "Once upon a time"
    rendered = real_client.render_prompt("Tell a story.", persona="The user is a child.", template="paper")
    assert "".join(span.text for span in rendered.spans) == rendered.text
    assert "The user is a child." in rendered.text
    assert rendered.persona == "The user is a child."
    assert rendered.template is bespoke.Template.PAPER
    assert len(rendered.trained) == len(rendered.token_ids)


def test_without_an_encoder_embedding_is_not_implemented(real_client: Client) -> None:
    with pytest.raises(bespoke.Unimplemented, match="--embedding-model"):
        real_client.embed(["Once"])


def test_persona_reaches_the_prompt(real_client: Client) -> None:
    def generate(persona: str | None) -> bespoke.Generation:
        return real_client.generate("Tell a story.", persona=persona, template="paper", max_new_tokens=4)

    tailored, plain = generate("The user is a child."), generate(None)
    assert tailored.started.persona == "The user is a child."
    assert plain.started.persona is None
    assert plain.usage.prompt_tokens < tailored.usage.prompt_tokens


def test_wrong_fields_are_named(real_client: Client) -> None:
    with pytest.raises(bespoke.InvalidArgument) as caught:
        real_client.generate("Hi", template="paper", persona="  ")
    assert any(violation.field.startswith("spec.persona") for violation in caught.value.violations)
    with pytest.raises(bespoke.InvalidArgument) as caught:
        list(real_client.stream("Hi", template="none", top_p=2))
    assert [violation.field for violation in caught.value.violations] == ["params.sampling.top_p"]


def test_unknown_persona_is_not_found(real_client: Client) -> None:
    with pytest.raises(bespoke.NotFound) as caught:
        real_client.generate("Hi", template="paper", persona=Persona.id("nobody"))
    assert caught.value.resource_type == "persona"


def test_cancel_in_mid_stream_frees_the_server(real_client: Client) -> None:
    with real_client.stream("Once", **LONG) as events:
        assert any(isinstance(event, Delta) for event in events)
    wait_until_idle(real_client)


def test_deadline(real_client: Client) -> None:
    with pytest.raises(bespoke.DeadlineExceeded):
        list(real_client.stream("Once", timeout=0.01, **LONG))
    with pytest.raises(bespoke.DeadlineExceeded):
        real_client.generate("Once", timeout=0.01, **LONG)
    wait_until_idle(real_client)


def test_command_line(real_server: RealServer, golden: Golden) -> None:
    def bespoke_command(*args: str) -> str:
        command = [sys.executable, "-m", "bespoke", *args, "--target", real_server.target]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout

    num_tokens = str(len(golden["ids"]) - 1)
    greedy = ["generate", "", "--template", "none", "--temperature", "0", "--max-new-tokens", num_tokens]
    assert bespoke_command(*greedy) == golden["text"] + "\n"
    assert json.loads(bespoke_command(*greedy, "--json"))["token_ids"] == golden["ids"][1:]
    assert bespoke_command("health") == "serving\n"
    info = json.loads(bespoke_command("info", "--json"))
    assert info["load"]["num_kv_blocks"] > 0
    assert info["totals"]["accepted_tokens"] <= info["totals"]["drafted_tokens"]


def test_sigterm_drains_and_exits_0(own_server: RealServer) -> None:
    with Client(own_server.target) as client:
        events = client.stream("Once", template="none", max_new_tokens=60, ignore_end=True, timeout=60)
        assert isinstance(next(events), Started)
        own_server.process.send_signal(signal.SIGTERM)
        assert isinstance(list(events)[-1], Finished)
    assert own_server.process.wait(timeout=60) == 0
