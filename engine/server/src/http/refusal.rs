//! Refusals over HTTP: a status, and a body in OpenAI's form that names the field.

use std::time::Duration;

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bespoke_domain::{Invalid, RenderError};
use bespoke_engine::EngineError;
use serde_json::{Value, json};

use crate::status::DRAINING_RETRY;

/// Why a request over HTTP is refused or has failed.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    /// OpenAI's class of the error.
    kind: &'static str,
    /// A word for programs, where the status alone does not say enough.
    code: Option<&'static str>,
    /// The field, where one is wrong.
    param: Option<String>,
    message: String,
    retry_after: Option<Duration>,
}

const INVALID: &str = "invalid_request_error";

impl Refusal {
    pub(crate) fn new(status: StatusCode, kind: &'static str, code: Option<&'static str>, message: String) -> Self {
        Self { status, kind, code, param: None, message, retry_after: None }
    }

    pub(crate) fn invalid(status: StatusCode, message: impl Into<String>) -> Self {
        Self::new(status, INVALID, None, message.into())
    }

    pub(crate) fn unknown_model(name: &str, served: &str) -> Self {
        let message = format!("the model `{name}` is not served here; `{served}` is");
        let refusal = Self::new(StatusCode::NOT_FOUND, INVALID, Some("model_not_found"), message);
        Self { param: Some("model".to_owned()), ..refusal }
    }

    fn field(field: &str, code: Option<&'static str>, message: String) -> Self {
        let param = (!field.is_empty()).then(|| field.to_owned());
        Self { param, ..Self::new(StatusCode::BAD_REQUEST, INVALID, code, message) }
    }

    fn retry(status: StatusCode, kind: &'static str, code: &'static str, error: &EngineError, after: Duration) -> Self {
        Self { retry_after: Some(after), ..Self::new(status, kind, Some(code), error.to_string()) }
    }

    /// Returns the body, which is also what a stream that fails half-way ends with.
    pub(crate) fn body(&self) -> Value {
        let Self { kind, code, param, message, .. } = self;
        json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
    }
}

impl From<Invalid> for Refusal {
    fn from(invalid: Invalid) -> Self {
        let field = field_of_the_request(&invalid.field);
        let message = if field.is_empty() { invalid.reason } else { format!("`{field}` {}", invalid.reason) };
        Self::field(&field, None, message)
    }
}

impl From<&EngineError> for Refusal {
    fn from(error: &EngineError) -> Self {
        let text = error.to_string();
        match error {
            EngineError::Invalid(invalid) | EngineError::Render(RenderError::Invalid(invalid)) => {
                invalid.clone().into()
            }
            EngineError::Render(RenderError::NoChatTemplate) => Self::field("template", None, text),
            EngineError::Render(RenderError::ChatTemplate(_)) => Self::field("messages", None, text),
            EngineError::ContextTooLong { .. } => Self::field("prompt", Some("context_length_exceeded"), text),
            EngineError::Model(_) => Self::field("prompt", None, text),
            EngineError::NoSystemPersona | EngineError::UnknownPersona(_) => {
                let refusal = Self::new(StatusCode::NOT_FOUND, INVALID, Some("persona_not_found"), text);
                Self { param: Some("persona".to_owned()), ..refusal }
            }
            EngineError::QueueFull { retry_after, .. } => {
                Self::retry(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", "queue_full", error, *retry_after)
            }
            EngineError::Stopping => {
                let status = StatusCode::SERVICE_UNAVAILABLE;
                Self::retry(status, "server_error", "server_stopping", error, DRAINING_RETRY)
            }
            EngineError::Stalled(_) => Self::new(StatusCode::REQUEST_TIMEOUT, INVALID, Some("stream_not_read"), text),
            EngineError::DeadlineExceeded(_) => {
                Self::new(StatusCode::REQUEST_TIMEOUT, "server_error", Some("deadline_exceeded"), text)
            }
            EngineError::Option { .. } | EngineError::Internal(_) => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", None, text)
            }
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if let Some(after) = self.retry_after {
            let seconds = HeaderValue::from(after.as_millis().div_ceil(1000) as u64);
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        response
    }
}

/// Returns the name that a field of the domain has in a request over HTTP.
fn field_of_the_request(field: &str) -> String {
    let (head, rest) = field.split_at(field.find(['.', '[']).unwrap_or(field.len()));
    match head {
        "max_new_tokens" => "max_tokens".to_owned(),
        "min_new_tokens" => "min_tokens".to_owned(),
        "sampling" => rest.trim_start_matches('.').to_owned(),
        "stop" if rest.starts_with(".tokens") => rest.replacen(".tokens", "stop_token_ids", 1),
        "stop" if rest.starts_with(".strings") => rest.replacen(".strings", "stop", 1),
        "logprobs" if rest == ".top" => "top_logprobs".to_owned(),
        "prompt" if rest.starts_with(".messages") => rest.trim_start_matches('.').to_owned(),
        "prompt" => "prompt".to_owned(),
        "time_limit" => "time_limit_ms".to_owned(),
        _ => field.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use bespoke_domain::PersonaId;
    use bespoke_engine::Stage;

    use super::*;

    #[test]
    fn each_error_has_its_status() {
        let status = |error: &EngineError| Refusal::from(error).into_response().status().as_u16();
        assert_eq!(status(&Invalid::new("n", "is 0").into()), 400);
        assert_eq!(status(&EngineError::Render(RenderError::NoChatTemplate)), 400);
        assert_eq!(status(&EngineError::ContextTooLong { prompt_tokens: 9, limit: 8 }), 400);
        assert_eq!(status(&EngineError::UnknownPersona(PersonaId::new("x").unwrap())), 404);
        assert_eq!(status(&EngineError::NoSystemPersona), 404);
        assert_eq!(status(&EngineError::DeadlineExceeded(Stage::Queue)), 408);
        assert_eq!(status(&EngineError::Stalled(Duration::ZERO)), 408);
        assert_eq!(status(&EngineError::Internal(String::new())), 500);
        let full = EngineError::QueueFull { limit: 1, retry_after: Duration::from_millis(1500) };
        let response = Refusal::from(&full).into_response();
        assert_eq!(
            (response.status().as_u16(), &response.headers()[header::RETRY_AFTER]),
            (429, &HeaderValue::from(2))
        );
        let response = Refusal::from(&EngineError::Stopping).into_response();
        assert_eq!(
            (response.status().as_u16(), &response.headers()[header::RETRY_AFTER]),
            (503, &HeaderValue::from(1))
        );
    }

    #[test]
    fn fields_have_the_names_of_the_request() {
        let names = [
            ("max_new_tokens", "max_tokens"),
            ("sampling.logit_bias[7]", "logit_bias[7]"),
            ("stop.strings[1]", "stop[1]"),
            ("stop.tokens[0]", "stop_token_ids[0]"),
            ("prompt.messages", "messages"),
            ("prompt.token_ids[1]", "prompt"),
            ("persona.id", "persona.id"),
            ("top_p", "top_p"),
            ("stop", "stop"),
        ];
        for (domain, request) in names {
            let body = Refusal::from(Invalid::new(domain, "is wrong")).body();
            assert_eq!(body["error"]["param"], request);
            assert_eq!(body["error"]["message"], format!("`{request}` is wrong"));
        }
        assert!(Refusal::from(Invalid::new("", "the body is empty")).body()["error"]["param"].is_null());
    }
}
