//! What the engine's thread and its handles tell each other without a message.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use bespoke_domain::Usage;

use crate::measures::Meters;

/// Shared counters and switches.
#[derive(Debug, Default)]
pub(crate) struct Status {
    /// Requests taken in of which no choice has left the queue.
    pub(crate) num_waiting: AtomicUsize,
    /// Requests taken in that have not ended.
    pub(crate) num_requests: AtomicUsize,
    /// Sequences that hold blocks.
    pub(crate) num_running: AtomicUsize,
    /// KV blocks that are taken.
    pub(crate) num_blocks_in_use: AtomicUsize,
    /// What has been done, except for preemptions.
    totals: Mutex<Totals>,
    /// How often a sequence has given its blocks back to be computed again.
    pub(crate) num_preempted: AtomicUsize,
    /// What the engine's thread measures.
    pub(crate) meters: Meters,
    /// No new request is taken in.
    closed: AtomicBool,
    /// The thread ends.
    stopped: AtomicBool,
    /// The thread has ended after a panic.
    failed: AtomicBool,
}

/// What an engine has done since it was built. Tokens count once their request has ended, however it ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Requests that have ended.
    pub num_requests: u64,
    /// Tokens of rendered prompts.
    pub prompt_tokens: u64,
    /// How many of them were found in the prefix cache.
    pub cached_tokens: u64,
    /// Tokens of answers.
    pub generated_tokens: u64,
    /// Tokens that were drafted and checked.
    pub drafted_tokens: u64,
    /// How many of them were right.
    pub accepted_tokens: u64,
    /// How often a sequence has given its blocks back to be computed again.
    pub num_preempted: u64,
}

impl Totals {
    fn add(&mut self, usage: &Usage) {
        self.num_requests += 1;
        self.prompt_tokens += u64::from(usage.prompt_tokens);
        self.cached_tokens += u64::from(usage.cached_tokens);
        self.generated_tokens += u64::from(usage.generated_tokens);
        self.drafted_tokens += u64::from(usage.drafted_tokens);
        self.accepted_tokens += u64::from(usage.accepted_tokens);
    }
}

impl Status {
    /// Notes a request that has ended.
    pub(crate) fn note_ended(&self, usage: &Usage) {
        self.totals.lock().unwrap_or_else(PoisonError::into_inner).add(usage);
    }

    pub(crate) fn totals(&self) -> Totals {
        let totals = *self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        Totals { num_preempted: self.num_preempted.load(Ordering::SeqCst) as u64, ..totals }
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    pub(crate) fn stop(&self) {
        self.close();
        self.stopped.store(true, Ordering::SeqCst);
    }

    pub(crate) fn fail(&self) {
        self.failed.store(true, Ordering::SeqCst);
        self.stop();
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }
}
