//! The engine's thread over a backend: the same jobs and the same events as `worker`, one sequence at a time.
//!
//! Drain intake -> end what is over -> give the place to the first in rank -> take logits -> sample -> deliver, again and
//! again. It never waits for a reader or for the backend; it sleeps until the doorbell rings or the next deadline.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::Ordering, mpsc},
    time::{Duration, Instant},
};

use bespoke_domain::{Delta, FinishReason, TokenId};

use crate::{
    EngineError,
    active::{Active, Job, Look},
    backend::{Backend, BackendError, Bell},
    language::Language,
    sampler::Sampler,
    sequence::{Advance, Sequence},
    status::Status,
};

/// How long the thread sleeps at most while something runs or a reader is slow, in case that a bell is lost.
const BUSY_SLEEP_MAX: Duration = Duration::from_millis(50);
/// How long the thread sleeps at most when there is nothing at all to do.
const IDLE_SLEEP_MAX: Duration = Duration::from_secs(60);
/// How many earlier requests one passes for each level of its priority, so that none waits for ever.
const PASSED_PER_LEVEL: i64 = 8;

/// Everything that the engine's thread owns.
pub(crate) struct BackendWorker {
    backend: Box<dyn Backend>,
    language: Arc<Language>,
    status: Arc<Status>,
    intake: mpsc::Receiver<Job>,
    /// By order of arrival.
    guests: BTreeMap<u64, Guest>,
    next_id: u64,
    running: Option<Running>,
    sampler: Sampler,
}

/// A request with the tokens of its choices.
struct Guest {
    active: Active,
    /// Lower ones run first.
    rank: i64,
    lines: Vec<Line>,
}

/// The tokens of one choice: of the prompt, then of the answer.
#[derive(Clone)]
struct Line {
    tokens: Vec<TokenId>,
    /// The place whose logits are needed next. Those of places before the last are needed where the prompt is scored.
    place: usize,
}

/// The sequence that the backend has.
#[derive(Clone, Copy)]
struct Running {
    id: u64,
    choice: usize,
    /// When its step began.
    begun: Instant,
    step_tokens: u64,
}

impl BackendWorker {
    pub(crate) fn new(
        mut backend: Box<dyn Backend>,
        language: Arc<Language>,
        status: Arc<Status>,
        intake: mpsc::Receiver<Job>,
        bell: Bell,
    ) -> Self {
        backend.attach(bell);
        let (guests, sampler) = (BTreeMap::new(), Sampler::default());
        Self { backend, language, status, intake, guests, next_id: 0, running: None, sampler }
    }

    /// Runs until the engine is stopped; then every request that is left gets an error.
    pub(crate) fn run(mut self) {
        while !self.status.is_stopped() {
            if catch_unwind(AssertUnwindSafe(|| self.turn())).is_err() {
                tracing::error!("the engine's thread panicked; all requests in it are lost");
                self.status.fail();
                self.fail_all(|| EngineError::Internal("a step panicked".to_owned()));
            }
        }
        self.drain_intake();
        self.fail_all(|| EngineError::Stopping);
    }

    fn turn(&mut self) {
        self.drain_intake();
        self.end_what_is_over();
        let stepped = self.give_place().and_then(|()| self.step());
        self.publish();
        match stepped {
            Ok(true) => {}
            Ok(false) => std::thread::park_timeout(self.sleep_time()),
            Err(BackendError::Sequence(reason)) => {
                tracing::error!(reason, "a step failed");
                if let Some(active) = self.running.and_then(|running| self.remove(running.id)) {
                    active.fail(EngineError::Internal(reason));
                }
            }
            Err(BackendError::Gone(reason)) => {
                tracing::error!(reason, "the backend has failed; all requests in it are lost");
                self.status.fail();
                self.fail_all(|| EngineError::Internal(reason.clone()));
            }
        }
    }

    fn drain_intake(&mut self) {
        while let Ok(job) = self.intake.try_recv() {
            self.take_in(job);
        }
    }

    fn take_in(&mut self, job: Job) {
        let id = self.next_id;
        self.next_id += 1;
        let num_prompt = job.prompt.len();
        let (max_new_tokens, place) = match job.score_from {
            Some(from) => (0, from - 1),
            None => {
                let room = self.language.prompt_tokens_max + 1 - num_prompt;
                let place = if job.request.logprobs.prompt { 0 } else { num_prompt - 1 };
                (job.request.max_new_tokens.min(room as u32), place)
            }
        };
        let sequence = |choice| Sequence::of_job(&job, choice, max_new_tokens, &self.language);
        let sequences: Vec<_> = (0..job.request.n).map(sequence).collect();
        let lines = vec![Line { tokens: job.prompt.clone(), place }; sequences.len()];
        let rank = id as i64 - i64::from(job.request.priority.get()) * PASSED_PER_LEVEL;
        self.guests.insert(id, Guest { active: Active::new(job, sequences), rank, lines });
    }

    /// Ends requests that are cancelled, late or out of time, and parks those whose readers are slow.
    fn end_what_is_over(&mut self) {
        let now = Instant::now();
        let look = |(&id, Guest { active, .. }): (&u64, &mut Guest)| {
            matches!(active.look(now, &self.status), Look::Over).then_some(id)
        };
        let over: Vec<u64> = self.guests.iter_mut().filter_map(look).collect();
        for id in over {
            if let Some(active) = self.remove(id) {
                active.end_over(now);
            }
        }
    }

