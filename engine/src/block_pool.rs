//! The allocator of KV blocks. Pure: it hands out numbers, the cache itself is the model's.

/// Hands out block numbers `0..total`.
#[derive(Debug)]
pub(crate) struct BlockPool {
    free: Vec<u32>,
    total: usize,
}

impl BlockPool {
    pub(crate) fn new(total: usize) -> Self {
        let total_u32 = u32::try_from(total).expect("invariant: the builder checks the number of blocks");
        Self { free: (0..total_u32).rev().collect(), total }
    }

    pub(crate) fn num_total(&self) -> usize {
        self.total
    }

    pub(crate) fn num_in_use(&self) -> usize {
        self.total - self.free.len()
    }

    /// Returns `count` blocks, or `None` and takes nothing where fewer are free.
    pub(crate) fn allocate(&mut self, count: usize) -> Option<Vec<u32>> {
        let rest = self.free.len().checked_sub(count)?;
        Some(self.free.split_off(rest))
    }

    pub(crate) fn release(&mut self, blocks: Vec<u32>) {
        self.free.extend(blocks);
        debug_assert!(self.free.len() <= self.total, "more blocks released than allocated");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_conserved() {
        let mut pool = BlockPool::new(5);
        let a = pool.allocate(2).unwrap();
        let b = pool.allocate(3).unwrap();
        assert!(a.iter().all(|block| !b.contains(block)));
        assert!(pool.allocate(1).is_none());
        assert_eq!(pool.num_in_use(), 5);
        pool.release(a);
        pool.release(b);
        assert_eq!((pool.num_in_use(), pool.num_total()), (0, 5));
    }
}
