//! The way from the engine's thread to the reader of one request, and back for "there is room again" and "I am gone".
//!
//! The channel is bounded. The engine never waits for it: it runs a request only while there is room for all that a step can
//! yield, so a slow reader parks its own request and no other. The place of the terminal event is reserved from the start.

use std::{
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    thread::Thread,
};

use bespoke_domain::Event;
use futures::Stream;
use tokio::sync::mpsc;

use crate::EngineError;

/// The events that a reader may lag behind before its request parks.
const EVENTS_MAX: usize = 64;

/// Wakes the engine's thread.
#[derive(Debug, Default)]
pub(crate) struct Doorbell(OnceLock<Thread>);

impl Doorbell {
    pub(crate) fn install(&self, thread: Thread) {
        self.0.set(thread).expect("invariant: an engine has one thread");
    }

    pub(crate) fn ring(&self) {
        if let Some(thread) = self.0.get() {
            thread.unpark();
        }
    }
}

type Item = Result<Event, EngineError>;

/// The engine's end.
pub(crate) struct Outlet {
    sender: mpsc::Sender<Item>,
    terminal: Option<mpsc::OwnedPermit<Item>>,
    parked: Arc<AtomicBool>,
    /// The most events of one step: a delta for each choice.
    step_events_max: usize,
}

/// Makes the two ends of a request with `num_choices` choices.
pub(crate) fn outlet(num_choices: u32, doorbell: Arc<Doorbell>) -> (Outlet, Generation) {
    let step_events_max = num_choices as usize;
    // Two more: the started and the terminal event.
    let (sender, receiver) = mpsc::channel(EVENTS_MAX + step_events_max + 2);
    let terminal = sender.clone().try_reserve_owned().ok();
    let parked = Arc::new(AtomicBool::new(false));
    let outlet = Outlet { sender, terminal, parked: parked.clone(), step_events_max };
    (outlet, Generation { receiver, parked, doorbell, ended: false })
}

impl Outlet {
    /// Whether a step's events may not fit. Once true, the reader rings the doorbell when it has made room.
    pub(crate) fn is_full(&self) -> bool {
        let full = || self.sender.capacity() < self.step_events_max;
        if !full() {
            self.parked.store(false, Ordering::SeqCst);
            return false;
        }
        // The reader may have read between the look and the store and then rings no bell, so look again.
        self.parked.store(true, Ordering::SeqCst);
        full()
    }

    /// Whether the reader is gone.
    pub(crate) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Sends an event for which [`Outlet::is_full`] has promised room. A reader that is gone is noticed elsewhere.
    pub(crate) fn send(&self, event: Event) {
        let sent = self.sender.try_send(Ok(event));
        debug_assert!(
            !matches!(sent, Err(mpsc::error::TrySendError::Full(_))),
            "a step yielded more events than promised"
        );
    }

    /// Sends the terminal event.
    pub(crate) fn end(mut self, item: Item) {
        if let Some(permit) = self.terminal.take() {
            permit.send(item);
        }
    }
}

/// The events of one request, as a stream: one started, deltas, one finished; or an error, after which nothing follows.
///
/// Dropping it cancels the request and frees what it holds. Reading slowly slows this request alone.
#[must_use = "dropping a generation cancels its request"]
pub struct Generation {
    receiver: mpsc::Receiver<Item>,
    parked: Arc<AtomicBool>,
    doorbell: Arc<Doorbell>,
    ended: bool,
}

impl Stream for Generation {
    type Item = Item;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let item = match self.receiver.poll_recv(context) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(item)) => item,
            // The engine always sends a terminal event, unless the request came just as its thread ended.
            Poll::Ready(None) => Err(EngineError::Stopping),
        };
        self.ended = matches!(item, Err(_) | Ok(Event::Finished(_)));
        if self.parked.load(Ordering::SeqCst) {
            self.doorbell.ring();
        }
        Poll::Ready(Some(item))
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.receiver.close();
        self.doorbell.ring();
    }
}

impl std::fmt::Debug for Generation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Generation").field("ended", &self.ended).finish_non_exhaustive()
    }
}
