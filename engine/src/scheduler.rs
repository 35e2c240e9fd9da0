//! The scheduler: decides which tokens of which sequences the next step computes. Pure: no clock, channel or model.
//!
//! A sequence waits until it is the first in line and enough blocks for its longest possible length are free; then it runs to
//! its end. A step takes one token of each sequence that decodes, then prompt chunks in order of admission, up to the budget.

use std::{collections::VecDeque, ops::Range};

use crate::block_pool::BlockPool;

/// Names a sequence: a request and its choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SequenceKey {
    pub(crate) request: u64,
    pub(crate) choice: u32,
}

/// What a sequence needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Needs {
    /// The tokens that it starts with, at least one.
    pub(crate) prompt_tokens: usize,
    /// The most tokens it can ever have in the cache.
    pub(crate) tokens_max: usize,
    /// The first place whose logits are wanted; usually that of the last prompt token.
    pub(crate) logits_from: usize,
    /// Higher is admitted first.
    pub(crate) priority: i32,
}

/// The bounds of a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    /// The most sequences that run at once.
    pub(crate) sequences_max: usize,
    /// The most tokens of one step; at least `sequences_max`, so that every decoding sequence has its place.
    pub(crate) step_tokens_max: usize,
    /// The most places of one step whose logits are computed; at least `sequences_max`.
    pub(crate) step_logits_max: usize,
    /// The number of tokens of a block.
    pub(crate) block_tokens: usize,
}

/// A run of tokens of one sequence that a step computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) key: SequenceKey,
    /// The places of its tokens in the sequence.
    pub(crate) places: Range<usize>,
    /// The places whose logits are wanted; the end of `places` or empty.
    pub(crate) logits: Range<usize>,
}

/// What the next step does.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Sequences that have just left the queue.
    pub(crate) admitted: Vec<SequenceKey>,
    /// What to compute, at most one chunk a sequence.
    pub(crate) chunks: Vec<Chunk>,
}

/// A sequence that waits.
#[derive(Debug)]
struct Waiting {
    key: SequenceKey,
    needs: Needs,
}

/// A sequence that holds blocks.
#[derive(Debug)]
struct Running {
    key: SequenceKey,
    /// Tokens known: prompt and answer.
    num_tokens: usize,
    /// How many of them are in the cache.
    num_computed: usize,
    logits_from: usize,
    blocks: Vec<u32>,
    parked: bool,
}

/// Which sequences wait, which run, and who has which blocks.
#[derive(Debug)]
pub(crate) struct Scheduler {
    budget: Budget,
    pool: BlockPool,
    /// By priority, then by arrival.
    waiting: VecDeque<Waiting>,
    /// By admission.
    running: Vec<Running>,
}

impl Scheduler {
    pub(crate) fn new(budget: Budget, num_blocks: usize) -> Self {
        assert!(budget.step_tokens_max >= budget.sequences_max && budget.step_logits_max >= budget.sequences_max);
        Self { budget, pool: BlockPool::new(num_blocks), waiting: VecDeque::new(), running: Vec::new() }
    }

    pub(crate) fn pool(&self) -> &BlockPool {
        &self.pool
    }

