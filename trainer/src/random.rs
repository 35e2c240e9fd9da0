//! Seeded numbers: a counter-based generator, so that any number can be had without those before it.

use bespoke_kernels::{MIX_STEP, Mask, mix};

/// Numbers of one stream.
pub(crate) struct Random {
    state: u64,
}

impl Random {
    /// Streams of different parts are independent.
    pub(crate) fn new(parts: &[u64]) -> Random {
        Random { state: parts.iter().fold(0, |state, &part| mix(state ^ mix(part))) }
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(MIX_STEP);
        mix(self.state)
    }

    /// In `0..1`.
    pub(crate) fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1_u64 << 24) as f32
    }

    /// A permutation of `0..len` (Fisher and Yates).
    pub(crate) fn permutation(&mut self, len: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..len).collect();
        for last in (1..len).rev() {
            // The bias is below 2^-32 for any data set that fits into memory.
            order.swap(last, (self.bits() % (last as u64 + 1)) as usize);
        }
        order
    }
}

/// Which inputs of an adapter are dropped: a pure function of the key and the place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// The share that is dropped, in `0..1`.
    pub rate: f32,
    /// Seed, step and batch, mixed.
    pub key: u64,
}

impl Dropout {
    /// The key of one micro-batch of one step.
    pub fn new(rate: f32, seed: u64, step: u64, micro_batch: u64) -> Dropout {
        Dropout { rate, key: mix(mix(mix(seed) ^ step) ^ micro_batch) }
    }

    /// The mask of one module; `module` tells modules apart.
    pub(crate) fn mask(&self, module: u64) -> Mask {
        Mask { rate: self.rate, key: mix(self.key ^ module) }
    }
}
