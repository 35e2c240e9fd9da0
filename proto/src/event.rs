//! Conversion of events and of what they are made of.

use std::time::Duration;

use bespoke_domain::{self as domain, Invalid, Persona, RequestId};

use crate::{
    Choice, Delta, FinishReason, Finished, GenerateStreamResponse, MatchedStop, ScoreResponse, Started, Timings,
    TokenLogprob, TopLogprob, Usage,
    field::{each, required, unknown},
    generate_stream_response::Event,
    matched_stop::Matched,
};

impl From<domain::Event> for GenerateStreamResponse {
    fn from(event: domain::Event) -> Self {
        let event = match event {
            domain::Event::Started(started) => Event::Started(started.into()),
            domain::Event::Delta(delta) => Event::Delta(delta.into()),
            domain::Event::Finished(finished) => Event::Finished(finished.into()),
        };
        Self { event: Some(event) }
    }
}

impl TryFrom<GenerateStreamResponse> for domain::Event {
    type Error = Invalid;

    fn try_from(wire: GenerateStreamResponse) -> Result<Self, Invalid> {
        Ok(match required(wire.event, "event")? {
            Event::Started(wire) => Self::Started(wire.try_into().map_err(|e: Invalid| e.within("started"))?),
            Event::Delta(wire) => Self::Delta(wire.try_into().map_err(|e: Invalid| e.within("delta"))?),
            Event::Finished(wire) => Self::Finished(wire.try_into().map_err(|e: Invalid| e.within("finished"))?),
        })
    }
}

impl From<domain::Started> for Started {
    fn from(started: domain::Started) -> Self {
        Self {
            request_id: started.request_id.as_str().to_owned(),
            model_digest: started.model_digest,
            template_hash: started.template_hash,
            persona: started.persona.map(|persona| persona.as_str().to_owned()),
            prompt_tokens: started.prompt_tokens,
            cached_tokens: started.cached_tokens,
            seed: started.seed,
        }
    }
}

impl TryFrom<Started> for domain::Started {
    type Error = Invalid;

    fn try_from(wire: Started) -> Result<Self, Invalid> {
        Ok(Self {
            request_id: RequestId::new(wire.request_id)?,
            model_digest: wire.model_digest,
            template_hash: wire.template_hash,
            persona: wire.persona.map(Persona::new).transpose()?,
            prompt_tokens: wire.prompt_tokens,
            cached_tokens: wire.cached_tokens,
            seed: wire.seed,
        })
    }
}

impl From<domain::Delta> for Delta {
    fn from(delta: domain::Delta) -> Self {
        Self {
            choice: delta.choice,
            text: delta.text.into(),
            token_ids: delta.token_ids.into_vec(),
            logprobs: all(delta.logprobs),
            prompt_logprobs: all(delta.prompt_logprobs),
        }
    }
}

impl TryFrom<Delta> for domain::Delta {
    type Error = Invalid;

    fn try_from(wire: Delta) -> Result<Self, Invalid> {
        Ok(Self {
            choice: wire.choice,
            text: wire.text.into(),
            token_ids: wire.token_ids.into(),
            logprobs: each("logprobs", wire.logprobs, TryInto::try_into)?,
            prompt_logprobs: each("prompt_logprobs", wire.prompt_logprobs, TryInto::try_into)?,
        })
    }
}

impl From<domain::TokenLogprob> for TokenLogprob {
    fn from(logprob: domain::TokenLogprob) -> Self {
        Self { token_id: logprob.token, piece: logprob.bytes, logprob: logprob.logprob, top: all(logprob.top) }
    }
}

impl TryFrom<TokenLogprob> for domain::TokenLogprob {
    type Error = Invalid;

    fn try_from(wire: TokenLogprob) -> Result<Self, Invalid> {
        Ok(Self {
            token: wire.token_id,
            bytes: wire.piece,
            logprob: wire.logprob.map(logprob).transpose()?,
            top: each("top", wire.top, TryInto::try_into)?,
        })
    }
}

impl From<domain::TopLogprob> for TopLogprob {
    fn from(top: domain::TopLogprob) -> Self {
        Self { token_id: top.token, piece: top.bytes, logprob: top.logprob }
    }
}