    #[cfg(test)]
    pub(crate) fn num_waiting(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn num_running(&self) -> usize {
        self.running.len()
    }

    /// Puts a sequence in line. The caller has checked that the pool could ever hold it.
    pub(crate) fn enqueue(&mut self, key: SequenceKey, needs: Needs) {
        debug_assert!(needs.prompt_tokens >= 1 && needs.tokens_max >= needs.prompt_tokens);
        debug_assert!(self.num_blocks(needs.tokens_max) <= self.pool.num_total());
        let place = self.waiting.partition_point(|other| other.needs.priority >= needs.priority);
        self.waiting.insert(place, Waiting { key, needs });
    }

    /// Fills `plan` with what the next step does; no chunks means that there is nothing to do.
    pub(crate) fn plan(&mut self, plan: &mut Plan) {
        plan.admitted.clear();
        plan.chunks.clear();
        self.admit(&mut plan.admitted);
        let mut tokens_left = self.budget.step_tokens_max;
        let mut logits_left = self.budget.step_logits_max;
        for decodes in [true, false] {
            for sequence in self.running.iter().filter(|sequence| !sequence.parked && sequence.decodes() == decodes) {
                let Some(chunk) = sequence.chunk(tokens_left, logits_left) else { continue };
                tokens_left -= chunk.places.len();
                logits_left -= chunk.logits.len();
                plan.chunks.push(chunk);
            }
        }
    }

    /// Notes that a step has computed the chunk.
    pub(crate) fn commit(&mut self, chunk: &Chunk) {
        if let Some(sequence) = self.find_mut(chunk.key) {
            debug_assert_eq!(sequence.num_computed, chunk.places.start);
            sequence.num_computed = chunk.places.end;
        }
    }

    /// Notes that a sequence has one more token.
    pub(crate) fn append(&mut self, key: SequenceKey) {
        if let Some(sequence) = self.find_mut(key) {
            sequence.num_tokens += 1;
        }
    }

    /// Holds a sequence back from the next steps, or lets it go on.
    pub(crate) fn set_parked(&mut self, key: SequenceKey, parked: bool) {
        if let Some(sequence) = self.find_mut(key) {
            sequence.parked = parked;
        }
    }

    /// Returns the blocks of a running sequence.
    pub(crate) fn blocks(&self, key: SequenceKey) -> &[u32] {
        self.running.iter().find(|sequence| sequence.key == key).map_or(&[], |sequence| &sequence.blocks)
    }

    /// Takes a sequence out of line or ends it and frees its blocks.
    pub(crate) fn remove(&mut self, key: SequenceKey) {
        self.waiting.retain(|waiting| waiting.key != key);
        if let Some(index) = self.running.iter().position(|sequence| sequence.key == key) {
            self.pool.release(self.running.remove(index).blocks);
        }
    }

    fn admit(&mut self, admitted: &mut Vec<SequenceKey>) {
        while let Some(first) = self.waiting.front()
            && self.running.len() < self.budget.sequences_max
            && let Some(blocks) = self.pool.allocate(first.needs.tokens_max.div_ceil(self.budget.block_tokens))
        {
            let Waiting { key, needs } = self.waiting.pop_front().expect("invariant: the queue has a front");
            admitted.push(key);
            self.running.push(Running {
                key,
                num_tokens: needs.prompt_tokens,
                num_computed: 0,
                logits_from: needs.logits_from,
                blocks,
                parked: false,
            });
        }
    }

    fn num_blocks(&self, num_tokens: usize) -> usize {
        num_tokens.div_ceil(self.budget.block_tokens)
    }

    fn find_mut(&mut self, key: SequenceKey) -> Option<&mut Running> {
        self.running.iter_mut().find(|sequence| sequence.key == key)
    }
}

impl Running {
    fn decodes(&self) -> bool {
        self.num_tokens - self.num_computed == 1
    }

