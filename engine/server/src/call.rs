//! A call: one request from the door of the server to the end of its answer, whatever protocol it came by.
//!
//! The door makes it and lays it into the request's extensions; a service lets it follow the generation; when the answer has
//! ended, the door counts it and writes its line of the audit log.

use std::{
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Instant, SystemTime},
};

use bespoke_domain::{Score, Timings};
use bespoke_engine::{EngineError, Event, Generation};
use futures::Stream;
use tonic::Code;

use crate::{status::status, tokens::Identity};

/// One call. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Call(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    method: String,
    identity: Option<Arc<Identity>>,
    begun: Instant,
    request_id: OnceLock<String>,
    prompt_tokens: AtomicU64,
    generated_tokens: AtomicU64,
    timings: OnceLock<(Timings, SystemTime)>,
    code: OnceLock<Code>,
}

impl Call {
    /// Begins a call; without an identity it is one that the door refuses.
    pub(crate) fn new(method: String, identity: Option<Arc<Identity>>, now: Instant) -> Self {
        Self(Arc::new(Inner {
            method,
            identity,
            begun: now,
            request_id: OnceLock::new(),
            prompt_tokens: AtomicU64::new(0),
            generated_tokens: AtomicU64::new(0),
            timings: OnceLock::new(),
            code: OnceLock::new(),
        }))
    }

    /// Returns the call in the extensions of a request that came through the door.
    pub(crate) fn of(extensions: &axum::http::Extensions) -> Self {
        let call = extensions.get().cloned();
        call.unwrap_or_else(|| Self::new(String::new(), None, Instant::now()))
    }

    /// Returns the path that was called.
    pub(crate) fn method(&self) -> &str {
        &self.0.method
    }

    /// Returns who called, unless the door refused.
    pub(crate) fn identity(&self) -> Option<&Arc<Identity>> {
        self.0.identity.as_ref()
    }

    /// Returns when the call began.
    pub(crate) fn begun(&self) -> Instant {
        self.0.begun
    }

    /// Returns the id of the request, once it has begun to run.
    pub(crate) fn request_id(&self) -> Option<&str> {
        self.0.request_id.get().map(String::as_str)
    }

    /// Returns the tokens of the prompt.
    pub(crate) fn prompt_tokens(&self) -> u64 {
        self.0.prompt_tokens.load(Ordering::Relaxed)
    }

    /// Returns the tokens that have been generated so far.
    pub(crate) fn generated_tokens(&self) -> u64 {
        self.0.generated_tokens.load(Ordering::Relaxed)
    }

    /// Returns where the time went and when it ended, once a generation has finished.
    pub(crate) fn timings(&self) -> Option<(Timings, SystemTime)> {
        self.0.timings.get().copied()
    }

    /// Returns how the call ended, if that is known.
    pub(crate) fn code(&self) -> Option<Code> {
        self.0.code.get().copied()
    }

    /// Notes how the call ended; what is noted first counts.
    pub(crate) fn note_code(&self, code: Code) {
        let _ = self.0.code.set(code);
    }

    /// Notes what a score has used: prompt and continuation are read, nothing is written.
    pub(crate) fn note_score(&self, score: &Score) {
        self.spend(&self.0.prompt_tokens, u64::from(score.prompt_tokens) + score.tokens.len() as u64);
    }

    /// Notes the tokens that embeddings have read.
    pub(crate) fn note_embedded(&self, num_tokens: u64) {
        self.spend(&self.0.prompt_tokens, num_tokens);
    }

    /// Passes on the events of a generation and notes what they tell.
    pub(crate) fn follow(&self, generation: Generation) -> Followed {
        Followed { call: self.clone(), generation }
    }

    fn note(&self, event: &Result<Event, EngineError>) {
        match event {
            Ok(Event::Started(started)) => {
                let _ = self.0.request_id.set(started.request_id.as_str().to_owned());
                self.spend(&self.0.prompt_tokens, u64::from(started.prompt_tokens));
            }
            Ok(Event::Delta(delta)) => self.spend(&self.0.generated_tokens, delta.token_ids.len() as u64),
            Ok(Event::Finished(finished)) => {
                let _ = self.0.timings.set((finished.timings, SystemTime::now()));
            }
            Err(error) => self.note_code(status(error).code()),
        }
    }

    fn spend(&self, counter: &AtomicU64, num_tokens: u64) {
        counter.fetch_add(num_tokens, Ordering::Relaxed);
        if let Some(identity) = &self.0.identity {
            identity.spend(num_tokens, Instant::now());
        }
    }
}

/// The events of a generation, noted in its call as they pass. Dropping it cancels the request.
#[must_use = "dropping it cancels the request"]
pub(crate) struct Followed {
    call: Call,
    generation: Generation,
}

impl Stream for Followed {
    type Item = Result<Event, EngineError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = Pin::new(&mut self.generation).poll_next(context);
        if let Poll::Ready(Some(event)) = &polled {
            self.call.note(event);
        }
        polled
    }
}