impl TryFrom<TopLogprob> for domain::TopLogprob {
    type Error = Invalid;

    fn try_from(wire: TopLogprob) -> Result<Self, Invalid> {
        Ok(Self { token: wire.token_id, bytes: wire.piece, logprob: logprob(wire.logprob)? })
    }
}

/// Takes a log-probability; minus infinity is one. One just above 0 comes of rounding and passes.
fn logprob(logprob: f32) -> Result<f32, Invalid> {
    if logprob < f32::INFINITY { Ok(logprob) } else { Err(Invalid::new("logprob", format!("is {logprob}"))) }
}

impl From<domain::Finished> for Finished {
    fn from(finished: domain::Finished) -> Self {
        Self {
            choices: all(finished.choices),
            usage: Some(finished.usage.into()),
            timings: Some(finished.timings.into()),
        }
    }
}

impl TryFrom<Finished> for domain::Finished {
    type Error = Invalid;

    fn try_from(wire: Finished) -> Result<Self, Invalid> {
        Ok(Self {
            choices: each("choices", wire.choices, TryInto::try_into)?,
            usage: required(wire.usage, "usage")?.into(),
            timings: timings(wire.timings)?,
        })
    }
}

impl From<domain::Choice> for Choice {
    fn from(choice: domain::Choice) -> Self {
        Self {
            choice: choice.choice,
            reason: FinishReason::from(choice.reason).into(),
            matched_stop: choice.matched_stop.map(MatchedStop::from),
            generated_tokens: choice.generated_tokens,
        }
    }
}

impl TryFrom<Choice> for domain::Choice {
    type Error = Invalid;

    fn try_from(wire: Choice) -> Result<Self, Invalid> {
        let reason = match FinishReason::try_from(wire.reason) {
            Ok(FinishReason::EndOfText) => domain::FinishReason::EndOfText,
            Ok(FinishReason::Stop) => domain::FinishReason::Stop,
            Ok(FinishReason::Length) => domain::FinishReason::Length,
            Ok(FinishReason::TimeLimit) => domain::FinishReason::TimeLimit,
            Ok(FinishReason::Unspecified) | Err(_) => return Err(unknown("reason", wire.reason)),
        };
        let matched_stop = wire.matched_stop.map(|stop| match required(stop.matched, "matched_stop.matched")? {
            Matched::Text(text) => Ok(domain::MatchedStop::String(text)),
            Matched::TokenId(token) => Ok(domain::MatchedStop::Token(token)),
        });
        Ok(Self {
            choice: wire.choice,
            reason,
            matched_stop: matched_stop.transpose()?,
            generated_tokens: wire.generated_tokens,
        })
    }
}

impl From<domain::FinishReason> for FinishReason {
    fn from(reason: domain::FinishReason) -> Self {
        match reason {
            domain::FinishReason::EndOfText => Self::EndOfText,
            domain::FinishReason::Stop => Self::Stop,
            domain::FinishReason::Length => Self::Length,
            domain::FinishReason::TimeLimit => Self::TimeLimit,
        }
    }
}

impl From<domain::MatchedStop> for MatchedStop {
    fn from(stop: domain::MatchedStop) -> Self {
        let matched = match stop {
            domain::MatchedStop::String(text) => Matched::Text(text),
            domain::MatchedStop::Token(token) => Matched::TokenId(token),
        };
        Self { matched: Some(matched) }
    }
}

impl From<domain::Usage> for Usage {
    fn from(usage: domain::Usage) -> Self {
        let domain::Usage { prompt_tokens, cached_tokens, generated_tokens, drafted_tokens, accepted_tokens } = usage;
        Self { prompt_tokens, cached_tokens, generated_tokens, drafted_tokens, accepted_tokens }
    }
}

impl From<Usage> for domain::Usage {
    fn from(wire: Usage) -> Self {
        let Usage { prompt_tokens, cached_tokens, generated_tokens, drafted_tokens, accepted_tokens } = wire;
        Self { prompt_tokens, cached_tokens, generated_tokens, drafted_tokens, accepted_tokens }
    }
}

const NS_PER_MS: f64 = 1e6;
/// The longest time read from the wire, about 26 days: up to here the two roundings of a double on its way to milliseconds
/// and back (2^-53 each) stay below half a nanosecond, so that the time is the one that was sent.
const TIME_NS_MAX: f64 = (1_u64 << 51) as f64;

