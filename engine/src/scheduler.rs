//! The scheduler: decides which tokens of which sequences the next step computes. Pure: no clock, channel or model.
//!
//! A turn admits sequences from the queue, then plans one step: the next token of each sequence that decodes, with the tokens
//! drafted for it, then prompt chunks in order of rank, up to the budget, or few beside many sequences that decode. Blocks are taken as
//! tokens need them. When none is free, the sequence of the lowest rank gives its blocks back and waits to be computed again.

mod entry;
#[cfg(test)]
mod tests;

use std::{collections::VecDeque, ops::Range};

use bespoke_domain::TokenId;

use crate::block_pool::{BLOCK_TOKENS, BlockPool, Prefix};
use entry::Entry;

/// Names a sequence: a request and its choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SequenceKey {
    pub(crate) request: u64,
    pub(crate) choice: u32,
}

/// What a sequence needs.
#[derive(Clone, Debug)]
pub(crate) struct Needs {
    /// The tokens that it starts with, at least one.
    pub(crate) tokens: Vec<TokenId>,
    /// How many of them are the prompt; the others are computed as an answer is.
    pub(crate) num_prompt: usize,
    /// The most tokens that it can ever have.
    pub(crate) tokens_max: usize,
    /// The first place whose logits are wanted; usually that of the last prompt token.
    pub(crate) logits_from: usize,
    /// Higher is admitted first.
    pub(crate) priority: i32,
    /// Where its beginning is looked for in the prefix cache; `None` neither reads nor fills it.
    pub(crate) root: Option<Prefix>,
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
    /// Whether the tokens of an answer are computed as those of a prompt are, so that a later prompt may find them in the prefix cache.
    pub(crate) shares_answers: bool,
}

/// A run of tokens of one sequence that a step computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) key: SequenceKey,
    /// The places of its tokens in the sequence; those past its end are drafted.
    pub(crate) places: Range<usize>,
    /// The places whose logits are wanted; the end of `places` or empty.
    pub(crate) logits: Range<usize>,
    /// Whether its first token is one of a prompt, not of an answer. Where answers are not shared, no chunk has both.
    pub(crate) of_prompt: bool,
}

/// What the next step does.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Sequences that have just left the queue, with the tokens found in the prefix cache.
    pub(crate) admitted: Vec<(SequenceKey, usize)>,
    /// What to compute, at most one chunk a sequence; chunks of answers come first.
    pub(crate) chunks: Vec<Chunk>,
}

/// The most tokens of prompts in a step where most sequences decode: these wait for the step.
const PROMPT_TOKENS_MAX: usize = 64;
/// How many of those tokens each sequence that decodes takes away: about as many as take as long as it does, so that a step with many of
/// them takes no longer than one with few.
const DECODING_TOKENS: usize = 3;
/// The tokens that are left to prompts all the same.
pub(crate) const PROMPT_TOKENS_MIN: usize = 16;
/// The tokens that prompts take where nothing decodes, however slow that is: with fewer the weights are decoded too often.
const PROMPT_TOKENS_ALONE: usize = 256;
/// Where no more sequences decode for each that reads its prompt, or waits for another to do so, it is a *burst*: prompts take whole
/// steps, since one long wait of the few costs less than many short waits of all.
const DECODING_PER_READING: usize = 2;
/// The most whole steps of a burst. It begins where these are enough for what is left of the prompts.
const BURST_STEPS: usize = 2;
/// Turns from the beginning of a burst to that of the next one, so that others go on meanwhile.
const BURST_TURNS: i64 = 32;
/// The turns of waiting that make up for one level of priority, so that nothing waits for ever: seconds on a busy engine.
const TURNS_PER_PRIORITY: i64 = 200;

/// Which sequences wait, which run, and who has which blocks.
#[derive(Debug)]
pub(crate) struct Scheduler {
    budget: Budget,
    pool: BlockPool,
    /// By rank.
    waiting: VecDeque<Entry>,
    /// By rank.
    running: Vec<Entry>,
    turn: i64,
    /// The turn of the first whole step of the last burst.
    burst: i64,
    num_arrived: u64,
    num_preempted: u64,
}

