//! The allocator of KV blocks and the prefix cache. Pure: it hands out numbers, the cache itself is the model's.
//!
//! A block that is full and computed can be registered under its tokens and what stands before it. Later sequences with the
//! same beginning share it. A block that nobody holds stays registered until its place is needed: least recently used first.
//! Keys hold the tokens themselves, so two different prefixes can never be taken for one another.

use std::collections::HashMap;

use bespoke_domain::TokenId;
use sha2::{Digest, Sha256};

/// The number of tokens of a block: small, so that little is wasted at the end of a sequence, and a multiple of what a vector
/// register holds.
pub(crate) const BLOCK_TOKENS: usize = 16;

/// Names all that stands before a block: another registered block, or the root of a salt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Prefix(u128);

impl Prefix {
    /// The empty beginning of the sequences that share a salt.
    pub(crate) fn root(salt: &str) -> Self {
        let digest = Sha256::digest(salt);
        let bytes = digest.first_chunk::<16>().expect("invariant: a SHA-256 digest has 32 bytes");
        // Blocks count up from 0 and never reach the upper half.
        Self(u128::from_le_bytes(*bytes) | 1 << 127)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    before: Prefix,
    tokens: [TokenId; BLOCK_TOKENS],
}

#[derive(Clone, Debug)]
struct Block {
    num_holders: u32,
    /// The key and the own name of a registered block.
    registered: Option<(Key, Prefix)>,
    /// Neighbours in the list of registered blocks that nobody holds.
    older: u32,
    newer: u32,
}

/// Hands out block numbers `0..total`.
#[derive(Debug)]
pub(crate) struct BlockPool {
    blocks: Vec<Block>,
    /// Blocks that nobody holds and that hold nothing.
    empty: Vec<u32>,
    by_key: HashMap<Key, u32>,
    /// The ends of the list of registered blocks that nobody holds.
    oldest: u32,
    newest: u32,
    num_idle: usize,
    next_name: u128,
}

/// No block.
const NONE: u32 = u32::MAX;

impl BlockPool {
    pub(crate) fn new(total: usize) -> Self {
        let total_u32 = u32::try_from(total).expect("invariant: the builder checks the number of blocks");
        let block = Block { num_holders: 0, registered: None, older: NONE, newer: NONE };
        Self {
            blocks: vec![block; total],
            empty: (0..total_u32).rev().collect(),
            // One more than there can be, so that the map never grows while the engine runs.
            by_key: HashMap::with_capacity(total + 1),
            oldest: NONE,
            newest: NONE,
            num_idle: 0,
            next_name: 0,
        }
    }

