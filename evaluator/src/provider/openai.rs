//! OpenAI's chat completions and embeddings, as OpenAI itself, vLLM, llama.cpp and many others serve them.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Http, Keys, keys, needed_key};
use crate::{
    case::{Case, Completion, Finish},
    error::CallError,
};

const BASE_URL: &str = "https://api.openai.com/v1";

/// An OpenAI-compatible service.
pub(crate) struct OpenAi {
    http: Http,
    pub(crate) model: String,
    /// OpenAI's own service names the limit of an answer in another way than those that follow it.
    is_openai: bool,
}

impl OpenAi {
    pub(crate) fn new(base_url: Option<&str>, model: String, timeout: Duration, keys: &Keys) -> anyhow::Result<Self> {
        let is_openai = base_url.is_none_or(|url| url.contains("api.openai.com"));
        // A service of one's own needs no key, but gets one that is there.
        let key = if is_openai { Some(needed_key(keys, &keys::OPENAI)?) } else { keys.first(&keys::OPENAI) };
        let headers = key.iter().map(|key| ("authorization", key.bearer())).collect();
        Ok(Self { http: Http::new(base_url.unwrap_or(BASE_URL), timeout, headers)?, model, is_openai })
    }

    pub(crate) async fn complete(&self, case: &Case) -> Result<Completion, CallError> {
        let answer = self.http.post("/chat/completions", self.body(case)?).await?;
        read(answer)
    }

    fn body(&self, case: &Case) -> Result<Value, CallError> {
        let text = case.text().map_err(|error| CallError::Rejected { reason: format!("{error:#}") })?;
        let settings = &case.settings;
        let mut body = json!({
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "temperature": settings.temperature,
            "seed": settings.seed,
        });
        let limit = if self.is_openai { "max_completion_tokens" } else { "max_tokens" };
        body[limit] = settings.max_new_tokens.into();
        if !settings.stop.is_empty() {
            body["stop"] = json!(settings.stop);
        }
        Ok(body)
    }

    pub(crate) async fn embed(&self, texts: &[String]) -> Result<Vec<Vec<f32>>, CallError> {
        let body = json!({"model": self.model, "input": texts, "encoding_format": "float"});
        let answer = self.http.post("/embeddings", body).await?;
        let mut embeddings: Embeddings = parse(answer)?;
        embeddings.data.sort_by_key(|embedding| embedding.index);
        if embeddings.data.len() != texts.len() {
            return Err(CallError::transient(format!(
                "{} embeddings came for {} texts",
                embeddings.data.len(),
                texts.len()
            )));
        }
        Ok(embeddings.data.into_iter().map(|embedding| embedding.embedding).collect())
    }
}

#[derive(Deserialize)]
struct Answer {
    choices: Vec<AnswerChoice>,
    #[serde(default)]
    usage: AnswerUsage,
}

#[derive(Deserialize)]
struct AnswerChoice {
    message: AnswerMessage,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct AnswerMessage {
    content: Option<String>,
    refusal: Option<String>,
}

#[derive(Default, Deserialize)]
struct AnswerUsage {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
}

#[derive(Deserialize)]
struct Embeddings {
    data: Vec<Embedding>,
}

#[derive(Deserialize)]
struct Embedding {
    #[serde(default)]
    index: usize,
    embedding: Vec<f32>,
}

/// Reads an answer; one without what is documented is transient, for services send such when they break.
fn read(answer: Value) -> Result<Completion, CallError> {
    let Answer { choices, usage } = parse(answer)?;
    let Some(choice) = choices.into_iter().next() else {
        return Err(CallError::transient("the answer has no `choices`"));
    };
    let finish_reason = choice.finish_reason.unwrap_or_default();
    let refusal = match (choice.message.refusal.filter(|text| !text.is_empty()), finish_reason.as_str()) {
        (Some(refusal), _) => Some(refusal),
        (None, "content_filter") => Some("filtered: finish_reason content_filter".to_owned()),
        (None, _) => None,
    };
    let finish = match (&refusal, finish_reason.as_str()) {
        (Some(_), _) => Finish::Refused,
        (None, "length") => Finish::Length,
        (None, _) => Finish::Stop,
    };
    Ok(Completion {
        answer: choice.message.content.unwrap_or_default(),
        finish,
        refusal,
        prompt_tokens: usage.prompt_tokens,
        completion_tokens: usage.completion_tokens,
        logprobs: Vec::new(),
    })
}

fn parse<T: serde::de::DeserializeOwned>(answer: Value) -> Result<T, CallError> {
    serde_json::from_value(answer)
        .map_err(|error| CallError::transient(format!("the answer is not as documented: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::{CasePrompt, Settings};

    fn case() -> Case {
        let settings = Settings {
            max_new_tokens: 9,
            min_new_tokens: 0,
            temperature: 0.0,
            seed: 3,
            stop: vec!["\nPrompt:".to_owned()],
        };
        Case { prompt: CasePrompt::Instruct { text: "Hi".to_owned(), answer_start: "x".to_owned() }, settings }
    }

    #[test]
    fn the_body_is_what_the_service_documents() {
        let new =
            |url| OpenAi::new(url, "m".to_owned(), Duration::from_secs(1), &Keys::of("OPEN_AI_TOKEN", "k")).unwrap();
        let body = new(Some("http://127.0.0.1:1/v1")).body(&case()).unwrap();
        assert_eq!(body["messages"], json!([{"role": "user", "content": "Hi"}]));
        assert_eq!((&body["max_tokens"], &body["seed"], &body["stop"]), (&json!(9), &json!(3), &json!(["\nPrompt:"])));
        assert_eq!(new(None).body(&case()).unwrap()["max_completion_tokens"], json!(9));
        assert!(OpenAi::new(None, "m".to_owned(), Duration::from_secs(1), &Keys::default()).is_err());
    }

    #[test]
    fn answers_refusals_and_nonsense() {
        let answer = json!({"choices": [{"message": {"content": "Yes"}, "finish_reason": "length"}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 2}});
        let completion = read(answer).unwrap();
        assert_eq!(
            (completion.answer.as_str(), completion.finish, completion.prompt_tokens),
            ("Yes", Finish::Length, 5)
        );
        let refused = json!({"choices": [{"message": {"content": null, "refusal": "No."}, "finish_reason": "stop"}]});
        assert_eq!(read(refused).unwrap().refusal.as_deref(), Some("No."));
        let filtered = json!({"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]});
        assert_eq!(read(filtered).unwrap().finish, Finish::Refused);
        assert!(matches!(read(json!({"choices": []})), Err(CallError::Transient { .. })));
        assert!(matches!(read(json!({"ok": 1})), Err(CallError::Transient { .. })));
    }
}