impl Scheduler {
    pub(crate) fn new(budget: Budget, num_blocks: usize) -> Self {
        assert!(budget.step_tokens_max >= budget.sequences_max && budget.step_logits_max >= budget.sequences_max);
        Self {
            budget,
            pool: BlockPool::new(num_blocks),
            waiting: VecDeque::new(),
            running: Vec::with_capacity(budget.sequences_max),
            turn: 0,
            burst: -BURST_TURNS,
            num_arrived: 0,
            num_preempted: 0,
        }
    }

    pub(crate) fn pool(&self) -> &BlockPool {
        &self.pool
    }

    pub(crate) fn num_running(&self) -> usize {
        self.running.len()
    }

    /// How often a sequence has given its blocks back.
    pub(crate) fn num_preempted(&self) -> u64 {
        self.num_preempted
    }

    /// Puts a sequence in line. The caller has checked that the pool could hold it alone.
    pub(crate) fn enqueue(&mut self, key: SequenceKey, needs: Needs) {
        debug_assert!(needs.tokens_max.div_ceil(BLOCK_TOKENS) <= self.pool.num_total());
        let rank = (i64::from(needs.priority) * TURNS_PER_PRIORITY - self.turn, std::cmp::Reverse(self.num_arrived));
        self.num_arrived += 1;
        self.wait(Entry::new(key, rank, needs, self.budget.shares_answers));
    }

    /// Fills `plan` with what the next step does; no chunks means that there is nothing to do. Beside sequences that decode, prompts
    /// take at most `prompt_tokens`, at least 1.
    pub(crate) fn plan(&mut self, plan: &mut Plan, prompt_tokens: usize) {
        debug_assert!(prompt_tokens > 0);
        self.turn += 1;
        plan.admitted.clear();
        plan.chunks.clear();
        let num_following = self.admit(&mut plan.admitted);
        self.plan_decodes(&mut plan.chunks);
        let num_decoding = plan.chunks.iter().filter(|chunk| !chunk.of_prompt).count();
        let prompt_tokens = self.prompt_tokens(num_decoding, num_following, prompt_tokens);
        self.plan_prompts(&mut plan.chunks, prompt_tokens);
        // A sequence that gave way after its chunk was planned is not computed.
        plan.chunks.retain(|chunk| self.running.iter().any(|entry| entry.key == chunk.key));
        plan.chunks.sort_unstable_by_key(|chunk| chunk.of_prompt);
    }

    /// Notes that a chunk has been computed and that its sequence is right up to `end`, exclusive; drafts beyond are not.
    pub(crate) fn commit(&mut self, chunk: &Chunk, end: usize) {
        let Some(index) = self.running_index(chunk.key) else { return };
        debug_assert!(self.running[index].num_computed == chunk.places.start && end <= chunk.places.end);
        let entry = &mut self.running[index];
        debug_assert!(end <= entry.tokens.len(), "{chunk:?} {end} {entry:?}");
        entry.num_computed = end;
        entry.drafts.clear();
        entry.register_full(&mut self.pool);
    }

    /// Appends a token to a sequence.
    pub(crate) fn append(&mut self, key: SequenceKey, token: TokenId) {
        if let Some(index) = self.running_index(key) {
            self.running[index].tokens.push(token);
        }
    }

    /// Sets the tokens that the next step tries after the last one of a sequence that decodes; none while its prompt is not computed.
    pub(crate) fn set_drafts(&mut self, key: SequenceKey, drafts: &[TokenId]) {
        if let Some(index) = self.running_index(key) {
            let entry = &mut self.running[index];
            let room = match entry.is_in_prompt() {
                true => 0,
                false => entry.tokens_max.saturating_sub(entry.tokens.len() + 1),
            };
            entry.drafts.clear();
            entry.drafts.extend_from_slice(&drafts[..drafts.len().min(room)]);
        }
    }

    /// Holds a sequence back from the next steps, or lets it go on.
    pub(crate) fn set_parked(&mut self, key: SequenceKey, parked: bool) {
        let mut entries = self.running.iter_mut().chain(&mut self.waiting);
        if let Some(entry) = entries.find(|entry| entry.key == key) {
            entry.parked = parked;
        }
    }

