//! Answers over HTTP: the events of a generation as one JSON object, or as chunks of a stream of server-sent events.

use std::time::{SystemTime, UNIX_EPOCH};

use bespoke_domain::{Delta, Event, FinishReason, Finished, Logprobs, Started, Timings, TokenLogprob, Usage};
use bespoke_engine::EngineError;
use bespoke_proto::{Generated, GeneratedText};
use serde_json::{Value, json};

use super::{chat, completion, refusal::Refusal};

/// Whose JSON an answer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Text,
}

/// What the JSON of one answer needs beside its events.
#[derive(Clone, Debug)]
pub(crate) struct AnswerForm {
    pub(crate) form: Form,
    /// The name of the model.
    pub(crate) model: String,
    /// Which log-probabilities were asked for.
    pub(crate) logprobs: Logprobs,
    /// The number of choices.
    pub(crate) n: u32,
    /// Seconds since 1970.
    pub(crate) created: u64,
}

/// Returns the time for [`AnswerForm::created`].
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl AnswerForm {
    /// Returns a whole answer.
    pub(crate) fn whole(&self, generated: &Generated) -> Value {
        let choices = generated.choices.iter().map(|choice| self.choice(choice, &generated.prompt_logprobs));
        let choices: Vec<_> = choices.collect();
        let mut answer = self.head(&generated.started, "");
        answer["choices"] = choices.into();
        answer["usage"] = usage(&generated.usage);
        answer["bespoke"] = extension(&generated.started, &generated.timings);
        answer
    }

    fn choice(&self, choice: &GeneratedText, prompt: &[TokenLogprob]) -> Value {
        let (index, reason) = (choice.end.choice, finish_reason(choice.end.reason));
        match self.form {
            Form::Chat => {
                let logprobs = chat::logprobs(&self.logprobs, &choice.logprobs);
                chat::choice(index, &choice.text, logprobs, reason)
            }
            Form::Text => {
                let tokens = [prompt, &choice.logprobs].concat();
                let logprobs = completion::logprobs(&self.logprobs, &tokens, &mut 0);
                completion::choice(index, &choice.text, logprobs, Some(reason))
            }
        }
    }

    /// Returns the members that an answer and each chunk of one begin with.
    fn head(&self, started: &Started, chunk: &str) -> Value {
        let (prefix, object) = match self.form {
            Form::Chat => ("chatcmpl", format!("chat.completion{chunk}")),
            Form::Text => ("cmpl", "text_completion".to_owned()),
        };
        json!({
            "id": format!("{prefix}-{}", started.request_id.as_str()),
            "object": object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": format!("fp_{}", started.model_digest),
        })
    }
}

/// Turns events into the chunks of a stream, in order.
pub(crate) struct Chunks {
    form: AnswerForm,
    include_usage: bool,
    started: Option<Started>,
    /// For each choice, whether its first chunk has been sent and how many characters its tokens have so far.
    choices: Vec<(bool, usize)>,
}

/// The data of one server-sent event.
#[derive(Debug, PartialEq)]
pub(crate) enum Chunk {
    /// A JSON object.
    Json(Value),
    /// The end of a stream that went well.
    Done,
}

impl Chunks {
    pub(crate) fn new(form: AnswerForm, include_usage: bool) -> Self {
        let choices = vec![(false, 0); form.n as usize];
        Self { form, include_usage, started: None, choices }
    }

    /// Returns the chunks of one event; of an error, its body, after which nothing follows.
    pub(crate) fn of(&mut self, event: Result<Event, EngineError>) -> Vec<Chunk> {
        match event {
            Err(error) => vec![Chunk::Json(Refusal::from(&error).body())],
            Ok(Event::Started(started)) => {
                self.started = Some(started);
                // OpenAI's first chunks of a chat tell the role, so that a client sees that the answer has begun.
                match self.form.form {
                    Form::Chat => (0..self.form.n).map(|index| self.begin(index)).collect(),
                    Form::Text => Vec::new(),
                }
            }
            Ok(Event::Delta(delta)) => self.delta(&delta).into_iter().collect(),
            Ok(Event::Finished(finished)) => self.finished(&finished),
        }
    }

    fn begin(&mut self, index: u32) -> Chunk {
        self.choices[index as usize].0 = true;
        self.chunk(vec![chat::chunk_choice(index, "", None, true)])
    }

    fn delta(&mut self, delta: &Delta) -> Option<Chunk> {
        let index = delta.choice;
        let form = &self.form;
        let (has_begun, offset) = self.choices.get_mut(index as usize)?;
        let choice = match form.form {
            Form::Chat => {
                let logprobs = chat::logprobs(&form.logprobs, &delta.logprobs);
                chat::chunk_choice(index, &delta.text, logprobs, !std::mem::replace(has_begun, true))
            }
            Form::Text => {
                let tokens = [delta.prompt_logprobs.as_slice(), &delta.logprobs].concat();
                completion::choice(index, &delta.text, completion::logprobs(&form.logprobs, &tokens, offset), None)
            }
        };
        // Held-back text comes with a later delta.
        let is_empty = delta.text.is_empty() && !form.logprobs.sampled;
        (!is_empty).then(|| self.chunk(vec![choice]))
    }

