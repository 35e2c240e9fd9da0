//! The engine's thread: drain intake -> end what is over -> plan -> forward -> sample -> deliver, again and again.
//!
//! It owns the model, the KV cache and the scheduler. It never waits for a reader; with nothing to do it sleeps until the
//! doorbell rings or the next deadline.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::Ordering, mpsc},
    time::{Duration, Instant},
};

use bespoke_domain::{Delta, FinishReason, TokenId};
use bespoke_model::{KvCache, Model, Step, StepRow, Workspace};

use crate::{
    EngineError,
    active::{Active, Job, Look},
    block_pool::Prefix,
    draft::draft,
    language::Language,
    pace::Pace,
    sampler::Sampler,
    scheduler::{Chunk, Needs, Plan, Scheduler, SequenceKey},
    sequence::{Advance, Sequence},
    status::Status,
};

/// How long the thread sleeps at most while a reader is slow, in case that its bell is lost.
const PARKED_SLEEP_MAX: Duration = Duration::from_millis(50);
/// How long the thread sleeps at most when there is nothing at all to do.
const IDLE_SLEEP_MAX: Duration = Duration::from_secs(60);

/// Everything that the engine's thread owns.
pub(crate) struct Worker {
    pub(crate) model: Model,
    pub(crate) cache: KvCache,
    pub(crate) workspace: Workspace,
    pub(crate) scheduler: Scheduler,
    pub(crate) language: Arc<Language>,
    pub(crate) status: Arc<Status>,
    pub(crate) intake: mpsc::Receiver<Job>,
    pub(crate) active: BTreeMap<u64, Active>,
    pub(crate) next_id: u64,
    pub(crate) sampler: Sampler,
    pub(crate) pace: Pace,
    /// Scratch: the drafted tokens of one sequence.
    pub(crate) drafts: Vec<TokenId>,
    /// Scratch: the rows of a step.
    pub(crate) rows: Vec<StepRow>,
    /// Scratch: the block tables of a step; empty between steps.
    pub(crate) tables: Vec<&'static [u32]>,
}

impl Worker {
    /// Runs until the engine is stopped; then every request that is left gets an error.
    pub(crate) fn run(mut self) {
        let mut plan = Plan::default();
        while !self.status.is_stopped() {
            let turn = catch_unwind(AssertUnwindSafe(|| self.turn(&mut plan)));
            if turn.is_err() {
                tracing::error!("the engine's thread panicked; all requests in it are lost");
                self.status.fail();
                self.fail_all(|| EngineError::Internal("a step panicked".to_owned()));
            }
        }
        self.drain_intake();
        self.fail_all(|| EngineError::Stopping);
    }