    /// Returns the blocks of a running sequence.
    pub(crate) fn blocks(&self, key: SequenceKey) -> &[u32] {
        self.running_index(key).map_or(&[], |index| &self.running[index].blocks)
    }

    /// Returns the tokens of a running sequence.
    pub(crate) fn tokens(&self, key: SequenceKey) -> &[TokenId] {
        self.running_index(key).map_or(&[], |index| &self.running[index].tokens)
    }

    /// Returns the tokens that a chunk computes, the drafted ones last.
    pub(crate) fn chunk_tokens(&self, chunk: &Chunk) -> impl Iterator<Item = TokenId> {
        let entry = self.running_index(chunk.key).map(|index| &self.running[index]);
        entry.into_iter().flat_map(|entry| {
            let all = entry.tokens.iter().chain(&entry.drafts).copied();
            all.skip(chunk.places.start).take(chunk.places.len())
        })
    }

    /// Takes a sequence out of line or ends it and gives its blocks back.
    pub(crate) fn remove(&mut self, key: SequenceKey) {
        self.waiting.retain(|entry| entry.key != key);
        if let Some(index) = self.running_index(key) {
            let mut entry = self.running.remove(index);
            self.pool.release(&mut entry.blocks);
        }
    }

    fn running_index(&self, key: SequenceKey) -> Option<usize> {
        self.running.iter().position(|entry| entry.key == key)
    }

    fn wait(&mut self, entry: Entry) {
        let place = self.waiting.partition_point(|other| other.rank > entry.rank);
        self.waiting.insert(place, entry);
    }

    /// Moves sequences from the queue in order of rank, as long as places and blocks are there for their whole prompts.
    ///
    /// A sequence whose beginning is being computed for another one waits for that, to share its blocks: so do the further choices
    /// of a request, and requests that arrive together with a long beginning in common. Returns how many wait so.
    fn admit(&mut self, admitted: &mut Vec<(SequenceKey, usize)>) -> usize {
        let (mut place, mut num_following) = (0, 0);
        while let Some(entry) = self.waiting.get(place) {
            if entry.parked {
                place += 1;
                continue;
            }
            if self.sibling_computes(entry) {
                (place, num_following) = (place + 1, num_following + 1);
                continue;
            }
            let shared = entry.cached_blocks(&self.pool);
            if self.running.iter().any(|other| other.computes_beginning_of(entry, shared.len())) {
                (place, num_following) = (place + 1, num_following + 1);
                continue;
            }
            let idle = shared.iter().filter(|(block, _)| self.pool.is_idle(*block)).count();
            let wanted = (entry.tokens.len() + 1).min(entry.tokens_max).div_ceil(BLOCK_TOKENS) - shared.len();
            let has_place = self.running.len() < self.budget.sequences_max;
            let fits = self.running.is_empty() || self.pool.num_free() >= wanted + idle;
            if !has_place || !fits {
                // Slow readers make room for others; without any, the first in line waits for the end of a sequence.
                if !self.preempt_parked() {
                    break;
                }
                continue;
            }
            let mut entry = self.waiting.remove(place).expect("invariant: the entry was just looked at");
            let num_cached = entry.share(&shared, &mut self.pool);
            admitted.push((entry.key, num_cached));
            let place = self.running.partition_point(|other| other.rank > entry.rank);
            self.running.insert(place, entry);
        }
        num_following
    }

    fn sibling_computes(&self, entry: &Entry) -> bool {
        let computes = |other: &Entry| other.key.request == entry.key.request && other.in_first();
        entry.root.is_some() && self.running.iter().any(computes)
    }

    fn plan_decodes(&mut self, chunks: &mut Vec<Chunk>) {
        let mut left = self.running.iter().filter(|entry| entry.decodes()).count();
        let (mut tokens, mut logits) = (self.budget.step_tokens_max, self.budget.step_logits_max);
        let mut index = 0;
        while index < self.running.len() {
            if !self.running[index].decodes() {
                index += 1;
                continue;
            }
            left -= 1;
            // The sequences after this one have their places reserved.
            let room = (tokens - left).min(logits - left);
            let wanted = (1 + self.running[index].drafts.len()).min(room);
            let Some(num) = self.take_blocks(&mut index, wanted) else { continue };
            let entry = &self.running[index];
            let places = entry.num_computed..entry.num_computed + num;
            chunks.push(Chunk { key: entry.key, logits: places.clone(), of_prompt: entry.is_in_prompt(), places });
            tokens -= num;
            logits -= num;
            index += 1;
        }
    }

