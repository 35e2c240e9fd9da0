"""Keyword parameters become wire messages, and wire messages results."""

from __future__ import annotations

from enum import Enum
from typing import Any

import pytest

import bespoke
from bespoke import Message, Persona, Template, _requests, _responses
from bespoke._generated.v1 import event_pb2, generation_pb2, prompt_pb2, tokenizer_pb2
from bespoke.options import GenerateOptions

EVERY_OPTION: dict[str, Any] = {
    "persona": "p",
    "template": "paper",
    "persona_in_prompt": True,
    "response_prefix": "x",
    "prefix_cache_off": True,
    "prefix_cache_salt": "s",
    "request_id": "r",
    "priority": -3,
    "temperature": 0.5,
    "top_k": 4,
    "top_p": 0.25,
    "min_p": 0.125,
    "repetition_penalty": 1.5,
    "frequency_penalty": -1.0,
    "presence_penalty": 2.0,
    "logit_bias": {3: -1.0},
    "seed": 2**64 - 1,
    "max_new_tokens": 9,
    "min_new_tokens": 2,
    "stop_strings": ["a", "b"],
    "stop_token_ids": [5],
    "ignore_end": True,
    "logprobs": True,
    "top_logprobs": 3,
    "prompt_logprobs": True,
    "echo": True,
    "n": 2,
    "time_limit_ms": 1000,
    "draft_tokens_max": 4,
}


def test_every_parameter_of_the_wire_has_a_keyword() -> None:
    prompts = {"messages", "token_ids"}
    assert set(EVERY_OPTION) | prompts == set(GenerateOptions.__optional_keys__)
    request = _requests.generate("q", EVERY_OPTION)  # type: ignore[arg-type]
    for message in (
        request,
        request.params,
        request.params.sampling,
        request.params.stop,
        request.params.logprobs,
    ):
        present = {field.name for field, _ in message.ListFields()}
        assert present == {field.name for field in message.DESCRIPTOR.fields}
    spec = {field.name for field, _ in request.spec.ListFields()}
    assert spec | prompts == {field.name for field in request.spec.DESCRIPTOR.fields}
    assert request.params.sampling.seed == 2**64 - 1
    assert request.params.stop.strings == ["a", "b"]
    assert request.params.logprobs.top == 3
    assert dict(request.params.sampling.logit_bias) == {3: -1.0}


def test_stream_and_unary_requests_are_equal() -> None:
    unary = _requests.generate("q", EVERY_OPTION)  # type: ignore[arg-type]
    stream = _requests.generate_stream("q", EVERY_OPTION)  # type: ignore[arg-type]
    assert unary.SerializeToString(deterministic=True) == stream.SerializeToString(deterministic=True)


def test_none_leaves_a_field_unset_and_zero_sets_it() -> None:
    absent = _requests.generate("", {"temperature": None, "max_new_tokens": None})
    assert not absent.params.sampling.HasField("temperature")
    assert not absent.params.HasField("max_new_tokens")
    assert absent.spec.WhichOneof("prompt") == "text"
    assert _requests.generate("", {"temperature": 0}).params.sampling.HasField("temperature")


def test_personas() -> None:
    def source(persona: Persona | str | None) -> prompt_pb2.PersonaSource:
        return _requests.generate("q", {"persona": persona}).spec.persona

    assert source("novice").text == source(Persona.text("novice")).text == "novice"
    assert source("").WhichOneof("source") == "text"
    assert source(Persona.id("x")).id == "x"
    assert source(Persona.system()).WhichOneof("source") == "system"
    assert source(Persona.none()).WhichOneof("source") == "none"
    assert not _requests.generate("q", {"persona": None}).spec.HasField("persona")


def test_messages_and_token_ids() -> None:
    turns: list[Any] = [Message("system", "s"), {"role": "user", "content": "u"}, Message(bespoke.Role.ASSISTANT, "a")]
    messages = _requests.generate(None, {"messages": turns}).spec.messages.messages
    assert [message.role for message in messages] == [1, 2, 3]
    assert [message.content for message in messages] == ["s", "u", "a"]
    assert _requests.generate(None, {"token_ids": (1, 2)}).spec.token_ids.ids == [1, 2]


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        (None, {}),
        ("q", {"token_ids": [1]}),
        ("q", {"template": "papre"}),
        ("q", {"temprature": 1}),
        ("q", {"top_k": -1}),
        ("q", {"top_k": "many"}),
        ("q", {"stop_strings": "END"}),
        ("\ud800", {}),
        (None, {"messages": [Message("robot", "x")]}),
        (None, {"messages": [{"role": "user", "text": "x"}]}),
    ],
)
def test_what_the_wire_cannot_say_is_refused(prompt: str | None, options: Any) -> None:  # noqa: ANN401
    with pytest.raises((TypeError, ValueError)):
        _requests.generate(prompt, options)


def test_score_and_render_requests() -> None:
    assert _requests.score("q", " Paris", 2, {}).continuation.text == " Paris"
    scored = _requests.score("q", [3, 4], 2, {"priority": 1})
    assert scored.continuation.token_ids.ids == [3, 4]
    assert (scored.top_logprobs, scored.priority) == (2, 1)
    assert not _requests.render_prompt("q", None, {}).HasField("response")
    assert _requests.render_prompt("q", "", {"template": Template.CHAT}).HasField("response")
    with pytest.raises(TypeError, match="temperature"):
        _requests.render_prompt("q", None, {"temperature": 1})  # type: ignore[typeddict-unknown-key]


@pytest.mark.parametrize(
    ("kind", "prefix", "wire"),
    [
        (bespoke.FinishReason, "FINISH_REASON_", event_pb2.FinishReason),
        (bespoke.Template, "TEMPLATE_", prompt_pb2.Template),
        (bespoke.SpanKind, "SPAN_KIND_", tokenizer_pb2.SpanKind),
        (bespoke.Role, "ROLE_", prompt_pb2.Role),
    ],
)
def test_enums_have_the_members_of_the_wire(kind: type[Enum], prefix: str, wire: Any) -> None:  # noqa: ANN401
    names = {prefix + member.name for member in kind}
    assert names | {prefix + "UNSPECIFIED"} == set(wire.keys())


def test_unknown_events_and_enum_numbers_do_not_break_an_old_client() -> None:
    assert _responses.event(generation_pb2.GenerateStreamResponse()) is None
    choice = generation_pb2.GeneratedChoice()
    # Field 5, `reason`, varint 99.
    choice.MergeFromString(b"\x28\x63")
    assert choice.reason == 99
    generation = _responses.generation(generation_pb2.GenerateResponse(choices=[choice]))
    assert generation.reason is bespoke.FinishReason.UNSPECIFIED
    assert generation.choices[0].matched_stop is None
