//! JSON over HTTP: one POST, and what each status means for the caller.

use std::time::Duration;

use anyhow::Context;
use serde_json::Value;

use super::Secret;
use crate::error::CallError;

/// The longest body that is read: far above any answer, so that a wrong server cannot fill the memory.
const BODY_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// How much of an error's body is shown.
const ERROR_CHARS_MAX: usize = 300;

/// A service that speaks JSON.
#[derive(Clone, Debug)]
pub(crate) struct Http {
    agent: ureq::Agent,
    base_url: String,
    headers: Vec<(&'static str, Secret)>,
}

impl Http {
    /// Prepares calls to a service. `headers` hold the keys.
    ///
    /// **Errors**: an address that is not HTTP.
    pub(crate) fn new(base_url: &str, timeout: Duration, headers: Vec<(&'static str, Secret)>) -> anyhow::Result<Self> {
        let base_url = base_url.trim_end_matches('/').to_owned();
        let uri: ureq::http::Uri = base_url.parse().with_context(|| format!("`--base-url` {base_url} is not a URL"))?;
        anyhow::ensure!(
            matches!(uri.scheme_str(), Some("http" | "https")),
            "`--base-url` {base_url} must start with http:// or https://"
        );
        let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(timeout)).build();
        Ok(Self { agent: config.into(), base_url, headers })
    }

    /// Sends a body and returns the answer.
    ///
    /// **Errors**: by status: busy and broken ones are transient, 400 and the like reject the request, a wrong key, model or
    /// address is fatal. An answer that is not JSON is transient.
    pub(crate) async fn post(&self, path: &str, body: Value) -> Result<Value, CallError> {
        let (http, url) = (self.clone(), format!("{}{path}", self.base_url));
        let sent = tokio::task::spawn_blocking(move || http.send(&url, &body));
        sent.await.map_err(|error| CallError::fatal(format!("the call panicked: {error}")))?
    }

    fn send(&self, url: &str, body: &Value) -> Result<Value, CallError> {
        let mut request = self.agent.post(url).header("content-type", "application/json");
        for (name, secret) in &self.headers {
            request = request.header(*name, secret.expose());
        }
        let text = serde_json::to_string(body).expect("invariant: a value is JSON");
        let mut response = request.send(text).map_err(|error| broken(url, &error))?;
        let (status, retry_after) = (response.status().as_u16(), retry_after(response.headers()));
        let read = response.body_mut().with_config().limit(BODY_BYTES_MAX).read_to_string();
        let text = read.map_err(|error| broken(url, &error))?;
        if (200..300).contains(&status) {
            return serde_json::from_str(&text)
                .map_err(|error| CallError::transient(format!("{url} sent what is not JSON: {error}")));
        }
        Err(refusal(status, &format!("{url} answers {status}: {}", message_of(&text)), retry_after))
    }
}

/// What a status other than success means.
fn refusal(status: u16, reason: &str, retry_after: Option<Duration>) -> CallError {
    let reason = reason.to_owned();
    match status {
        408 | 409 | 425 | 429 | 500..=599 => CallError::Transient { reason, retry_after },
        400 | 413 | 422 => CallError::Rejected { reason },
        401 | 403 => CallError::Fatal { reason: format!("{reason}; check the key") },
        404 => CallError::Fatal { reason: format!("{reason}; check `--model` and `--base-url`") },
        _ => CallError::Fatal { reason },
    }
}

/// A line that broke is transient; an address or a certificate that is wrong is not, but looks the same at times, so that all
/// are tried again.
fn broken(url: &str, error: &ureq::Error) -> CallError {
    CallError::transient(format!("{url}: {error}"))
}

/// Takes what is for people out of an error's body, in the forms of all services, else its start.
fn message_of(text: &str) -> String {
    let parsed: Option<Value> = serde_json::from_str(text).ok();
    let message = parsed.as_ref().and_then(|body| {
        let error = body.get("error");
        let inner = error.and_then(|error| error.get("message")).or(error).or_else(|| body.get("message"))?;
        inner.as_str()
    });
    message.unwrap_or(text.trim()).chars().take(ERROR_CHARS_MAX).collect()
}

/// Reads `retry-after-ms`, or `retry-after` in seconds or as a date.
fn retry_after(headers: &ureq::http::HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    if let Some(ms) = text("retry-after-ms").and_then(|text| text.parse::<u64>().ok()) {
        return Some(Duration::from_millis(ms));
    }
    let text = text("retry-after")?;
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?;
    let wait = date.timestamp().duration_since(jiff::Timestamp::now());
    Some(Duration::try_from(wait).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use ureq::http::{HeaderMap, HeaderValue};

    use super::*;

    #[test]
    fn retry_after_in_all_its_forms() {
        let read = |name: &'static str, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_static(value));
            retry_after(&headers)
        };
        assert_eq!(read("retry-after", "3"), Some(Duration::from_secs(3)));
        assert_eq!(read("retry-after", "0.25"), Some(Duration::from_millis(250)));
        assert_eq!(read("retry-after-ms", "40"), Some(Duration::from_millis(40)));
        assert_eq!(read("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        assert_eq!((read("retry-after", "soon"), read("retry-after", "-1"), read("x", "1")), (None, None, None));
    }

    #[test]
    fn each_status_says_what_to_do() {
        let kind = |status| match refusal(status, "", None) {
            CallError::Transient { .. } => "transient",
            CallError::Rejected { .. } => "rejected",
            CallError::Fatal { .. } => "fatal",
        };
        assert!([408, 429, 500, 503, 529].iter().all(|status| kind(*status) == "transient"));
        assert!([400, 413, 422].iter().all(|status| kind(*status) == "rejected"));
        assert!([401, 403, 404, 301, 418].iter().all(|status| kind(*status) == "fatal"));
    }

    #[test]
    fn messages_of_all_services() {
        assert_eq!(message_of(r#"{"error":{"message":"no quota"}}"#), "no quota");
        assert_eq!(message_of(r#"{"message":"bad model"}"#), "bad model");
        assert_eq!(message_of(r#"{"error":"plain"}"#), "plain");
        assert_eq!(message_of(" <html> "), "<html>");
    }

    #[test]
    fn an_address_must_be_http() {
        assert!(Http::new("ftp://x", Duration::from_secs(1), Vec::new()).is_err());
        assert!(Http::new("localhost:8000", Duration::from_secs(1), Vec::new()).is_err());
        assert!(Http::new("http://localhost:8000/v1/", Duration::from_secs(1), Vec::new()).is_ok());
    }
}
