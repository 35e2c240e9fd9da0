//! Anthropic's messages.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Http, Keys, Secret, keys, needed_key};
use crate::{
    case::{Case, Completion, Finish},
    error::CallError,
};

const BASE_URL: &str = "https://api.anthropic.com";
/// The version of the interface that is spoken here.
const VERSION: &str = "2023-06-01";

/// Anthropic's service. It takes no seed.
pub(crate) struct Anthropic {
    http: Http,
    pub(crate) model: String,
}

impl Anthropic {
    pub(crate) fn new(base_url: Option<&str>, model: String, timeout: Duration, keys: &Keys) -> anyhow::Result<Self> {
        let key = needed_key(keys, &keys::ANTHROPIC)?;
        let headers = vec![("x-api-key", key), ("anthropic-version", Secret::of(VERSION))];
        Ok(Self { http: Http::new(base_url.unwrap_or(BASE_URL), timeout, headers)?, model })
    }

    pub(crate) async fn complete(&self, case: &Case) -> Result<Completion, CallError> {
        let text = case.text().map_err(|error| CallError::Rejected { reason: format!("{error:#}") })?;
        let settings = &case.settings;
        let mut body = json!({
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": settings.max_new_tokens,
            "temperature": settings.temperature,
        });
        // The service refuses stop sequences of white space alone.
        let stop: Vec<&String> = settings.stop.iter().filter(|stop| !stop.trim().is_empty()).collect();
        if !stop.is_empty() {
            body["stop_sequences"] = json!(stop);
        }
        read(self.http.post("/v1/messages", body).await?)
    }
}

#[derive(Deserialize)]
struct Answer {
    content: Vec<Block>,
    stop_reason: Option<String>,
    usage: AnswerUsage,
}

#[derive(Deserialize)]
struct Block {
    #[serde(default)]
    text: String,
}

#[derive(Deserialize)]
struct AnswerUsage {
    input_tokens: u64,
    output_tokens: u64,
}

fn read(answer: Value) -> Result<Completion, CallError> {
    let answer: Answer = serde_json::from_value(answer)
        .map_err(|error| CallError::transient(format!("the answer is not as documented: {error}")))?;
    let (finish, refusal) = match answer.stop_reason.as_deref() {
        Some("refusal") => (Finish::Refused, Some("stop_reason refusal".to_owned())),
        Some("max_tokens") => (Finish::Length, None),
        _ => (Finish::Stop, None),
    };
    Ok(Completion {
        answer: answer.content.into_iter().map(|block| block.text).collect(),
        finish,
        refusal,
        prompt_tokens: answer.usage.input_tokens,
        completion_tokens: answer.usage.output_tokens,
        logprobs: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_and_refusals() {
        let answer = |reason: &str| {
            json!({"content": [{"type": "text", "text": "A"}, {"type": "text", "text": "b"}], "stop_reason": reason,
                "usage": {"input_tokens": 3, "output_tokens": 2}})
        };
        let completion = read(answer("end_turn")).unwrap();
        assert_eq!(
            (completion.answer.as_str(), completion.finish, completion.completion_tokens),
            ("Ab", Finish::Stop, 2)
        );
        assert_eq!(read(answer("max_tokens")).unwrap().finish, Finish::Length);
        assert!(read(answer("refusal")).unwrap().refusal.is_some());
        assert!(matches!(read(json!({"type": "message"})), Err(CallError::Transient { .. })));
    }
}