    fn finished(&mut self, finished: &Finished) -> Vec<Chunk> {
        let last = |choice: &bespoke_domain::Choice| match self.form.form {
            Form::Chat => chat::last_choice(choice.choice, finish_reason(choice.reason)),
            Form::Text => completion::choice(choice.choice, "", None, Some(finish_reason(choice.reason))),
        };
        let mut chunks: Vec<_> = finished.choices.iter().map(|choice| self.chunk(vec![last(choice)])).collect();
        if self.include_usage
            && let Some(started) = &self.started
            && let Chunk::Json(mut chunk) = self.chunk(Vec::new())
        {
            chunk["usage"] = usage(&finished.usage);
            chunk["bespoke"] = extension(started, &finished.timings);
            chunks.push(Chunk::Json(chunk));
        }
        chunks.push(Chunk::Done);
        chunks
    }

    fn chunk(&self, choices: Vec<Value>) -> Chunk {
        let mut chunk = self.started.as_ref().map_or(Value::Null, |started| self.form.head(started, ".chunk"));
        chunk["choices"] = choices.into();
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        Chunk::Json(chunk)
    }
}

/// OpenAI has no word for a time limit; its word for a length that was limited fits best.
fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::EndOfText | FinishReason::Stop => "stop",
        FinishReason::Length | FinishReason::TimeLimit => "length",
    }
}

fn usage(usage: &Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.generated_tokens,
        "total_tokens": usage.prompt_tokens + usage.generated_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    })
}

/// What OpenAI's form has no place for. The seed is text: it may be larger than a number of JavaScript holds.
fn extension(started: &Started, timings: &Timings) -> Value {
    json!({
        "seed": started.seed.to_string(),
        "template_hash": started.template_hash,
        "queue_ms": timings.queue.as_secs_f64() * 1e3,
        "prefill_ms": timings.prefill.as_secs_f64() * 1e3,
        "decode_ms": timings.decode.as_secs_f64() * 1e3,
    })
}

#[cfg(test)]
mod tests {
    use bespoke_domain::{Choice, RequestId};

    use super::*;

    fn form(form: Form) -> AnswerForm {
        AnswerForm { form, model: "m".to_owned(), logprobs: Logprobs::default(), n: 1, created: 1 }
    }

    fn events() -> Vec<Event> {
        let started = Started {
            request_id: RequestId::new("r").unwrap(),
            model_digest: "d".to_owned(),
            template_hash: "t".to_owned(),
            persona: None,
            prompt_tokens: 2,
            cached_tokens: 1,
            seed: u64::MAX,
        };
        let delta = |text: &str| {
            Event::Delta(Delta { text: text.into(), token_ids: [1].as_slice().into(), ..Delta::default() })
        };
        let end = Choice { choice: 0, reason: FinishReason::Length, matched_stop: None, generated_tokens: 3 };
        let usage = Usage { prompt_tokens: 2, cached_tokens: 1, generated_tokens: 3, ..Usage::default() };
        let finished = Finished { choices: vec![end], usage, timings: Timings::default() };
        vec![Event::Started(started), delta("a"), delta(""), delta("b"), Event::Finished(finished)]
    }

    fn chunks(answer: AnswerForm, include_usage: bool) -> Vec<Value> {
        let mut chunks = Chunks::new(answer, include_usage);
        let all: Vec<_> = events().into_iter().flat_map(|event| chunks.of(Ok(event))).collect();
        let json = |chunk| if let Chunk::Json(value) = chunk { value } else { json!("done") };
        all.into_iter().map(json).collect()
    }

    #[test]
    fn a_chat_is_streamed_as_openai_does() {
        let chunks = chunks(form(Form::Chat), true);
        assert_eq!(chunks.len(), 6, "{chunks:?}");
        assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": "", "refusal": null}));
        assert_eq!(chunks[1]["choices"][0]["delta"], json!({"content": "a"}));
        assert_eq!(chunks[1]["usage"], Value::Null);
        assert_eq!((&chunks[1]["id"], &chunks[1]["object"]), (&json!("chatcmpl-r"), &json!("chat.completion.chunk")));
        assert_eq!(
            chunks[3]["choices"][0],
            json!({"index": 0, "delta": {}, "logprobs": null, "finish_reason": "length"})
        );
        assert_eq!(chunks[4]["choices"], json!([]));
        assert_eq!(chunks[4]["usage"]["total_tokens"], 5);
        assert_eq!(chunks[4]["bespoke"]["seed"], u64::MAX.to_string());
        assert_eq!(chunks[5], "done");
    }

    #[test]
    fn a_completion_is_streamed_as_openai_does() {
        let chunks = chunks(form(Form::Text), false);
        assert_eq!(chunks.len(), 4, "{chunks:?}");
        assert_eq!(chunks[0]["choices"][0], json!({"index": 0, "text": "a", "logprobs": null, "finish_reason": null}));
        assert_eq!(chunks[2]["choices"][0]["finish_reason"], "length");
        assert!(chunks[0].get("usage").is_none());
    }

    #[test]
    fn a_whole_answer_has_its_usage() {
        let generated = Generated::gather(events()).unwrap();
        let chat = form(Form::Chat).whole(&generated);
        assert_eq!(chat["choices"][0]["message"]["content"], "ab");
        assert_eq!((&chat["object"], &chat["usage"]["completion_tokens"]), (&json!("chat.completion"), &json!(3)));
        let text = form(Form::Text).whole(&generated);
        assert_eq!((&text["choices"][0]["text"], &text["object"]), (&json!("ab"), &json!("text_completion")));
    }

    #[test]
    fn a_stream_that_fails_ends_with_the_error() {
        let mut chunks = Chunks::new(form(Form::Chat), true);
        let failed = chunks.of(Err(EngineError::Stopping));
        assert!(matches!(failed.as_slice(), [Chunk::Json(body)] if body["error"]["code"] == "server_stopping"));
    }
}