impl From<domain::Timings> for Timings {
    fn from(timings: domain::Timings) -> Self {
        let ms = |time: Duration| time.as_nanos() as f64 / NS_PER_MS;
        Self { queue_ms: ms(timings.queue), prefill_ms: ms(timings.prefill), decode_ms: ms(timings.decode) }
    }
}

impl TryFrom<Timings> for domain::Timings {
    type Error = Invalid;

    fn try_from(wire: Timings) -> Result<Self, Invalid> {
        Ok(Self {
            queue: time("queue_ms", wire.queue_ms)?,
            prefill: time("prefill_ms", wire.prefill_ms)?,
            decode: time("decode_ms", wire.decode_ms)?,
        })
    }
}

fn time(field: &str, time_ms: f64) -> Result<Duration, Invalid> {
    let time_ns = (time_ms * NS_PER_MS).round();
    if (0.0..=TIME_NS_MAX).contains(&time_ns) {
        Ok(Duration::from_nanos(time_ns as u64))
    } else {
        Err(Invalid::new(field, format!("is {time_ms}, must be 0..={}", TIME_NS_MAX / NS_PER_MS)))
    }
}

/// Reads the field `timings` of a message.
pub(crate) fn timings(timings: Option<Timings>) -> Result<domain::Timings, Invalid> {
    required(timings, "timings")?.try_into().map_err(|invalid: Invalid| invalid.within("timings"))
}

impl From<domain::Score> for ScoreResponse {
    fn from(score: domain::Score) -> Self {
        Self { tokens: all(score.tokens), total_logprob: score.total_logprob, prompt_tokens: score.prompt_tokens }
    }
}

impl TryFrom<ScoreResponse> for domain::Score {
    type Error = Invalid;

    fn try_from(wire: ScoreResponse) -> Result<Self, Invalid> {
        let tokens = each("tokens", wire.tokens, TryInto::try_into)?;
        let total_logprob = wire.total_logprob;
        if total_logprob < f64::INFINITY {
            Ok(Self { tokens, total_logprob, prompt_tokens: wire.prompt_tokens })
        } else {
            Err(Invalid::new("total_logprob", format!("is {total_logprob}")))
        }
    }
}

/// Converts the entries of a list.
pub(crate) fn all<D, W: From<D>>(entries: Vec<D>) -> Vec<W> {
    entries.into_iter().map(W::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(event: Option<Event>) -> String {
        domain::Event::try_from(GenerateStreamResponse { event }).unwrap_err().field
    }

    #[test]
    fn what_a_server_must_not_send_is_named() {
        assert_eq!(refused(None), "event");
        assert_eq!(refused(Some(Event::Started(Started::default()))), "started.request_id");
        assert_eq!(refused(Some(Event::Finished(Finished::default()))), "finished.usage");
        let nan = TopLogprob { logprob: f32::NAN, ..TopLogprob::default() };
        let logprob = TokenLogprob { top: vec![nan], ..TokenLogprob::default() };
        let delta = Delta { logprobs: vec![TokenLogprob::default(), logprob], ..Delta::default() };
        assert_eq!(refused(Some(Event::Delta(delta))), "delta.logprobs[1].top[0].logprob");
    }

    #[test]
    fn a_choice_has_a_known_reason_and_match() {
        let finished = |choice| Some(Event::Finished(Finished { choices: vec![choice], ..Finished::default() }));
        let reason = FinishReason::Stop.into();
        assert_eq!(refused(finished(Choice { reason: 99, ..Choice::default() })), "finished.choices[0].reason");
        assert_eq!(
            refused(finished(Choice { reason, matched_stop: Some(MatchedStop::default()), ..Choice::default() })),
            "finished.choices[0].matched_stop.matched"
        );
    }

    #[test]
    fn times_are_finite_and_not_negative() {
        for bad in [f64::NAN, f64::INFINITY, -1.0, 1e300] {
            assert_eq!(time("queue_ms", bad).unwrap_err().field, "queue_ms");
        }
        assert_eq!(time("queue_ms", 0.25).unwrap(), Duration::from_micros(250));
    }
}
