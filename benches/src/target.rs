//! A server under load, whichever protocol it speaks, and what one request to it was like.

use std::{
    fmt::Display,
    time::{Duration, Instant},
};

use bespoke_client::{
    Client, ClientError, Event, Generate, Prompt, PromptSpec, Request, Sampling, Template, TokenizeRequest,
};
use clap::ValueEnum;
use futures::StreamExt;
use serde::Serialize;

use crate::openai::OpenAi;

/// What a server speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// bespoke.v1 over gRPC.
    #[default]
    Grpc,
    /// OpenAI completions over HTTP/1.1, streamed as server-sent events.
    Openai,
}

/// A connection to a server.
#[derive(Clone)]
pub(crate) enum Target {
    Grpc(Box<Client>),
    OpenAi(OpenAi),
}

/// What one request was like.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// From the start of the request to its first token.
    pub(crate) first: Duration,
    /// Between the messages that carried tokens.
    pub(crate) gaps: Vec<Duration>,
    pub(crate) generated_tokens: u32,
    pub(crate) prompt_tokens: u32,
    pub(crate) cached_tokens: u32,
}

/// Why a request failed.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    /// A word to count by.
    pub(crate) code: String,
    pub(crate) message: String,
}

impl Target {
    /// Connects.
    ///
    /// **Errors**: a wrong address, or one where nothing answers.
    pub(crate) async fn connect(protocol: Protocol, address: &str) -> anyhow::Result<Self> {
        Ok(match protocol {
            Protocol::Grpc => Self::Grpc(Box::new(Client::connect(address).await?)),
            Protocol::Openai => Self::OpenAi(OpenAi::connect(address).await?),
        })
    }

    /// Counts the tokens of a prompt as the server does; where the server has no tokenizer to ask, one for each word.
    ///
    /// **Errors**: a server that does not answer.
    pub(crate) async fn count_tokens(&self, text: &str) -> anyhow::Result<usize> {
        let counted = match self {
            Self::Grpc(client) => {
                let request =
                    TokenizeRequest { text: text.to_owned(), add_special: true, ..TokenizeRequest::default() };
                Some(client.tokenize(request).await?.token_ids.len())
            }
            Self::OpenAi(server) => server.count_tokens(text).await?,
        };
        Ok(counted.unwrap_or_else(|| text.split_whitespace().count()))
    }

    /// Sends a prompt for a greedy answer of so many tokens and reads it to its end. `start` is when the request was due.
    pub(crate) async fn generate(&self, prompt: &str, new_tokens: u32, start: Instant) -> Result<Answer, Failure> {
        let clock = AnswerClock::new(start);
        match self {
            Self::Grpc(client) => generate(client, prompt, new_tokens, clock).await.map_err(Failure::from),
            Self::OpenAi(server) => server.generate(prompt, new_tokens, clock).await,
        }
    }
}

async fn generate(
    client: &Client,
    prompt: &str,
    new_tokens: u32,
    mut clock: AnswerClock,
) -> Result<Answer, ClientError> {
    let spec = PromptSpec { template: Some(Template::None), ..PromptSpec::new(Prompt::Text(prompt.to_owned())) };
    let mut generate = Generate::new(spec);
    generate.sampling = Sampling::greedy();
    generate.max_new_tokens = new_tokens;
    generate.stop.ignore_end = true;
    let request = Request::try_from(generate).map_err(ClientError::Response)?;
    let mut events = client.generate_stream(&request).await?;
    while let Some(event) = events.next().await {
        match event? {
            Event::Started(started) => {
                clock.prompt_tokens = started.prompt_tokens;
                clock.cached_tokens = started.cached_tokens;
            }
            Event::Delta(delta) => clock.tokens(delta.token_ids.len() as u32),
            Event::Finished(_) => {}
        }
    }
    Ok(clock.answer())
}

/// Notes when the tokens of one answer come.
#[derive(Clone, Debug)]
pub(crate) struct AnswerClock {
    start: Instant,
    first: Option<Instant>,
    last: Instant,
    gaps: Vec<Duration>,
    pub(crate) generated_tokens: u32,
    pub(crate) prompt_tokens: u32,
    pub(crate) cached_tokens: u32,
}

impl AnswerClock {
    pub(crate) fn new(start: Instant) -> Self {
        Self {
            start,
            first: None,
            last: start,
            gaps: Vec::new(),
            generated_tokens: 0,
            prompt_tokens: 0,
            cached_tokens: 0,
        }
    }

    /// Notes that a message has brought so many tokens.
    pub(crate) fn tokens(&mut self, num_tokens: u32) {
        if num_tokens == 0 {
            return;
        }
        self.generated_tokens += num_tokens;
        let now = Instant::now();
        match self.first {
            None => self.first = Some(now),
            Some(_) => self.gaps.push(now - self.last),
        }
        self.last = now;
    }

    pub(crate) fn answer(self) -> Answer {
        let Self { start, first, gaps, generated_tokens, prompt_tokens, cached_tokens, .. } = self;
        let first = first.unwrap_or_else(Instant::now).saturating_duration_since(start);
        Answer { first, gaps, generated_tokens, prompt_tokens, cached_tokens }
    }
}

impl Failure {
    pub(crate) fn new(code: &str, error: &(impl Display + ?Sized)) -> Self {
        Self { code: code.to_owned(), message: format!("{error:#}") }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let code = match &error {
            ClientError::Status { code, .. } => format!("{code:?}"),
            ClientError::Connect(_) => "connect".to_owned(),
            ClientError::Token => "token".to_owned(),
            ClientError::Response(_) => "response".to_owned(),
            ClientError::EndedEarly => "ended early".to_owned(),
        };
        Self::new(&code, &error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_counts_messages_with_tokens() {
        let mut clock = AnswerClock::new(Instant::now());
        clock.tokens(0);
        clock.tokens(1);
        clock.tokens(3);
        clock.tokens(1);
        let answer = clock.answer();
        assert_eq!((answer.generated_tokens, answer.gaps.len()), (5, 2));
    }

    #[test]
    fn a_failure_has_the_code_of_its_status() {
        assert_eq!(Failure::from(ClientError::EndedEarly).code, "ended early");
    }
}
