//! A sequence as the scheduler sees it: its tokens, how many are computed, and the blocks that hold them.

use std::cmp::Reverse;

use bespoke_domain::TokenId;

use super::{Needs, SequenceKey};
use crate::block_pool::{BLOCK_TOKENS, BlockPool, Prefix};

/// Blocks whose computation takes longer than to wait for the next steps.
const WORTH_WAITING: usize = 2;

/// Higher goes first: priority and arrival in turns, then the order of arrival.
pub(super) type Rank = (i64, Reverse<u64>);

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: SequenceKey,
    pub(super) rank: Rank,
    /// Known tokens: prompt and answer.
    pub(super) tokens: Vec<TokenId>,
    /// Tokens to try after the known ones.
    pub(super) drafts: Vec<TokenId>,
    pub(super) tokens_max: usize,
    /// How many of the known tokens are in the cache.
    pub(super) num_computed: usize,
    /// The first place whose logits are still wanted.
    pub(super) logits_from: usize,
    pub(super) blocks: Vec<u32>,
    pub(super) root: Option<Prefix>,
    /// The registered blocks at the beginning, and the name of the last.
    num_registered: usize,
    last_registered: Option<Prefix>,
    /// The tokens of its prompt.
    num_prompt: usize,
    /// The tokens at the beginning that the prefix cache may have or get: all, or where answers are computed in another way those
    /// of the prompt, where a chunk then ends too.
    num_shareable: usize,
    /// The tokens that it started with, or started again with.
    num_first: usize,
    pub(super) parked: bool,
}

impl Entry {
    pub(super) fn new(key: SequenceKey, rank: Rank, needs: Needs, shares_answers: bool) -> Self {
        debug_assert!(!needs.tokens.is_empty() && needs.tokens_max >= needs.tokens.len());
        let num_first = needs.tokens.len();
        let mut tokens = needs.tokens;
        // Room for all it can become, so that no step has to allocate. The last new token is known but never computed.
        tokens.reserve(needs.tokens_max + 1 - num_first);
        Self {
            key,
            rank,
            tokens,
            drafts: Vec::new(),
            tokens_max: needs.tokens_max,
            num_computed: 0,
            logits_from: needs.logits_from,
            blocks: Vec::with_capacity(needs.tokens_max.div_ceil(BLOCK_TOKENS)),
            root: needs.root,
            num_registered: 0,
            last_registered: needs.root,
            num_prompt: needs.num_prompt,
            num_shareable: if shares_answers { usize::MAX } else { needs.num_prompt },
            num_first,
            parked: false,
        }
    }

    /// Whether one known token is left to compute and the sequence may go on.
    pub(super) fn decodes(&self) -> bool {
        !self.parked && self.tokens.len() - self.num_computed == 1
    }

    /// Whether its first tokens are not all computed yet.
    pub(super) fn in_first(&self) -> bool {
        self.num_computed < self.num_first
    }

    /// Whether the next token to compute is one of the prompt.
    pub(super) fn is_in_prompt(&self) -> bool {
        self.num_computed < self.num_prompt
    }

    /// How many of the known tokens one chunk could have: where answers are computed in another way, of the prompt or after it, not both.
    pub(super) fn num_unread(&self) -> usize {
        let known = if self.is_in_prompt() { self.tokens.len().min(self.num_shareable) } else { self.tokens.len() };
        known.saturating_sub(self.num_computed)
    }

    /// How many of them the next chunk can have within the bounds.
    pub(super) fn prompt_chunk(&self, tokens_left: usize, logits_left: usize) -> usize {
        let without_logits = self.logits_from.saturating_sub(self.num_computed);
        self.num_unread().min(tokens_left).min(without_logits + logits_left)
    }

    /// Finds the blocks of the beginning that the prefix cache has and this sequence can use: at least one token is left to
    /// compute, and all places whose logits are wanted.
    pub(super) fn cached_blocks(&self, pool: &BlockPool) -> Vec<(u32, Prefix)> {
        let mut found = Vec::new();
        let Some(mut before) = self.root else { return found };
        let usable = self.logits_from.min(self.tokens.len() - 1).min(self.num_shareable);
        for tokens in self.tokens[..usable].chunks_exact(BLOCK_TOKENS) {
            let Some((block, name)) = pool.find(before, tokens) else { break };
            found.push((block, name));
            before = name;
        }
        found
    }

    /// Whether this sequence is about to compute, and make known, [`WORTH_WAITING`] blocks that another one begins with, after the
    /// `num_known` that the prefix cache has.
    pub(super) fn computes_beginning_of(&self, other: &Entry, num_known: usize) -> bool {
        let (start, end) = (num_known * BLOCK_TOKENS, (num_known + WORTH_WAITING) * BLOCK_TOKENS);
        let usable = self.num_prompt.min(other.num_prompt.min(other.logits_from));
        self.root.is_some()
            && self.root == other.root
            && !self.parked
            && end <= usable
            && self.num_computed < end
            && self.tokens[start..end] == other.tokens[start..end]
            && self.tokens[..start] == other.tokens[..start]
    }

    /// Takes the found blocks as its beginning. Returns how many tokens they hold.
    pub(super) fn share(&mut self, found: &[(u32, Prefix)], pool: &mut BlockPool) -> usize {
        debug_assert!(self.blocks.is_empty());
        for &(block, name) in found {
            pool.hold(block);
            self.blocks.push(block);
            self.last_registered = Some(name);
        }
        self.num_registered = found.len();
        self.num_computed = found.len() * BLOCK_TOKENS;
        self.num_computed
    }

    /// Takes blocks for the next `wanted` tokens. Returns for how many there are blocks now.
    pub(super) fn take_blocks(&mut self, wanted: usize, pool: &mut BlockPool) -> usize {
        while self.blocks.len() * BLOCK_TOKENS < self.num_computed + wanted
            && let Some(block) = pool.allocate()
        {
            self.blocks.push(block);
        }
        wanted.min(self.blocks.len() * BLOCK_TOKENS - self.num_computed)
    }

    /// Makes the blocks known that have become full.
    pub(super) fn register_full(&mut self, pool: &mut BlockPool) {
        let Some(mut before) = self.last_registered else { return };
        let num_known = self.num_computed.min(self.tokens.len()).min(self.num_shareable);
        for index in self.num_registered..num_known / BLOCK_TOKENS {
            let tokens = &self.tokens[index * BLOCK_TOKENS..(index + 1) * BLOCK_TOKENS];
            before = pool.register(self.blocks[index], before, tokens);
            self.num_registered = index + 1;
        }
        self.last_registered = Some(before);
    }

    /// Forgets what was computed; places whose logits have been taken need none again.
    pub(super) fn start_again(&mut self) {
        self.logits_from = self.logits_from.max(self.num_computed);
        self.num_computed = 0;
        self.num_registered = 0;
        self.last_registered = self.root;
        self.drafts.clear();
        self.num_first = self.tokens.len();
    }
}
