//! Whole answers: the events of one request put together, as the unary call returns them.

use std::fmt;

use bespoke_domain::{Choice, Delta, Event, Invalid, Started, Timings, TokenId, TokenLogprob, Usage};

use crate::{
    GenerateResponse, GeneratedChoice,
    event::{all, timings},
    field::{each, required},
};

/// All that a request generated.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// What was known when the request left the queue.
    pub started: Started,
    /// The answers, by their number.
    pub choices: Vec<GeneratedText>,
    /// What the request used.
    pub usage: Usage,
    /// How long it took.
    pub timings: Timings,
    /// The tokens of the prompt with their log-probabilities, where asked for.
    pub prompt_logprobs: Vec<TokenLogprob>,
}

/// One whole answer.
#[derive(Clone, PartialEq)]
pub struct GeneratedText {
    /// The text.
    pub text: String,
    /// The tokens.
    pub token_ids: Vec<TokenId>,
    /// The log-probabilities of the tokens, where asked for.
    pub logprobs: Vec<TokenLogprob>,
    /// The number of the choice and how it ended.
    pub end: Choice,
}

/// Hides the text: answers are not logged.
impl fmt::Debug for GeneratedText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GeneratedText({} bytes, {} tokens, {:?})", self.text.len(), self.token_ids.len(), self.end)
    }
}

impl Generated {
    /// Puts all events of a request together.
    ///
    /// **Errors**: events that are not one started, deltas of the choices that finish, one finished.
    pub fn gather(events: impl IntoIterator<Item = Event>) -> Result<Self, Invalid> {
        let mut events = events.into_iter();
        let Some(Event::Started(started)) = events.next() else {
            return Err(Invalid::new("started", "is not the first event"));
        };
        let mut deltas = Vec::new();
        let finished = loop {
            match events.next() {
                Some(Event::Delta(delta)) => deltas.push(delta),
                Some(Event::Finished(finished)) => break finished,
                Some(Event::Started(_)) => return Err(Invalid::new("started", "comes twice")),
                None => return Err(Invalid::new("finished", "is missing")),
            }
        };
        if events.next().is_some() {
            return Err(Invalid::new("finished", "is not the last event"));
        }
        let whole = |end| GeneratedText { text: String::new(), token_ids: Vec::new(), logprobs: Vec::new(), end };
        let mut generated = Self {
            started,
            choices: finished.choices.into_iter().map(whole).collect(),
            usage: finished.usage,
            timings: finished.timings,
            prompt_logprobs: Vec::new(),
        };
        deltas.into_iter().try_for_each(|delta| generated.append(delta))?;
        Ok(generated)
    }

    fn append(&mut self, delta: Delta) -> Result<(), Invalid> {
        let Some(choice) = self.choices.iter_mut().find(|choice| choice.end.choice == delta.choice) else {
            return Err(Invalid::new("delta.choice", format!("is {}, which does not finish", delta.choice)));
        };
        choice.text.push_str(&delta.text);
        choice.token_ids.extend(delta.token_ids);
        choice.logprobs.extend(delta.logprobs);
        // Every choice reports the same prompt.
        if delta.choice == 0 {
            self.prompt_logprobs.extend(delta.prompt_logprobs);
        }
        Ok(())
    }
}

impl From<Generated> for GenerateResponse {
    fn from(generated: Generated) -> Self {
        Self {
            started: Some(generated.started.into()),
            choices: all(generated.choices),
            usage: Some(generated.usage.into()),
            timings: Some(generated.timings.into()),
            prompt_logprobs: all(generated.prompt_logprobs),
        }
    }
}

impl TryFrom<GenerateResponse> for Generated {
    type Error = Invalid;

    fn try_from(wire: GenerateResponse) -> Result<Self, Invalid> {
        let started = required(wire.started, "started")?;
        Ok(Self {
            started: started.try_into().map_err(|invalid: Invalid| invalid.within("started"))?,
            choices: each("choices", wire.choices, TryInto::try_into)?,
            usage: required(wire.usage, "usage")?.into(),
            timings: timings(wire.timings)?,
            prompt_logprobs: each("prompt_logprobs", wire.prompt_logprobs, TryInto::try_into)?,
        })
    }
}

impl From<GeneratedText> for GeneratedChoice {
    fn from(generated: GeneratedText) -> Self {
        let crate::Choice { choice, reason, matched_stop, generated_tokens } = generated.end.into();
        Self {
            choice,
            text: generated.text,
            token_ids: generated.token_ids,
            logprobs: all(generated.logprobs),
            reason,
            matched_stop,
            generated_tokens,
        }
    }
}

impl TryFrom<GeneratedChoice> for GeneratedText {
    type Error = Invalid;

    fn try_from(wire: GeneratedChoice) -> Result<Self, Invalid> {
        let GeneratedChoice { choice, text, token_ids, logprobs, reason, matched_stop, generated_tokens } = wire;
        Ok(Self {
            text,
            token_ids,
            logprobs: each("logprobs", logprobs, TryInto::try_into)?,
            end: crate::Choice { choice, reason, matched_stop, generated_tokens }.try_into()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use bespoke_domain::{FinishReason, Finished, RequestId};

    use super::*;

    fn started() -> Event {
        Event::Started(Started {
            request_id: RequestId::new("r").unwrap(),
            model_digest: String::new(),
            template_hash: String::new(),
            persona: None,
            prompt_tokens: 1,
            cached_tokens: 0,
            seed: 0,
        })
    }

    fn delta(choice: u32, text: &str, token: TokenId) -> Event {
        Event::Delta(Delta { choice, text: text.into(), token_ids: [token].as_slice().into(), ..Delta::default() })
    }

    fn finished() -> Event {
        let end = |choice| Choice { choice, reason: FinishReason::Length, matched_stop: None, generated_tokens: 2 };
        Event::Finished(Finished {
            choices: vec![end(0), end(1)],
            usage: Usage::default(),
            timings: Timings::default(),
        })
    }

    #[test]
    fn deltas_of_a_choice_are_put_together() {
        let events = [started(), delta(1, "c", 3), delta(0, "a", 1), delta(0, "b", 2), finished()];
        let generated = Generated::gather(events).unwrap();
        let texts: Vec<_> = generated.choices.iter().map(|choice| choice.text.as_str()).collect();
        assert_eq!(texts, ["ab", "c"]);
        assert_eq!(generated.choices[0].token_ids, [1, 2]);
        let back = Generated::try_from(GenerateResponse::from(generated.clone())).unwrap();
        assert_eq!(back, generated);
    }

    #[test]
    fn events_out_of_order_are_refused() {
        let bad = [
            (vec![], "started"),
            (vec![delta(0, "", 1), started(), finished()], "started"),
            (vec![started(), started(), finished()], "started"),
            (vec![started(), delta(0, "", 1)], "finished"),
            (vec![started(), finished(), finished()], "finished"),
            (vec![started(), delta(2, "", 1), finished()], "delta.choice"),
        ];
        for (events, field) in bad {
            assert_eq!(Generated::gather(events).unwrap_err().field, field);
        }
    }
}
