//! What the engine's thread and its handles tell each other without a message.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Shared counters and switches.
#[derive(Debug, Default)]
pub(crate) struct Status {
    /// Requests taken in of which no choice has left the queue.
    pub(crate) num_waiting: AtomicUsize,
    /// Sequences that hold blocks.
    pub(crate) num_running: AtomicUsize,
    /// KV blocks that are taken.
    pub(crate) num_blocks_in_use: AtomicUsize,
    /// No new request is taken in.
    closed: AtomicBool,
    /// The thread ends.
    stopped: AtomicBool,
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

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }
}