    /// Returns the next tokens within the bounds, or `None` where there are none or no room for any.
    fn chunk(&self, tokens_left: usize, logits_left: usize) -> Option<Chunk> {
        let start = self.num_computed;
        let wanted = start.max(self.logits_from);
        let end = self.num_tokens.min(start + tokens_left).min(wanted + logits_left);
        (end > start).then(|| Chunk { key: self.key, places: start..end, logits: wanted.min(end)..end })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BUDGET: Budget = Budget { sequences_max: 4, step_tokens_max: 8, step_logits_max: 4, block_tokens: 4 };

    fn key(request: u64) -> SequenceKey {
        SequenceKey { request, choice: 0 }
    }

    fn needs(prompt_tokens: usize, new_tokens: usize) -> Needs {
        Needs { prompt_tokens, tokens_max: prompt_tokens + new_tokens, logits_from: prompt_tokens - 1, priority: 0 }
    }

    /// Runs one step: every chunk that reaches the end of its sequence gives a token. Returns the keys that ended.
    fn step(scheduler: &mut Scheduler, plan: &mut Plan, ends: &dyn Fn(SequenceKey) -> usize) -> Vec<SequenceKey> {
        scheduler.plan(plan);
        let mut ended = Vec::new();
        for chunk in &plan.chunks {
            scheduler.commit(chunk);
            let sequence = scheduler.find_mut(chunk.key).unwrap();
            if sequence.num_computed == sequence.num_tokens {
                if sequence.num_tokens + 1 > ends(chunk.key) {
                    ended.push(chunk.key);
                } else {
                    scheduler.append(chunk.key);
                }
            }
        }
        ended.iter().for_each(|&key| scheduler.remove(key));
        ended
    }

    #[test]
    fn decoding_comes_before_prompts_and_prompts_are_cut_into_chunks() {
        let mut scheduler = Scheduler::new(BUDGET, 100);
        let mut plan = Plan::default();
        scheduler.enqueue(key(0), needs(2, 9));
        scheduler.enqueue(key(1), needs(11, 9));
        step(&mut scheduler, &mut plan, &|_| 99);
        assert_eq!(plan.admitted, [key(0), key(1)]);
        assert_eq!(plan.chunks[0], Chunk { key: key(0), places: 0..2, logits: 1..2 });
        assert_eq!(plan.chunks[1], Chunk { key: key(1), places: 0..6, logits: 6..6 });
        scheduler.plan(&mut plan);
        assert_eq!(plan.chunks[0], Chunk { key: key(0), places: 2..3, logits: 2..3 });
        assert_eq!(plan.chunks[1], Chunk { key: key(1), places: 6..11, logits: 10..11 });
    }

    #[test]
    fn places_with_logits_are_bounded_too() {
        let mut scheduler = Scheduler::new(BUDGET, 100);
        let mut plan = Plan::default();
        scheduler.enqueue(key(0), Needs { logits_from: 0, ..needs(9, 0) });
        scheduler.plan(&mut plan);
        assert_eq!(plan.chunks, [Chunk { key: key(0), places: 0..4, logits: 0..4 }]);
    }

    #[test]
    fn priority_goes_first_and_equals_in_order() {
        let mut scheduler = Scheduler::new(Budget { sequences_max: 1, ..BUDGET }, 100);
        let mut plan = Plan::default();
        scheduler.enqueue(key(0), needs(1, 1));
        scheduler.enqueue(key(1), needs(1, 1));
        scheduler.enqueue(key(2), Needs { priority: 5, ..needs(1, 1) });
        let mut order = Vec::new();
        while scheduler.num_waiting() + scheduler.num_running() > 0 {
            order.extend(step(&mut scheduler, &mut plan, &|_| 2));
        }
        assert_eq!(order, [key(2), key(0), key(1)]);
    }

    #[test]
    fn a_parked_sequence_is_left_out_and_keeps_its_blocks() {
        let mut scheduler = Scheduler::new(BUDGET, 100);
        let mut plan = Plan::default();
        scheduler.enqueue(key(0), needs(2, 2));
        step(&mut scheduler, &mut plan, &|_| 99);
        scheduler.set_parked(key(0), true);
        scheduler.plan(&mut plan);
        assert!(plan.chunks.is_empty());
        assert_eq!(scheduler.pool().num_in_use(), 1);
        scheduler.set_parked(key(0), false);
        scheduler.plan(&mut plan);
        assert_eq!(plan.chunks.len(), 1);
    }

    proptest! {
        /// Blocks are conserved, the budget is kept, every sequence ends, and equals leave the queue in order.
        #[test]
        fn every_load_runs_to_its_end(
            load in prop::collection::vec((1usize..40, 1usize..20, -1i32..2, any::<bool>(), 0usize..30), 1..40),
        ) {
            let mut scheduler = Scheduler::new(BUDGET, 16);
            let mut plan = Plan::default();
            let mut pending: VecDeque<_> = load.iter().copied().enumerate().collect();
            let mut removed = Vec::new();
            let mut admitted = Vec::new();
            let ends = |key: SequenceKey| load[key.request as usize].0 + load[key.request as usize].1;
            for round in 0.. {
                prop_assert!(round < 5_000, "a sequence does not end");
                if let Some((index, (prompt, new, priority, all_logits, _))) = pending.pop_front() {
                    let logits_from = if all_logits { 0 } else { prompt - 1 };
                    scheduler.enqueue(key(index as u64), Needs { priority, logits_from, ..needs(prompt, new) });
                } else if scheduler.num_waiting() + scheduler.num_running() == 0 {
                    break;
                }
                step(&mut scheduler, &mut plan, &ends);
                admitted.extend(plan.admitted.iter().copied());
                prop_assert!(plan.chunks.iter().map(|chunk| chunk.places.len()).sum::<usize>() <= 8);
                prop_assert!(plan.chunks.iter().map(|chunk| chunk.logits.len()).sum::<usize>() <= 4);
                let held: usize = scheduler.running.iter().map(|sequence| sequence.blocks.len()).sum();
                prop_assert_eq!(held, scheduler.pool().num_in_use());
                // Some are cancelled, running or waiting.
                for (index, &(.., cancel_at)) in load.iter().enumerate() {
                    if cancel_at == round && index % 3 == 0 {
                        scheduler.remove(key(index as u64));
                        removed.push(index);
                    }
                }
            }
            prop_assert_eq!(scheduler.pool().num_in_use(), 0);
            for priority in -1..2 {
                let same: Vec<_> = admitted.iter().filter(|key| load[key.request as usize].2 == priority).collect();
                prop_assert!(same.is_sorted(), "equals overtook each other: {same:?}");
            }
        }
    }
}