    /// Lets the first in rank run where none runs. One whose reader is slow gives the place to another and is computed again
    /// later: a slow reader must not stop the others.
    fn give_place(&mut self) -> Result<(), BackendError> {
        let free = self.guests.iter().filter(|(_, guest)| guest.active.parked_since.is_none());
        let Some(id) = free.min_by_key(|&(&id, guest)| (guest.rank, id)).map(|(&id, _)| id) else { return Ok(()) };
        if let Some(running) = self.running {
            if self.guests[&running.id].active.parked_since.is_none() {
                return Ok(());
            }
            self.leave();
            self.status.num_preempted.fetch_add(1, Ordering::SeqCst);
        }
        let now = Instant::now();
        let Some(Guest { active, lines, .. }) = self.guests.get_mut(&id) else { return Ok(()) };
        if active.admit(now) {
            self.status.num_waiting.fetch_sub(1, Ordering::SeqCst);
            self.status.meters.queue.note(active.age(now));
        }
        let choice = active.sequences.iter().position(|sequence| sequence.end.is_none());
        let choice = choice.expect("invariant: a request whose choices have all ended is removed");
        let tokens = &lines[choice].tokens[..=lines[choice].place];
        self.running = Some(Running { id, choice, begun: now, step_tokens: tokens.len() as u64 });
        self.backend.start(tokens)
    }

    /// Takes the logits that the backend has, if it has any and there is room for what follows from them.
    fn step(&mut self) -> Result<bool, BackendError> {
        let Some(running) = self.running else { return Ok(false) };
        if self.guests[&running.id].active.parked_since.is_some() {
            return Ok(false);
        }
        let Some(logits) = self.backend.poll()? else { return Ok(false) };
        let Some(logits) = logits.get(..self.language.vocab_size) else {
            let (found, wanted) = (logits.len(), self.language.vocab_size);
            return Err(BackendError::Sequence(format!("the backend gave {found} logits for {wanted} tokens")));
        };
        self.status.meters.step.note(running.begun.elapsed());
        self.status.meters.step_tokens.fetch_add(running.step_tokens, Ordering::Relaxed);
        self.take_logits(running, logits);
        self.go_on(running)?;
        Ok(true)
    }

    fn take_logits(&mut self, running: Running, logits: &[f32]) {
        let now = Instant::now();
        let Some(Guest { active, lines, .. }) = self.guests.get_mut(&running.id) else { return };
        let Active { sequences, request, score_from, .. } = active;
        let (sequence, Line { tokens, place }) = (&mut sequences[running.choice], &mut lines[running.choice]);
        let at = std::mem::replace(place, *place + 1);
        let advance = Advance { request, language: &self.language, tokens, logits };
        if at + 1 < tokens.len() {
            sequence.note_prompt(&advance, at);
        } else if score_from.is_none() {
            let mut delta = Delta { choice: sequence.choice, ..Delta::default() };
            let token = sequence.advance(&advance, &mut self.sampler, &mut delta);
            tokens.push(token);
            let meters = &self.status.meters;
            meters.generated_tokens.fetch_add(1, Ordering::Relaxed);
            if let Some(last) = sequence.last_token.replace(now) {
                meters.next_token.note(now.duration_since(last));
            }
            if !active.has_begun() {
                meters.first_token.note(active.age(now));
            }
            active.deliver(delta, now);
            return;
        }
        // The logits after the last token of a score are nobody's.
        if score_from.is_some() && *place + 1 >= tokens.len() {
            let logprobs = sequence.take_prompt_logprobs();
            sequence.end_now(FinishReason::Length, None);
            active.deliver_score(logprobs, now);
        }
    }

    /// Gives the backend the next token of a sequence that goes on, or ends it and with the last one its request.
    fn go_on(&mut self, running: Running) -> Result<(), BackendError> {
        let Guest { active, lines, .. } = &self.guests[&running.id];
        if active.sequences[running.choice].end.is_none() {
            let Line { tokens, place } = &lines[running.choice];
            self.running = Some(Running { begun: Instant::now(), step_tokens: 1, ..running });
            return self.backend.push(tokens[*place]);
        }
        let is_done = active.is_done();
        self.leave();
        if let Some(active) = is_done.then(|| self.remove(running.id)).flatten() {
            active.finish(Instant::now());
        }
        Ok(())
    }

    /// Takes the place from the sequence that has it.
    fn leave(&mut self) {
        if self.running.take().is_some() {
            self.backend.end();
        }
    }

    /// Takes a request out of everything but its outlet.
    fn remove(&mut self, id: u64) -> Option<Active> {
        let Guest { active, .. } = self.guests.remove(&id)?;
        if self.running.is_some_and(|running| running.id == id) {
            self.leave();
        }
        self.status.num_requests.fetch_sub(1, Ordering::SeqCst);
        self.status.note_ended(active.usage());
        if active.waits() {
            self.status.num_waiting.fetch_sub(1, Ordering::SeqCst);
        }
        self.publish();
        Some(active)
    }

    fn fail_all(&mut self, error: impl Fn() -> EngineError) {
        while let Some((&id, _)) = self.guests.first_key_value() {
            if let Some(active) = self.remove(id) {
                active.fail(error());
            }
        }
    }

    fn publish(&self) {
        self.status.num_running.store(usize::from(self.running.is_some()), Ordering::SeqCst);
    }

    fn sleep_time(&self) -> Duration {
        let now = Instant::now();
        let actives = || self.guests.values().map(|guest| &guest.active);
        let wake_at = actives().filter_map(Active::wake_at).min();
        let until = wake_at.map_or(IDLE_SLEEP_MAX, |at| at.saturating_duration_since(now));
        let busy = self.running.is_some() || actives().any(|active| active.parked_since.is_some());
        if busy { until.min(BUSY_SLEEP_MAX) } else { until }
    }
}
