"""Client of the Bespoke engine: persona-tailored text over gRPC.

`Client` blocks, `AsyncClient` is for asyncio; both have the same methods. Units, ranges and defaults of every parameter
and field stand in the .proto files of `bespoke.v1`, whose names this package keeps.
"""

from __future__ import annotations

from bespoke.aio import AsyncClient, AsyncEventStream
from bespoke.client import Client, EventStream
from bespoke.errors import (
    BespokeError,
    Cancelled,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    ServerFault,
    Unavailable,
    Unimplemented,
    Violation,
)
from bespoke.events import (
    Choice,
    Delta,
    Event,
    Finished,
    FinishReason,
    Started,
    Timings,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from bespoke.options import ConnectOptions, GenerateOptions, PromptOptions
from bespoke.prompt import Message, Persona, Role, Template
from bespoke.results import (
    Embedding,
    Embeddings,
    GeneratedChoice,
    Generation,
    HealthStatus,
    Limits,
    Load,
    ModelInfo,
    RenderedPrompt,
    Score,
    ServerInfo,
    Span,
    SpanKind,
    Tokenization,
)

__all__ = [
    "AsyncClient",
    "AsyncEventStream",
    "BespokeError",
    "Cancelled",
    "Choice",
    "Client",
    "ConnectOptions",
    "DeadlineExceeded",
    "Delta",
    "Embedding",
    "Embeddings",
    "Event",
    "EventStream",
    "FinishReason",
    "Finished",
    "GenerateOptions",
    "GeneratedChoice",
    "Generation",
    "HealthStatus",
    "InvalidArgument",
    "Limits",
    "Load",
    "Message",
    "ModelInfo",
    "NotFound",
    "Persona",
    "PromptOptions",
    "RenderedPrompt",
    "ResourceExhausted",
    "Role",
    "Score",
    "ServerFault",
    "ServerInfo",
    "Span",
    "SpanKind",
    "Started",
    "Template",
    "Timings",
    "TokenLogprob",
    "Tokenization",
    "TopLogprob",
    "Unavailable",
    "Unimplemented",
    "Usage",
    "Violation",
]
