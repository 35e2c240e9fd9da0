//! The OpenAI completions protocol over plain HTTP/1.1, as llama-server, vLLM and others speak it.

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, header};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::{
    sse::SseParser,
    target::{Answer, AnswerClock, Failure},
};

/// A server. Each request has a connection of its own.
#[derive(Clone)]
pub(crate) struct OpenAi {
    /// `host:port`.
    authority: String,
    /// The model that the server lists first, where it lists one; some want it named.
    model: Option<String>,
}

impl OpenAi {
    /// Takes an address such as `http://127.0.0.1:8080` and asks the server for its model.
    ///
    /// **Errors**: an address of another form, or where nothing answers.
    pub(crate) async fn connect(address: &str) -> anyhow::Result<Self> {
        let authority = address.strip_prefix("http://").map(|rest| rest.trim_end_matches('/')).unwrap_or_default();
        ensure!(!authority.is_empty() && !authority.contains('/'), "`{address}` is not of the form http://host:port");
        let authority = if authority.contains(':') { authority.to_owned() } else { format!("{authority}:80") };
        let mut server = Self { authority, model: None };
        let (status, models) = server.call(Method::GET, "/v1/models", None).await?;
        let model = models.pointer("/data/0/id").and_then(Value::as_str);
        server.model = model.filter(|_| status.is_success()).map(str::to_owned);
        Ok(server)
    }

    /// Counts the tokens of a text; `None` where the server has no tokenizer to ask.
    ///
    /// **Errors**: a server that does not answer.
    pub(crate) async fn count_tokens(&self, text: &str) -> anyhow::Result<Option<usize>> {
        // llama-server wants `content`, vLLM `prompt`.
        let body = json!({"content": text, "prompt": text, "model": self.model, "add_special": true});
        let (status, answer) = self.call(Method::POST, "/tokenize", Some(&body)).await?;
        Ok(answer.get("tokens").and_then(Value::as_array).filter(|_| status.is_success()).map(Vec::len))
    }

    /// Sends a prompt and reads the answer as it comes.
    pub(crate) async fn generate(&self, prompt: &str, new_tokens: u32, clock: AnswerClock) -> Result<Answer, Failure> {
        let body = json!({
            "model": self.model,
            "prompt": prompt,
            "max_tokens": new_tokens,
            "temperature": 0,
            "ignore_eos": true,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        let response = self.send(Method::POST, "/v1/completions", Some(&body)).await;
        let response = response.map_err(|error| Failure::new("connect", &error))?;
        let status = response.status();
        if !status.is_success() {
            return Err(Failure { code: format!("http {}", status.as_u16()), message: status.to_string() });
        }
        read_answer(response.into_body(), clock).await
    }

    async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<(StatusCode, Value)> {
        let response = self.send(method, path, body).await?;
        let status = response.status();
        let bytes = response.into_body().collect().await.with_context(|| format!("read {path}"))?.to_bytes();
        Ok((status, serde_json::from_slice(&bytes).unwrap_or_default()))
    }

    async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Response<Incoming>> {
        let stream = TcpStream::connect(&self.authority).await;
        let stream = stream.with_context(|| format!("connect to {}", self.authority))?;
        stream.set_nodelay(true)?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // Ends with the response; what goes wrong with it shows there.
        tokio::spawn(connection);
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &self.authority)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))?;
        sender.send_request(request).await.with_context(|| format!("call {path}"))
    }
}

async fn read_answer(mut body: Incoming, clock: AnswerClock) -> Result<Answer, Failure> {
    let mut parser = SseParser::default();
    let mut chunks = Chunks { clock, done: false, error: None };
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Failure::new("stream", &error))?;
        if let Some(bytes) = frame.data_ref() {
            let parsed = parser.push(bytes, |data| chunks.take(data));
            parsed.map_err(|error| Failure::new("stream", &error))?;
        }
    }
    match chunks.error {
        Some(message) => Err(Failure { code: "stream".to_owned(), message }),
        None if chunks.done => Ok(chunks.clock.answer()),
        None => Err(Failure { code: "ended early".to_owned(), message: "no end of the stream".to_owned() }),
    }
}

/// The chunks of one answer.
struct Chunks {
    clock: AnswerClock,
    done: bool,
    error: Option<String>,
}

impl Chunks {
    fn take(&mut self, data: &str) {
        if data == "[DONE]" {
            self.done = true;
            return;
        }
        if let Err(error) = self.take_json(data) {
            self.error.get_or_insert(format!("{error:#}"));
        }
    }

    fn take_json(&mut self, data: &str) -> anyhow::Result<()> {
        let chunk: Value = serde_json::from_str(data).context("a chunk that is not JSON")?;
        if let Some(error) = chunk.get("error") {
            bail!("{error}");
        }
        if chunk.pointer("/choices/0/text").and_then(Value::as_str).is_some_and(|text| !text.is_empty()) {
            self.clock.tokens(1);
        }
        let number = |path: &str| chunk.pointer(path).and_then(Value::as_u64).map(|number| number as u32);
        if let Some(generated) = number("/usage/completion_tokens") {
            self.clock.generated_tokens = generated;
        }
        if let Some(prompt) = number("/usage/prompt_tokens") {
            self.clock.prompt_tokens = prompt;
        }
        if let Some(cached) = number("/usage/prompt_tokens_details/cached_tokens") {
            self.clock.cached_tokens = cached;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn taken(chunks: &[&str]) -> Chunks {
        let mut all = Chunks { clock: AnswerClock::new(Instant::now()), done: false, error: None };
        chunks.iter().for_each(|data| all.take(data));
        all
    }

    #[test]
    fn chunks_with_text_are_tokens_and_usage_has_the_last_word() {
        let text = r#"{"choices":[{"text":"a","index":0}]}"#;
        let usage = r#"{"choices":[{"text":""}],"usage":{"completion_tokens":3,"prompt_tokens":9,
            "prompt_tokens_details":{"cached_tokens":4}}}"#;
        let chunks = taken(&[text, text, usage, "[DONE]"]);
        assert!(chunks.done && chunks.error.is_none());
        let answer = chunks.clock.answer();
        assert_eq!(answer.gaps.len(), 1);
        assert_eq!((answer.generated_tokens, answer.prompt_tokens, answer.cached_tokens), (3, 9, 4));
        assert_eq!(taken(&[text, text]).clock.answer().generated_tokens, 2);
    }

    #[test]
    fn errors_in_the_stream_are_kept() {
        assert!(taken(&[r#"{"error":{"message":"full"}}"#]).error.unwrap().contains("full"));
        assert!(taken(&["not json"]).error.unwrap().contains("JSON"));
    }
}
