//! Cohere's chat, version 2.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Http, Keys, keys, needed_key};
use crate::{
    case::{Case, Completion, Finish},
    error::CallError,
};

const BASE_URL: &str = "https://api.cohere.com";

/// Cohere's service.
pub(crate) struct Cohere {
    http: Http,
    pub(crate) model: String,
}

impl Cohere {
    pub(crate) fn new(base_url: Option<&str>, model: String, timeout: Duration, keys: &Keys) -> anyhow::Result<Self> {
        let headers = vec![("authorization", needed_key(keys, &keys::COHERE)?.bearer())];
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
            "seed": settings.seed,
        });
        if !settings.stop.is_empty() {
            body["stop_sequences"] = json!(settings.stop);
        }
        read(self.http.post("/v2/chat", body).await?)
    }
}

#[derive(Deserialize)]
struct Answer {
    finish_reason: String,
    #[serde(default)]
    message: AnswerMessage,
    #[serde(default)]
    usage: AnswerUsage,
}

#[derive(Default, Deserialize)]
struct AnswerMessage {
    #[serde(default)]
    content: Vec<Block>,
}

#[derive(Deserialize)]
struct Block {
    #[serde(default)]
    text: String,
}

#[derive(Default, Deserialize)]
struct AnswerUsage {
    #[serde(default)]
    tokens: Tokens,
}

#[derive(Default, Deserialize)]
struct Tokens {
    #[serde(default)]
    input_tokens: f64,
    #[serde(default)]
    output_tokens: f64,
}

fn read(answer: Value) -> Result<Completion, CallError> {
    let answer: Answer = serde_json::from_value(answer)
        .map_err(|error| CallError::transient(format!("the answer is not as documented: {error}")))?;
    let (finish, refusal) = match answer.finish_reason.as_str() {
        "ERROR" => return Err(CallError::transient("finish_reason ERROR")),
        "ERROR_TOXIC" => (Finish::Refused, Some("finish_reason ERROR_TOXIC".to_owned())),
        "MAX_TOKENS" => (Finish::Length, None),
        _ => (Finish::Stop, None),
    };
    Ok(Completion {
        answer: answer.message.content.into_iter().map(|block| block.text).collect(),
        finish,
        refusal,
        prompt_tokens: answer.usage.tokens.input_tokens as u64,
        completion_tokens: answer.usage.tokens.output_tokens as u64,
        logprobs: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_refusals_and_errors() {
        let answer = |reason: &str| {
            json!({"finish_reason": reason, "message": {"role": "assistant", "content": [{"type": "text", "text": "Hi"}]},
                "usage": {"tokens": {"input_tokens": 4.0, "output_tokens": 1.0}}})
        };
        let completion = read(answer("COMPLETE")).unwrap();
        assert_eq!((completion.answer.as_str(), completion.finish, completion.prompt_tokens), ("Hi", Finish::Stop, 4));
        assert_eq!(read(answer("MAX_TOKENS")).unwrap().finish, Finish::Length);
        assert_eq!(read(answer("ERROR_TOXIC")).unwrap().finish, Finish::Refused);
        assert!(matches!(read(answer("ERROR")), Err(CallError::Transient { .. })));
    }
}
