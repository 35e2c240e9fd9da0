//! An active request: from the moment the engine's thread takes it in until its terminal event.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use bespoke_domain::{
    Choice, Delta, Event, FinishReason, Finished, Request, RequestId, Started, Template, Timings, TokenId,
    TokenLogprob, Usage,
};

use crate::{EngineError, error::Stage, outlet::Outlet, sequence::Sequence, status::Status};

/// How long a reader may make no room before its request ends. A slow reader holds neither a place nor blocks that others
/// need, but its tokens and events stay in memory.
const STALL_MAX: Duration = Duration::from_secs(60);

/// What the caller's thread hands to the engine's thread.
pub(crate) struct Job {
    pub(crate) request: Request,
    /// Sent when the request is admitted.
    pub(crate) started: Started,
    pub(crate) prompt: Vec<TokenId>,
    /// The template in use: its stop strings end the answer too.
    pub(crate) template: Template,
    /// The text that the first delta of each choice starts with; empty where none was asked for.
    pub(crate) echo: String,
    /// For a score: the first place of the continuation; nothing is generated then.
    pub(crate) score_from: Option<usize>,
    pub(crate) outlet: Outlet,
    pub(crate) arrived: Instant,
    pub(crate) deadline: Option<Instant>,
}

/// A request on the engine's thread.
pub(crate) struct Active {
    /// The id, given or chosen.
    request_id: RequestId,
    pub(crate) request: Request,
    pub(crate) score_from: Option<usize>,
    pub(crate) sequences: Vec<Sequence>,
    /// Since when the reader has been slow.
    pub(crate) parked_since: Option<Instant>,
    /// Taken when the request is admitted.
    started: Option<Started>,
    outlet: Outlet,
    usage: Usage,
    arrived: Instant,
    admitted: Option<Instant>,
    first_token: Option<Instant>,
    deadline: Option<Instant>,
}

/// What a look at a request finds.
pub(crate) enum Look {
    /// It ends: [`Active::end_over`].
    Over,
    /// From now on it is parked, or no longer.
    Parked(bool),
    AsBefore,
}

impl Active {
    pub(crate) fn new(job: Job, sequences: Vec<Sequence>) -> Self {
        let usage = Usage { prompt_tokens: job.started.prompt_tokens, ..Usage::default() };
        Self {
            request_id: job.started.request_id.clone(),
            request: job.request,
            score_from: job.score_from,
            sequences,
            parked_since: None,
            started: Some(job.started),
            outlet: job.outlet,
            usage,
            arrived: job.arrived,
            admitted: None,
            first_token: None,
            deadline: job.deadline,
        }
    }

    /// Whether no choice has left the queue.
    pub(crate) fn waits(&self) -> bool {
        self.admitted.is_none()
    }

    /// Returns how long the request has been here.
    pub(crate) fn age(&self, now: Instant) -> Duration {
        now.duration_since(self.arrived)
    }

    /// Whether a token has come.
    pub(crate) fn has_begun(&self) -> bool {
        self.first_token.is_some()
    }

    /// Looks at the request between two steps: ends its choices where it is out of time, parks it while its reader is slow.
    pub(crate) fn look(&mut self, now: Instant, status: &Status) -> Look {
        if self.is_over(now) {
            return Look::Over;
        }
        if self.is_out_of_time(now) {
            if self.admit(now) {
                status.num_waiting.fetch_sub(1, Ordering::SeqCst);
            }
            self.end_all(FinishReason::TimeLimit);
            return Look::Over;
        }
        let slow = !self.waits() && self.is_slow();
        if slow == self.parked_since.is_some() {
            return Look::AsBefore;
        }
        self.parked_since = slow.then_some(now);
        self.sequences.iter_mut().for_each(|sequence| sequence.last_token = None);
        Look::Parked(slow)
    }

    /// Whether the request ends from outside: nobody reads it any more, its deadline has come, or its reader has stalled.
    fn is_over(&self, now: Instant) -> bool {
        self.is_cancelled() || self.late(now).is_some() || self.is_stalled(now)
    }

    fn is_cancelled(&self) -> bool {
        self.outlet.is_closed()
    }

    /// Whether the reader is so slow that the next step's events may not fit.
    fn is_slow(&self) -> bool {
        self.outlet.is_full()
    }

    /// Whether every choice has ended.
    pub(crate) fn is_done(&self) -> bool {
        self.sequences.iter().all(|sequence| sequence.end.is_some())
    }

    /// Returns the stage whose deadline has come.
    fn late(&self, now: Instant) -> Option<Stage> {
        self.deadline.filter(|&deadline| now >= deadline)?;
        Some(match (self.admitted, self.first_token) {
            (None, _) => Stage::Queue,
            (_, None) => Stage::Prefill,
            _ => Stage::Decode,
        })
    }