    pub(crate) fn num_total(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that can be had at once, registered ones that nobody holds among them.
    pub(crate) fn num_free(&self) -> usize {
        self.empty.len() + self.num_idle
    }

    pub(crate) fn num_in_use(&self) -> usize {
        self.num_total() - self.num_free()
    }

    /// Returns a block for new content, or `None` where all are held.
    pub(crate) fn allocate(&mut self) -> Option<u32> {
        let block = self.empty.pop().or_else(|| self.evict())?;
        self.blocks[block as usize].num_holders = 1;
        Some(block)
    }

    /// Finds the block of these tokens after a prefix and its own name, without holding it.
    pub(crate) fn find(&self, before: Prefix, tokens: &[TokenId]) -> Option<(u32, Prefix)> {
        let tokens = tokens.try_into().ok()?;
        let &block = self.by_key.get(&Key { before, tokens })?;
        let (_, name) = self.blocks[block as usize].registered?;
        Some((block, name))
    }

    /// Whether nobody holds the block, so that holding it makes one less free.
    pub(crate) fn is_idle(&self, block: u32) -> bool {
        self.blocks[block as usize].num_holders == 0
    }

    /// Holds a block that was found.
    pub(crate) fn hold(&mut self, block: u32) {
        if self.is_idle(block) {
            self.unlink(block);
        }
        self.blocks[block as usize].num_holders += 1;
    }

    /// Makes a computed block known under its tokens and what stands before it; returns its name. Where another block has
    /// the same content already, that one stays known and its name is returned.
    pub(crate) fn register(&mut self, block: u32, before: Prefix, tokens: &[TokenId]) -> Prefix {
        if let Some((_, name)) = self.find(before, tokens) {
            return name;
        }
        let tokens = tokens.try_into().expect("invariant: only full blocks are registered");
        let name = Prefix(self.next_name);
        self.next_name += 1;
        let key = Key { before, tokens };
        self.blocks[block as usize].registered = Some((key, name));
        self.by_key.insert(key, block);
        name
    }

    /// Gives back what one holder had. The last block is the first to be evicted: others need those before it.
    pub(crate) fn release(&mut self, blocks: &mut Vec<u32>) {
        for block in blocks.drain(..).rev() {
            let state = &mut self.blocks[block as usize];
            state.num_holders -= 1;
            if state.num_holders > 0 {
                continue;
            }
            if state.registered.is_some() {
                self.link_newest(block);
            } else {
                self.empty.push(block);
            }
        }
    }

    fn evict(&mut self) -> Option<u32> {
        let block = self.oldest;
        if block == NONE {
            return None;
        }
        self.unlink(block);
        if let Some((key, _)) = self.blocks[block as usize].registered.take() {
            self.by_key.remove(&key);
        }
        Some(block)
    }

    fn link_newest(&mut self, block: u32) {
        let newest = std::mem::replace(&mut self.newest, block);
        let state = &mut self.blocks[block as usize];
        state.older = newest;
        state.newer = NONE;
        match newest {
            NONE => self.oldest = block,
            newest => self.blocks[newest as usize].newer = block,
        }
        self.num_idle += 1;
    }

    fn unlink(&mut self, block: u32) {
        let Block { older, newer, .. } = self.blocks[block as usize];
        match older {
            NONE => self.oldest = newer,
            older => self.blocks[older as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.blocks[newer as usize].older = older,
        }
        self.num_idle -= 1;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn tokens(first: TokenId) -> Vec<TokenId> {
        (first..first + BLOCK_TOKENS as u32).collect()
    }

    #[test]
    fn a_registered_block_is_found_and_shared() {
        let mut pool = BlockPool::new(2);
        let root = Prefix::root("");
        let block = pool.allocate().unwrap();
        let name = pool.register(block, root, &tokens(0));
        assert_eq!(pool.find(root, &tokens(0)), Some((block, name)));
        assert_eq!(pool.find(root, &tokens(1)), None);
        assert_eq!(pool.find(name, &tokens(0)), None);
        assert_eq!(pool.find(Prefix::root("other"), &tokens(0)), None);
        pool.hold(block);
        let mut held = vec![block];
        pool.release(&mut held);
        assert_eq!(pool.num_in_use(), 1, "the other holder has it still");
        pool.release(&mut vec![block]);
        assert_eq!((pool.num_in_use(), pool.num_free()), (0, 2));
        assert!(pool.find(root, &tokens(0)).is_some(), "it stays known");
    }

    #[test]
    fn the_least_recently_used_block_is_evicted_and_the_end_of_a_chain_first() {
        let mut pool = BlockPool::new(3);
        let root = Prefix::root("");
        let mut chain = Vec::new();
        let mut before = root;
        for first in [0, 100] {
            let block = pool.allocate().unwrap();
            before = pool.register(block, before, &tokens(first));
            chain.push(block);
        }
        let other = pool.allocate().unwrap();
        let _ = pool.register(other, root, &tokens(200));
        pool.release(&mut chain.clone());
        pool.release(&mut vec![other]);
        assert_eq!(pool.allocate(), Some(chain[1]));
        assert!(pool.find(root, &tokens(0)).is_some() && pool.find(root, &tokens(200)).is_some());
        assert_eq!(pool.allocate(), Some(chain[0]));
        assert_eq!(pool.allocate(), Some(other));
        assert_eq!(pool.allocate(), None);
    }

    #[test]
    fn equal_content_is_known_once() {
        let mut pool = BlockPool::new(2);
        let root = Prefix::root("");
        let (a, b) = (pool.allocate().unwrap(), pool.allocate().unwrap());
        let name = pool.register(a, root, &tokens(0));
        assert_eq!(pool.register(b, root, &tokens(0)), name);
        pool.release(&mut vec![b]);
        assert_eq!(pool.find(root, &tokens(0)), Some((a, name)));
    }

    proptest! {
        #[test]
        fn blocks_are_conserved(operations in prop::collection::vec((0..4u8, any::<prop::sample::Index>(), 0..5u32), 1..300)) {
            let mut pool = BlockPool::new(8);
            let mut holders: Vec<Vec<u32>> = Vec::new();
            let root = Prefix::root("");
            for (operation, index, first) in operations {
                match operation {
                    0 => holders.extend(pool.allocate().map(|block| vec![block])),
                    1 if !holders.is_empty() => pool.release(&mut holders.swap_remove(index.index(holders.len()))),
                    2 if !holders.is_empty() => {
                        let block = holders[index.index(holders.len())][0];
                        if pool.blocks[block as usize].registered.is_none() {
                            let _ = pool.register(block, root, &tokens(first));
                        }
                    }
                    _ => if let Some((block, _)) = pool.find(root, &tokens(first)) {
                        pool.hold(block);
                        holders.push(vec![block]);
                    },
                }
                let held: HashSet<u32> = holders.iter().flatten().copied().collect();
                prop_assert_eq!(held.len(), pool.num_in_use());
                let registered = pool.blocks.iter().filter(|block| block.registered.is_some()).count();
                prop_assert_eq!(registered, pool.by_key.len());
            }
            holders.iter_mut().for_each(|blocks| pool.release(blocks));
            prop_assert_eq!(pool.num_free(), 8);
        }
    }
}
