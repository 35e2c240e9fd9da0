"""From keyword parameters to wire messages. Pure: the server checks ranges, this only what the wire cannot say."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from bespoke._generated.v1 import embedding_pb2, generation_pb2, params_pb2, prompt_pb2, tokenizer_pb2
from bespoke.options import GenerateOptions, PromptOptions, RequestOptions
from bespoke.prompt import Message, Persona, Role, Template

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bespoke.options import MessageLike, PersonaLike, TemplateLike


def generate(prompt: str | None, options: GenerateOptions) -> generation_pb2.GenerateRequest:
    """Makes a request for whole answers. Raises TypeError or ValueError for what the wire cannot carry."""
    _check_names(options, GenerateOptions)
    return generation_pb2.GenerateRequest(
        spec=_spec(prompt, options),
        params=_params(options),
        request_id=options.get("request_id"),
        priority=options.get("priority"),
    )


def generate_stream(prompt: str | None, options: GenerateOptions) -> generation_pb2.GenerateStreamRequest:
    """Makes the same request for a stream."""
    request = generate(prompt, options)
    return generation_pb2.GenerateStreamRequest(
        spec=request.spec, params=request.params, request_id=request.request_id, priority=request.priority
    )


def score(
    prompt: str | None, continuation: str | Sequence[int], top_logprobs: int, options: RequestOptions
) -> generation_pb2.ScoreRequest:
    """Makes a request for the log-probability of `continuation`."""
    _check_names(options, RequestOptions)
    if isinstance(continuation, str):
        given = generation_pb2.Continuation(text=continuation)
    else:
        given = generation_pb2.Continuation(token_ids=prompt_pb2.TokenIdList(ids=continuation))
    return generation_pb2.ScoreRequest(
        spec=_spec(prompt, options),
        continuation=given,
        top_logprobs=top_logprobs,
        request_id=options.get("request_id"),
        priority=options.get("priority"),
    )


def render_prompt(
    prompt: str | None, response: str | None, options: PromptOptions
) -> tokenizer_pb2.RenderPromptRequest:
    """Makes a request to render a prompt, with a response as for training where one is given."""
    _check_names(options, PromptOptions)
    return tokenizer_pb2.RenderPromptRequest(spec=_spec(prompt, options), response=response)


def _check_names(options: PromptOptions, allowed: type) -> None:
    known = cast("frozenset[str]", allowed.__optional_keys__)  # type: ignore[attr-defined]
    unknown = sorted(set(options) - known)
    if unknown:
        raise TypeError(f"unknown parameter `{unknown[0]}`; known: {', '.join(sorted(known))}")


def _spec(prompt: str | None, options: PromptOptions) -> prompt_pb2.PromptSpec:
    messages, token_ids = options.get("messages"), options.get("token_ids")
    if sum(given is not None for given in (prompt, messages, token_ids)) != 1:
        raise ValueError("give exactly one of `prompt`, `messages` and `token_ids`")
    return prompt_pb2.PromptSpec(
        text=prompt,
        messages=None if messages is None else prompt_pb2.MessageList(messages=map(_message, messages)),
        token_ids=None if token_ids is None else prompt_pb2.TokenIdList(ids=token_ids),
        persona=_persona(options.get("persona")),
        template=_template(options.get("template")),
        persona_in_prompt=bool(options.get("persona_in_prompt")),
        response_prefix=options.get("response_prefix"),
        prefix_cache=prompt_pb2.PrefixCache(
            off=bool(options.get("prefix_cache_off")), salt=options.get("prefix_cache_salt")
        ),
    )


def embed(texts: Sequence[str], normalize: bool) -> embedding_pb2.EmbedRequest:
    """Makes a request for vectors."""
    # A lone string is a sequence of its letters, each of which would silently become a text.
    if isinstance(texts, str):
        raise TypeError("`texts` is a list of strings, not one string")
    return embedding_pb2.EmbedRequest(texts=texts, normalize=normalize)


def _message(message: MessageLike) -> prompt_pb2.Message:
    if not isinstance(message, Message):
        message = _message_of_mapping(message)
    return prompt_pb2.Message(role=f"ROLE_{Role(message.role).name}", content=message.content)


def _message_of_mapping(mapping: Mapping[str, str]) -> Message:
    if set(mapping) != {"role", "content"}:
        raise ValueError(f"a message has `role` and `content`, not {sorted(mapping)}")
    return Message(mapping["role"], mapping["content"])


def _persona(persona: PersonaLike | None) -> prompt_pb2.PersonaSource | None:
    if persona is None:
        return None
    if isinstance(persona, str):
        persona = Persona.text(persona)
    if persona == Persona.none():
        return prompt_pb2.PersonaSource(none=prompt_pb2.NoPersona())
    if persona == Persona.system():
        return prompt_pb2.PersonaSource(system=prompt_pb2.SystemPersona())
    if persona == Persona.id(persona.value):
        return prompt_pb2.PersonaSource(id=persona.value)
    return prompt_pb2.PersonaSource(text=persona.value)


def _template(template: TemplateLike | None) -> str:
    """Returns the name on the wire, which a message takes in place of the number."""
    chosen = Template.UNSPECIFIED if template is None else Template(template)
    return f"TEMPLATE_{chosen.name}"


def _params(options: GenerateOptions) -> params_pb2.GenerationParams:
    # A keyword that is None leaves its field unset, which is what tells "default" from zero.
    return params_pb2.GenerationParams(
        sampling=params_pb2.SamplingParams(
            temperature=options.get("temperature"),
            top_k=options.get("top_k"),
            top_p=options.get("top_p"),
            min_p=options.get("min_p"),
            repetition_penalty=options.get("repetition_penalty"),
            frequency_penalty=options.get("frequency_penalty"),
            presence_penalty=options.get("presence_penalty"),
            logit_bias=options.get("logit_bias"),
            seed=options.get("seed"),
        ),
        max_new_tokens=options.get("max_new_tokens"),
        min_new_tokens=options.get("min_new_tokens"),
        stop=params_pb2.StopParams(
            strings=_strings(options.get("stop_strings")),
            token_ids=options.get("stop_token_ids"),
            ignore_end=bool(options.get("ignore_end")),
        ),
        logprobs=params_pb2.LogprobsParams(
            sampled=bool(options.get("logprobs")),
            top=options.get("top_logprobs"),
            prompt=bool(options.get("prompt_logprobs")),
        ),
        echo=bool(options.get("echo")),
        n=options.get("n"),
        time_limit_ms=options.get("time_limit_ms"),
        draft_tokens_max=options.get("draft_tokens_max"),
    )


def _strings(strings: Sequence[str] | None) -> Sequence[str] | None:
    # A lone string is a sequence of its letters, each of which would silently become a stop string.
    if isinstance(strings, str):
        raise TypeError("`stop_strings` is a list of strings, not one string")
    return strings
