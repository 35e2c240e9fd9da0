"""What a stream consists of: one Started, Deltas of any choice, one Finished. Fields are those of event.proto."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Union


class FinishReason(str, Enum):
    """Why a choice ended. UNSPECIFIED stands for a reason that this client does not know yet."""

    UNSPECIFIED = "unspecified"
    END_OF_TEXT = "end_of_text"
    STOP = "stop"
    LENGTH = "length"
    TIME_LIMIT = "time_limit"


@dataclass(frozen=True)
class TopLogprob:
    """One of the most likely tokens at a place."""

    token_id: int
    piece: bytes
    logprob: float


@dataclass(frozen=True)
class TokenLogprob:
    """The log-probability of one token; None for the first token of a prompt."""

    token_id: int
    piece: bytes
    logprob: float | None
    top: tuple[TopLogprob, ...]


@dataclass(frozen=True)
class Usage:
    """What a request used, in tokens."""

    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    drafted_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(frozen=True)
class Timings:
    """How long a request took, in milliseconds."""

    queue_ms: float
    prefill_ms: float
    decode_ms: float


@dataclass(frozen=True)
class Started:
    """What is known when a request leaves the queue."""

    request_id: str
    model_digest: str
    template_hash: str
    persona: str | None
    prompt_tokens: int
    cached_tokens: int
    seed: int


@dataclass(frozen=True)
class Delta:
    """What one choice has grown by."""

    choice: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    prompt_logprobs: tuple[TokenLogprob, ...]


@dataclass(frozen=True)
class Choice:
    """How one choice ended. `matched_stop` is the stop string, or the id of the stop or end token, or None."""

    choice: int
    reason: FinishReason
    matched_stop: str | int | None
    generated_tokens: int


@dataclass(frozen=True)
class Finished:
    """The end of a request."""

    choices: tuple[Choice, ...]
    usage: Usage
    timings: Timings


Event = Union[Started, Delta, Finished]