    /// The tokens that prompts take in this step, of `prompt_tokens` that have time in it.
    fn prompt_tokens(&mut self, num_decoding: usize, num_following: usize, prompt_tokens: usize) -> usize {
        if num_decoding == 0 {
            return prompt_tokens.max(PROMPT_TOKENS_ALONE);
        }
        let (mut num_reading, mut unread) = (num_following, 0);
        for entry in self.running.iter().filter(|entry| !entry.parked && !entry.decodes()) {
            (num_reading, unread) = (num_reading + 1, unread + entry.num_unread());
        }
        let beside = PROMPT_TOKENS_MAX.saturating_sub(DECODING_TOKENS * num_decoding).max(PROMPT_TOKENS_MIN);
        if unread <= beside || num_decoding > DECODING_PER_READING * num_reading {
            return beside.min(prompt_tokens);
        }
        let may_begin = self.turn - self.burst >= BURST_TURNS;
        if may_begin && unread <= BURST_STEPS * prompt_tokens.min(self.budget.step_tokens_max) {
            self.burst = self.turn;
        }
        if self.turn - self.burst < BURST_STEPS as i64 { prompt_tokens } else { beside.min(prompt_tokens) }
    }

    fn plan_prompts(&mut self, chunks: &mut Vec<Chunk>, prompt_tokens: usize) {
        let used = |chunks: &[Chunk], count: fn(&Chunk) -> usize| chunks.iter().map(count).sum::<usize>();
        let left = self.budget.step_tokens_max - used(chunks, |chunk| chunk.places.len());
        let mut tokens = left.min(prompt_tokens);
        let mut logits = self.budget.step_logits_max - used(chunks, |chunk| chunk.logits.len());
        let mut index = 0;
        while index < self.running.len() {
            let entry = &self.running[index];
            let wanted = entry.prompt_chunk(tokens, logits);
            if entry.parked || entry.decodes() || wanted == 0 {
                index += 1;
                continue;
            }
            let planned = |key| chunks.iter().any(|chunk| chunk.key == key);
            if planned(entry.key) {
                index += 1;
                continue;
            }
            let Some(num) = self.take_blocks(&mut index, wanted) else { continue };
            let entry = &self.running[index];
            let places = entry.num_computed..entry.num_computed + num;
            let wanted = entry.logits_from.clamp(places.start, places.end)..places.end;
            let chunk = Chunk { key: entry.key, logits: wanted, of_prompt: entry.is_in_prompt(), places };
            tokens -= chunk.places.len();
            logits -= chunk.logits.len();
            chunks.push(chunk);
            index += 1;
        }
    }

    /// Takes the blocks that the next `wanted` tokens of the sequence at `index` need and returns for how many there are
    /// blocks, at least one; or `None` where the sequence had to give way itself. `index` follows the sequence.
    ///
    /// Only sequences of a lower rank give way, so that the first in rank always goes on.
    fn take_blocks(&mut self, index: &mut usize, wanted: usize) -> Option<usize> {
        loop {
            let entry = &mut self.running[*index];
            let num = entry.take_blocks(wanted, &mut self.pool);
            if num > 0 {
                return Some(num);
            }
            let key = entry.key;
            if self.preempt_parked() {
                *index = self.running_index(key).unwrap_or(*index);
                continue;
            }
            let last = self.running.len() - 1;
            let gives_way = last == *index;
            self.preempt(last);
            if gives_way {
                return None;
            }
        }
    }

    /// Takes place and blocks of a sequence whose reader is slow. Returns whether there was one.
    fn preempt_parked(&mut self) -> bool {
        let parked = self.running.iter().rposition(|entry| entry.parked);
        parked.inspect(|&index| self.preempt(index)).is_some()
    }

    fn preempt(&mut self, index: usize) {
        let mut entry = self.running.remove(index);
        self.pool.release(&mut entry.blocks);
        entry.start_again();
        self.num_preempted += 1;
        self.wait(entry);
    }
}
