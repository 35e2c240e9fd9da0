"""The keyword parameters of the methods, named as on the wire. Leaving one out, or None, means the server's default."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Literal, Union

    import grpc

    from bespoke.prompt import Message, Persona, Template

    MessageLike = Union[Message, Mapping[str, str]]
    PersonaLike = Union[Persona, str]
    TemplateLike = Union[Template, Literal["paper", "chat", "none"]]


class ConnectOptions(TypedDict, total=False):
    """How a client connects.

    `tls` switches TLS on, as certificates do by themselves; `root_certificates` are trusted instead of the system's,
    and `client_certificate` is this client's own chain and its key, all in PEM. `credentials` stand for all three.
    `token` is a bearer token. `retries` is how often a call that the server has not begun to answer is tried again
    while the server is UNAVAILABLE, 0 to 4; default 4.
    """

    credentials: grpc.ChannelCredentials | None
    tls: bool
    root_certificates: bytes | None
    client_certificate: tuple[bytes, bytes] | None
    token: str | None
    retries: int | None


class PromptOptions(TypedDict, total=False):
    """What is asked beside the plain prompt, for whom, and how both become text.

    Exactly one of `prompt`, `messages` and `token_ids` is given. A message is a `Message` or a mapping with `role` and
    `content`; a persona is its text or a `Persona`. The members of `PrefixCache` are `prefix_cache_off` and
    `prefix_cache_salt`.
    """

    messages: Sequence[MessageLike] | None
    token_ids: Sequence[int] | None
    persona: PersonaLike | None
    template: TemplateLike | None
    persona_in_prompt: bool | None
    response_prefix: str | None
    prefix_cache_off: bool | None
    prefix_cache_salt: str | None


class RequestOptions(PromptOptions, total=False):
    """A prompt, and how the server names and queues the request."""

    request_id: str | None
    priority: int | None


class GenerateOptions(RequestOptions, total=False):
    """All parameters of a generation.

    The members of `StopParams` are `stop_strings`, `stop_token_ids` and `ignore_end`; those of `LogprobsParams` are
    `logprobs` (its `sampled`), `top_logprobs` and `prompt_logprobs`.
    """

    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    logit_bias: Mapping[int, float] | None
    seed: int | None
    max_new_tokens: int | None
    min_new_tokens: int | None
    stop_strings: Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    ignore_end: bool | None
    logprobs: bool | None
    top_logprobs: int | None
    prompt_logprobs: bool | None
    echo: bool | None
    n: int | None
    time_limit_ms: int | None
    draft_tokens_max: int | None
