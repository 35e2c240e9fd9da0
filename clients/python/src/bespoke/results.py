"""What the unary methods return. Fields are those of the wire messages."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bespoke.events import FinishReason, Started, Timings, TokenLogprob, Usage
    from bespoke.prompt import Template


@dataclass(frozen=True)
class GeneratedChoice:
    """One whole answer."""

    choice: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    reason: FinishReason
    matched_stop: str | int | None
    generated_tokens: int


@dataclass(frozen=True)
class Generation:
    """Whole answers. `text`, `token_ids`, `logprobs` and `reason` are those of the first choice."""

    started: Started
    choices: tuple[GeneratedChoice, ...]
    usage: Usage
    timings: Timings
    prompt_logprobs: tuple[TokenLogprob, ...]

    @property
    def text(self) -> str:
        """The first answer."""
        return self.choices[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The tokens of the first answer."""
        return self.choices[0].token_ids

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...]:
        """The log-probabilities of the first answer's tokens, if asked for."""
        return self.choices[0].logprobs

    @property
    def reason(self) -> FinishReason:
        """Why the first answer ended."""
        return self.choices[0].reason

    @property
    def seed(self) -> int:
        """The seed in use, as given or as chosen by the server."""
        return self.started.seed

    @property
    def request_id(self) -> str:
        """The request's id, as given or as chosen by the server."""
        return self.started.request_id


@dataclass(frozen=True)
class Score:
    """The log-probabilities of a continuation, natural logarithm."""

    tokens: tuple[TokenLogprob, ...]
    total_logprob: float
    prompt_tokens: int


@dataclass(frozen=True)
class Tokenization:
    """The tokens of a text."""

    token_ids: tuple[int, ...]
    pieces: tuple[bytes, ...]


@dataclass(frozen=True)
class Embedding:
    """The vector of one text."""

    values: tuple[float, ...]
    num_tokens: int
    truncated: bool


@dataclass(frozen=True)
class Embeddings:
    """The vectors of texts, in order, and the encoder that made them."""

    embeddings: tuple[Embedding, ...]
    model: str
    model_digest: str


class SpanKind(str, Enum):
    """What the text of a span means to the tokenizer."""

    UNSPECIFIED = "unspecified"
    TEXT = "text"
    CONTROL = "control"


@dataclass(frozen=True)
class Span:
    """One piece of a rendered prompt."""

    text: str
    kind: SpanKind
    trained: bool


@dataclass(frozen=True)
class RenderedPrompt:
    """A rendered prompt."""

    text: str
    spans: tuple[Span, ...]
    token_ids: tuple[int, ...]
    trained: tuple[bool, ...]
    template: Template
    persona: str | None
    template_hash: str


@dataclass(frozen=True)
class ModelInfo:
    """The facts of a model."""

    name: str
    digest: str
    architecture: str
    num_parameters: int
    quantization: str
    context_length: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    has_chat_template: bool
    default_template: Template


@dataclass(frozen=True)
class Limits:
    """What the server accepts."""

    sequences_max: int
    waiting_max: int
    kv_tokens_max: int
    message_bytes_max: int


@dataclass(frozen=True)
class Load:
    """What the server is doing now."""

    num_running: int
    num_waiting: int
    num_kv_blocks_used: int
    num_kv_blocks: int


@dataclass(frozen=True)
class Totals:
    """What the server has done since it started; tokens count once their request has ended."""

    num_requests: int
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    drafted_tokens: int
    accepted_tokens: int
    num_preempted: int


@dataclass(frozen=True)
class ServerInfo:
    """The facts of the server."""

    version: str
    model: ModelInfo
    limits: Limits
    load: Load
    totals: Totals
    kernels: str
    num_threads: int
    persona_ids: tuple[str, ...]
    has_system_persona: bool
    uptime_ms: int


class HealthStatus(str, Enum):
    """What the health service says of the server."""

    UNKNOWN = "unknown"
    SERVING = "serving"
    NOT_SERVING = "not_serving"
    SERVICE_UNKNOWN = "service_unknown"
