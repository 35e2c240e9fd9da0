//! What the engine's thread and its handles tell each other without a message.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

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
    /// How often a sequence has given its blocks back to be computed again.
    pub(crate) num_preempted: AtomicUsize,
    /// No new request is taken in.
    closed: AtomicBool,
    /// The thread ends.
    stopped: AtomicBool,
    /// The thread has ended after a panic.
    failed: AtomicBool,
}

impl Status {
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