    /// Whether the reader has made no room for so long that the request is given up.
    fn is_stalled(&self, now: Instant) -> bool {
        self.parked_since.is_some_and(|since| now.duration_since(since) >= STALL_MAX)
    }

    fn is_out_of_time(&self, now: Instant) -> bool {
        self.request.time_limit.is_some_and(|limit| now.duration_since(self.arrived) >= limit)
    }

    /// Returns when the request wants to be looked at even if nothing else happens.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        let time_limit = self.request.time_limit.and_then(|limit| self.arrived.checked_add(limit));
        [self.deadline, time_limit].into_iter().flatten().min()
    }

    /// Notes that a choice has left the queue; the first one starts the stream. Returns whether it is the first.
    pub(crate) fn admit(&mut self, now: Instant) -> bool {
        let Some(started) = self.started.take() else { return false };
        self.admitted = Some(now);
        self.outlet.send(Event::Started(started));
        true
    }

    /// Notes how many tokens of the prompt were found in the cache; the first choice tells.
    pub(crate) fn note_cached(&mut self, num_cached: usize) {
        // The beginning of a score's continuation does not count as prompt.
        self.usage.cached_tokens = (num_cached as u32).min(self.usage.prompt_tokens);
        if let Some(started) = &mut self.started {
            started.cached_tokens = self.usage.cached_tokens;
        }
    }

    /// Returns what has been used so far.
    pub(crate) fn usage(&self) -> &Usage {
        &self.usage
    }

    /// Notes how many tokens were drafted for a step and how many of them were right.
    pub(crate) fn note_drafts(&mut self, num_drafted: usize, num_accepted: usize) {
        self.usage.drafted_tokens += num_drafted as u32;
        self.usage.accepted_tokens += num_accepted as u32;
    }

    /// Notes and sends what a choice has grown by.
    pub(crate) fn deliver(&mut self, delta: Delta, now: Instant) {
        self.first_token.get_or_insert(now);
        self.usage.generated_tokens += delta.token_ids.len() as u32;
        self.outlet.send(Event::Delta(delta));
    }

    /// Sends the log-probabilities of a score.
    pub(crate) fn deliver_score(&mut self, prompt_logprobs: Vec<TokenLogprob>, now: Instant) {
        self.deliver(Delta { prompt_logprobs, ..Delta::default() }, now);
    }

    /// Ends the choices that have not ended. Their text that was held back is sent, where the reader has left room for it.
    fn end_all(&mut self, reason: FinishReason) {
        let room = !self.outlet.is_full();
        for sequence in self.sequences.iter_mut().filter(|sequence| sequence.end.is_none()) {
            let text = sequence.end_now(reason, None);
            if room && !text.is_empty() {
                let delta = Delta { choice: sequence.choice, text: text.into(), ..Delta::default() };
                self.outlet.send(Event::Delta(delta));
            }
        }
    }

    /// Sends the terminal event of a request that is over or out of time.
    pub(crate) fn end_over(self, now: Instant) {
        match self.late(now) {
            _ if self.is_cancelled() => self.note_cancel(),
            None if self.is_stalled(now) => self.fail(EngineError::Stalled(STALL_MAX)),
            Some(stage) => self.fail(EngineError::DeadlineExceeded(stage)),
            None => self.finish(now),
        }
    }

    /// Sends the terminal event of a request whose choices have all ended.
    pub(crate) fn finish(self, now: Instant) {
        let admitted = self.admitted.unwrap_or(now);
        let first_token = self.first_token.unwrap_or(now);
        let timings = Timings {
            queue: admitted.duration_since(self.arrived),
            prefill: first_token.duration_since(admitted),
            decode: now.duration_since(first_token),
        };
        let usage = self.usage;
        tracing::info!(
            request_id = self.request_id.as_str(),
            prompt_tokens = usage.prompt_tokens,
            generated_tokens = usage.generated_tokens,
            queue_ms = timings.queue.as_millis() as u64,
            prefill_ms = timings.prefill.as_millis() as u64,
            decode_ms = timings.decode.as_millis() as u64,
            "finished"
        );
        let choices: Vec<Choice> = self.sequences.into_iter().filter_map(|sequence| sequence.end).collect();
        self.outlet.end(Ok(Event::Finished(Finished { choices, usage, timings })));
    }

    /// Logs that the caller has gone.
    fn note_cancel(self) {
        let generated_tokens = self.usage.generated_tokens;
        tracing::info!(request_id = self.request_id.as_str(), generated_tokens, "cancelled");
    }

    /// Sends an error as the terminal event.
    pub(crate) fn fail(self, error: EngineError) {
        tracing::info!(request_id = self.request_id.as_str(), %error, "failed");
        self.outlet.end(Err(error));
    }
}