    fn turn(&mut self, plan: &mut Plan) {
        self.drain_intake();
        self.end_what_is_over();
        self.scheduler.plan(plan, self.pace.prompt_tokens());
        self.publish();
        self.note_admissions(plan);
        if plan.chunks.is_empty() {
            std::thread::park_timeout(self.sleep_time());
        } else if let Err(error) = self.step(plan) {
            tracing::error!(%error, "a step failed");
            let message = error.to_string();
            self.fail_all(|| EngineError::Internal(message.clone()));
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
        let (max_new_tokens, logits_from) = match job.score_from {
            Some(from) => (0, from - 1),
            None => {
                let room = self.language.prompt_tokens_max + 1 - num_prompt;
                let logits_from = if job.request.logprobs.prompt { 0 } else { num_prompt - 1 };
                (job.request.max_new_tokens.min(room as u32), logits_from)
            }
        };
        let cache = &job.request.spec.prefix_cache;
        let needs = Needs {
            tokens: job.prompt.clone(),
            num_prompt: job.score_from.unwrap_or(num_prompt),
            // The last new token is never computed, so it needs no place in the cache.
            tokens_max: (num_prompt + max_new_tokens as usize).saturating_sub(1).max(num_prompt),
            logits_from,
            priority: job.request.priority.get(),
            root: (!cache.off).then(|| Prefix::root(&cache.salt)),
        };
        let sequences: Vec<_> =
            (0..job.request.n).map(|choice| Sequence::of_job(&job, choice, max_new_tokens, &self.language)).collect();
        for sequence in &sequences {
            self.scheduler.enqueue(SequenceKey { request: id, choice: sequence.choice }, needs.clone());
        }
        self.active.insert(id, Active::new(job, sequences));
    }

    /// Ends requests that are cancelled, late or out of time, and parks those whose readers are slow.
    fn end_what_is_over(&mut self) {
        let now = Instant::now();
        let mut over = Vec::new();
        for (&id, active) in &mut self.active {
            match active.look(now, &self.status) {
                Look::Over => over.push(id),
                Look::Parked(parked) => {
                    for sequence in &active.sequences {
                        self.scheduler.set_parked(SequenceKey { request: id, choice: sequence.choice }, parked);
                    }
                }
                Look::AsBefore => {}
            }
        }
        for id in over {
            if let Some(active) = self.remove(id) {
                active.end_over(now);
            }
        }
    }

    fn note_admissions(&mut self, plan: &Plan) {
        let now = Instant::now();
        for &(key, num_cached) in &plan.admitted {
            if let Some(active) = self.active.get_mut(&key.request) {
                if active.waits() {
                    active.note_cached(num_cached);
                }
                if active.admit(now) {
                    self.status.num_waiting.fetch_sub(1, Ordering::SeqCst);
                    self.status.meters.queue.note(active.age(now));
                }
                self.scheduler.set_parked(key, active.parked_since.is_some());
            }
        }
    }

    /// Computes the chunks of the plan and takes their tokens.
    fn step(&mut self, plan: &Plan) -> Result<(), EngineError> {
        let begun = Instant::now();
        let mut rows = std::mem::take(&mut self.rows);
        rows.clear();
        let mut tables: Vec<&[u32]> = recycle(std::mem::take(&mut self.tables));
        for (chunk, sequence) in plan.chunks.iter().zip(0..) {
            rows.extend(self.scheduler.chunk_tokens(chunk).zip(chunk.places.clone()).map(|(token, place)| StepRow {
                token,
                position: place as u32,
                sequence,
                wants_logits: chunk.logits.contains(&place),
            }));
            tables.push(self.scheduler.blocks(chunk.key));
        }
        // Chunks of answers come first.
        let answers = plan.chunks.iter().take_while(|chunk| !chunk.of_prompt);
        let num_answer_rows: usize = answers.map(|chunk| chunk.places.len()).sum();
        let step = Step { rows: &rows, num_answer_rows, block_tables: &tables };
        let computed = self.model.forward(&step, &mut self.cache, &mut self.workspace);
        self.tables = recycle(tables);
        let num_rows = rows.len() as u64;
        self.rows = rows;
        computed?;
        let now = Instant::now();
        let mut logits_row = 0;
        for chunk in &plan.chunks {
            self.take_logits(chunk, logits_row, now);
            logits_row += chunk.logits.len();
        }
        let took = begun.elapsed();
        self.pace.note(num_rows as usize - num_answer_rows, took);
        self.status.meters.step.note(took);
        self.status.meters.step_tokens.fetch_add(num_rows, Ordering::Relaxed);
        Ok(())
    }

    /// Goes on with the sequence of a chunk whose first logits are in row `logits_row` of the workspace.
    fn take_logits(&mut self, chunk: &Chunk, logits_row: usize, now: Instant) {
        let key = chunk.key;
        let Some(active) = self.active.get_mut(&key.request) else { return };
        let Active { sequences, request, score_from, .. } = active;
        let sequence = &mut sequences[key.choice as usize];
        let (language, scheduler) = (&*self.language, &mut self.scheduler);
        self.drafts.clear();
        self.drafts.extend(scheduler.chunk_tokens(chunk).skip(scheduler.tokens(key).len() - chunk.places.start));
        let mut delta = Delta { choice: key.choice, ..Delta::default() };
        let mut end = chunk.places.end;
        for (place, row) in chunk.logits.clone().zip(logits_row..) {
            let tokens = scheduler.tokens(key);
            let advance = Advance { request, language, tokens, logits: self.workspace.logits_row(row) };
            if place + 1 < tokens.len() {
                sequence.note_prompt(&advance, place);
            } else if score_from.is_none() {
                let token = sequence.advance(&advance, &mut self.sampler, &mut delta);
                scheduler.append(key, token);
                // What was drafted counts as long as it is what was sampled.
                let right = self.drafts.get(delta.token_ids.len() - 1) == Some(&token);
                if sequence.end.is_some() || !right {
                    end = place + 1;
                    break;
                }
            }
        }
        scheduler.commit(chunk, end);
        if score_from.is_some() && chunk.places.end == scheduler.tokens(key).len() {
            let logprobs = sequence.take_prompt_logprobs();
            sequence.end_now(FinishReason::Length, None);
            active.deliver_score(logprobs, now);
        } else if !delta.token_ids.is_empty() {
            let num_new = delta.token_ids.len() as u64;
            let meters = &self.status.meters;
            meters.generated_tokens.fetch_add(num_new, Ordering::Relaxed);
            if let Some(last) = sequence.last_token.replace(now) {
                meters.next_token.note_many(now.duration_since(last) / num_new as u32, num_new);
            }
            if !active.has_begun() {
                meters.first_token.note(active.age(now));
            }
            active.note_drafts(self.drafts.len(), delta.token_ids.len() - 1);
            active.deliver(delta, now);
        }
        self.go_on(key, now);
    }

    /// Drafts for a sequence that goes on, or ends it and with the last one its request.
    fn go_on(&mut self, key: SequenceKey, now: Instant) {
        let Some(active) = self.active.get(&key.request) else { return };
        if active.sequences[key.choice as usize].end.is_some() {
            self.scheduler.remove(key);
            if active.is_done()
                && let Some(active) = self.remove(key.request)
            {
                active.finish(now);
            }
        } else if active.request.draft_tokens_max > 0 {
            draft(self.scheduler.tokens(key), active.request.draft_tokens_max as usize, &mut self.drafts);
            self.scheduler.set_drafts(key, &self.drafts);
        }
    }

    /// Takes a request out of everything but its outlet.
    fn remove(&mut self, id: u64) -> Option<Active> {
        let active = self.active.remove(&id)?;
        self.status.num_requests.fetch_sub(1, Ordering::SeqCst);
        self.status.note_ended(active.usage());
        if active.waits() {
            self.status.num_waiting.fetch_sub(1, Ordering::SeqCst);
        }
        for sequence in &active.sequences {
            self.scheduler.remove(SequenceKey { request: id, choice: sequence.choice });
        }
        self.publish();
        Some(active)
    }

    fn fail_all(&mut self, error: impl Fn() -> EngineError) {
        while let Some((&id, _)) = self.active.first_key_value() {
            if let Some(active) = self.remove(id) {
                active.fail(error());
            }
        }
    }

    fn publish(&self) {
        self.status.num_running.store(self.scheduler.num_running(), Ordering::SeqCst);
        self.status.num_preempted.store(self.scheduler.num_preempted() as usize, Ordering::SeqCst);
        self.status.num_blocks_in_use.store(self.scheduler.pool().num_in_use(), Ordering::SeqCst);
    }

    fn sleep_time(&self) -> Duration {
        let now = Instant::now();
        let wake_at = self.active.values().filter_map(Active::wake_at).min();
        let until = wake_at.map_or(IDLE_SLEEP_MAX, |at| at.saturating_duration_since(now));
        if self.active.values().any(|active| active.parked_since.is_some()) {
            until.min(PARKED_SLEEP_MAX)
        } else {
            until
        }
    }
}

/// Empties a vector and gives its memory to one with another lifetime: collecting in place keeps the allocation.
fn recycle<'b>(mut tables: Vec<&[u32]>) -> Vec<&'b [u32]> {
    tables.clear();
    tables.into_iter().map(|_| -> &'b [u32] { &[] }).collect()
}
