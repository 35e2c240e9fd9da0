"""From wire messages to the types of this package. Pure and total: an unknown enum number becomes UNSPECIFIED."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from grpc_health.v1 import health_pb2

from bespoke import events, results
from bespoke._generated.v1 import embedding_pb2, event_pb2, generation_pb2, model_pb2, prompt_pb2, tokenizer_pb2
from bespoke.events import FinishReason
from bespoke.prompt import Template
from bespoke.results import HealthStatus, SpanKind

if TYPE_CHECKING:
    from collections.abc import Iterable

_Reply = TypeVar("_Reply", FinishReason, Template, SpanKind)


def event(message: generation_pb2.GenerateStreamResponse) -> events.Event | None:
    """Returns the event of a message; None for a kind of event that this client does not know yet."""
    kind = message.WhichOneof("event")
    if kind == "started":
        return started(message.started)
    if kind == "delta":
        return _delta(message.delta)
    if kind == "finished":
        return _finished(message.finished)
    return None


def started(message: event_pb2.Started) -> events.Started:
    """Returns the first event."""
    return events.Started(
        request_id=message.request_id,
        model_digest=message.model_digest,
        template_hash=message.template_hash,
        persona=message.persona if message.HasField("persona") else None,
        prompt_tokens=message.prompt_tokens,
        cached_tokens=message.cached_tokens,
        seed=message.seed,
    )


def generation(message: generation_pb2.GenerateResponse) -> results.Generation:
    """Returns whole answers."""
    return results.Generation(
        started=started(message.started),
        choices=tuple(_generated_choice(choice) for choice in message.choices),
        usage=_usage(message.usage),
        timings=_timings(message.timings),
        prompt_logprobs=_logprobs(message.prompt_logprobs),
    )


def score(message: generation_pb2.ScoreResponse) -> results.Score:
    """Returns the log-probabilities of a continuation."""
    return results.Score(
        tokens=_logprobs(message.tokens), total_logprob=message.total_logprob, prompt_tokens=message.prompt_tokens
    )


def tokenization(message: tokenizer_pb2.TokenizeResponse) -> results.Tokenization:
    """Returns the tokens of a text."""
    return results.Tokenization(token_ids=tuple(message.token_ids), pieces=tuple(message.pieces))


def embeddings(message: embedding_pb2.EmbedResponse) -> results.Embeddings:
    """Returns the vectors of texts."""
    return results.Embeddings(
        embeddings=tuple(
            results.Embedding(values=tuple(one.values), num_tokens=one.num_tokens, truncated=one.truncated)
            for one in message.embeddings
        ),
        model=message.model,
        model_digest=message.model_digest,
    )


def rendered_prompt(message: tokenizer_pb2.RenderPromptResponse) -> results.RenderedPrompt:
    """Returns a rendered prompt."""
    return results.RenderedPrompt(
        text=message.text,
        spans=tuple(results.Span(text=s.text, kind=_span_kind(s.kind), trained=s.trained) for s in message.spans),
        token_ids=tuple(message.token_ids),
        trained=tuple(message.trained),
        template=_template(message.template),
        persona=message.persona if message.HasField("persona") else None,
        template_hash=message.template_hash,
    )


def server_info(message: model_pb2.GetServerInfoResponse) -> results.ServerInfo:
    """Returns the facts of the server."""
    model, limits, load, totals = message.model, message.limits, message.load, message.totals
    return results.ServerInfo(
        version=message.version,
        model=results.ModelInfo(
            name=model.name,
            digest=model.digest,
            architecture=model.architecture,
            num_parameters=model.num_parameters,
            quantization=model.quantization,
            context_length=model.context_length,
            vocab_size=model.vocab_size,
            eos_token_ids=tuple(model.eos_token_ids),
            has_chat_template=model.has_chat_template,
            default_template=_template(model.default_template),
        ),
        limits=results.Limits(
            sequences_max=limits.sequences_max,
            waiting_max=limits.waiting_max,
            kv_tokens_max=limits.kv_tokens_max,
            message_bytes_max=limits.message_bytes_max,
        ),
        load=results.Load(
            num_running=load.num_running,
            num_waiting=load.num_waiting,
            num_kv_blocks_used=load.num_kv_blocks_used,
            num_kv_blocks=load.num_kv_blocks,
        ),
        totals=results.Totals(
            num_requests=totals.num_requests,
            prompt_tokens=totals.prompt_tokens,
            cached_tokens=totals.cached_tokens,
            generated_tokens=totals.generated_tokens,
            drafted_tokens=totals.drafted_tokens,
            accepted_tokens=totals.accepted_tokens,
            num_preempted=totals.num_preempted,
        ),
        kernels=message.kernels,
        num_threads=message.num_threads,
        persona_ids=tuple(message.persona_ids),
        has_system_persona=message.has_system_persona,
        uptime_ms=message.uptime_ms,
    )


def health(message: health_pb2.HealthCheckResponse) -> HealthStatus:
    """Returns what the health service says."""
    known = {number: name for name, number in health_pb2.HealthCheckResponse.ServingStatus.items()}
    return HealthStatus(known.get(message.status, "UNKNOWN").lower())


def _delta(message: event_pb2.Delta) -> events.Delta:
    return events.Delta(
        choice=message.choice,
        text=message.text,
        token_ids=tuple(message.token_ids),
        logprobs=_logprobs(message.logprobs),
        prompt_logprobs=_logprobs(message.prompt_logprobs),
    )


def _finished(message: event_pb2.Finished) -> events.Finished:
    return events.Finished(
        choices=tuple(
            events.Choice(
                choice=choice.choice,
                reason=_finish_reason(choice.reason),
                matched_stop=_matched_stop(choice.matched_stop),
                generated_tokens=choice.generated_tokens,
            )
            for choice in message.choices
        ),
        usage=_usage(message.usage),
        timings=_timings(message.timings),
    )


def _generated_choice(message: generation_pb2.GeneratedChoice) -> results.GeneratedChoice:
    return results.GeneratedChoice(
        choice=message.choice,
        text=message.text,
        token_ids=tuple(message.token_ids),
        logprobs=_logprobs(message.logprobs),
        reason=_finish_reason(message.reason),
        matched_stop=_matched_stop(message.matched_stop),
        generated_tokens=message.generated_tokens,
    )


def _logprobs(messages: Iterable[event_pb2.TokenLogprob]) -> tuple[events.TokenLogprob, ...]:
    return tuple(
        events.TokenLogprob(
            token_id=message.token_id,
            piece=message.piece,
            logprob=message.logprob if message.HasField("logprob") else None,
            top=tuple(events.TopLogprob(top.token_id, top.piece, top.logprob) for top in message.top),
        )
        for message in messages
    )


def _matched_stop(message: event_pb2.MatchedStop) -> str | int | None:
    kind = message.WhichOneof("matched")
    if kind == "text":
        return message.text
    return message.token_id if kind == "token_id" else None


def _usage(message: event_pb2.Usage) -> events.Usage:
    return events.Usage(
        prompt_tokens=message.prompt_tokens,
        cached_tokens=message.cached_tokens,
        generated_tokens=message.generated_tokens,
        drafted_tokens=message.drafted_tokens,
        accepted_tokens=message.accepted_tokens,
    )


def _timings(message: event_pb2.Timings) -> events.Timings:
    return events.Timings(message.queue_ms, message.prefill_ms, message.decode_ms)


def _finish_reason(number: event_pb2.FinishReason) -> FinishReason:
    return _enum(FinishReason, "FINISH_REASON_", event_pb2.FinishReason.items(), number)


def _template(number: prompt_pb2.Template) -> Template:
    return _enum(Template, "TEMPLATE_", prompt_pb2.Template.items(), number)


def _span_kind(number: tokenizer_pb2.SpanKind) -> SpanKind:
    return _enum(SpanKind, "SPAN_KIND_", tokenizer_pb2.SpanKind.items(), number)


def _enum(kind: type[_Reply], prefix: str, items: Iterable[tuple[str, int]], number: int) -> _Reply:
    names = {value: name for name, value in items}
    return kind(names.get(number, prefix + "UNSPECIFIED")[len(prefix) :].lower())
