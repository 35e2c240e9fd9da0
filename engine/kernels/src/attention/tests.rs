//! Attention: every instruction set against double precision, and batch invariance bit for bit.

use proptest::prelude::*;

use crate::samples::{Random, available_isas, bits};
use crate::{Attention, AttentionRow, Kernels, KvShape};

/// A cache with keys and values of one sequence, at the same numbers whatever the layout.
struct Cache {
    shape: KvShape,
    blocks: Vec<u32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Cache {
    /// Lays `len` positions out in blocks of a shuffled table; what is not theirs is NaN, so that reading it shows.
    fn new(shape: KvShape, len: usize, keys_and_values: (&[f32], &[f32]), random: &mut Random) -> Cache {
        let num_blocks = len.div_ceil(shape.block_tokens);
        let mut blocks: Vec<u32> = (0..num_blocks as u32 + 2).collect();
        for i in (1..blocks.len()).rev() {
            blocks.swap(i, random.below(i + 1));
        }
        let mut k = vec![f32::NAN; blocks.len() * shape.block_len()];
        let mut v = k.clone();
        let KvShape { block_tokens, kv_heads, head_dim } = shape;
        for position in 0..len {
            for head in 0..kv_heads {
                let block = blocks[position / block_tokens] as usize;
                let to = ((block * kv_heads + head) * block_tokens + position % block_tokens) * head_dim;
                let from = (position * kv_heads + head) * head_dim;
                k[to..to + head_dim].copy_from_slice(&keys_and_values.0[from..from + head_dim]);
                v[to..to + head_dim].copy_from_slice(&keys_and_values.1[from..from + head_dim]);
            }
        }
        blocks.truncate(num_blocks);
        Cache { shape, blocks, k, v }
    }

    fn attend(&self, kernels: &Kernels, q: &[f32], heads: usize, visible: &[(usize, usize)]) -> Vec<f32> {
        let rows: Vec<AttentionRow<'_>> =
            visible.iter().map(|&(start, end)| AttentionRow { blocks: &self.blocks, start, end }).collect();
        let mut out = vec![f32::NAN; q.len()];
        let (k, v, shape) = (&self.k, &self.v, self.shape);
        kernels.attention(Attention { q, k, v, shape, heads, scale: 0.3, rows: &rows }, &mut out);
        out
    }
}

/// Attention of one head in double precision over `(positions, kv_heads, head_dim)` keys and values.
fn reference(
    q: &[f32],
    (k, v): (&[f32], &[f32]),
    (kv_head, kv_heads): (usize, usize),
    visible: (usize, usize),
) -> Vec<f64> {
    let head_dim = q.len();
    let at = |position: usize| (position * kv_heads + kv_head) * head_dim;
    let score = |position: usize| -> f64 {
        let key = &k[at(position)..at(position) + head_dim];
        q.iter().zip(key).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() * f64::from(0.3_f32)
    };
    let weights: Vec<f64> = (visible.0..visible.1).map(|position| score(position).exp()).collect();
    let total: f64 = weights.iter().sum();
    let value = |i: usize| -> f64 {
        let terms = weights.iter().zip(visible.0..).map(|(w, position)| w * f64::from(v[at(position) + i]));
        terms.sum::<f64>() / total
    };
    (0..head_dim).map(value).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Values and queries are below 1 in size, so scores are below `0.3 head_dim` and each is off by at most about
    /// `0.3 head_dim^2 eps`, which is its weight's relative error; a few eps per chunk come on top.
    #[test]
    fn every_isa_is_within_the_bound_of_double_precision(
        (kv_heads, group) in (1_usize..4, 1_usize..8),
        head_dim in prop_oneof![1_usize..40, Just(64_usize), Just(80), Just(128)],
        (block_tokens, len) in (1_usize..40, 1_usize..150),
        windows in proptest::collection::vec((0.0_f64..1.0, 0.0_f64..1.0), 1..4),
        seed in any::<u64>(),
    ) {
        let mut random = Random(seed);
        let heads = kv_heads * group;
        let visible: Vec<(usize, usize)> = windows
            .iter()
            .map(|&(a, b)| ((a.min(b) * len as f64) as usize, (a.max(b) * len as f64) as usize + 1))
            .collect();
        let (k, v) = (random.floats(len * kv_heads * head_dim), random.floats(len * kv_heads * head_dim));
        let q = random.floats(visible.len() * heads * head_dim);
        let shape = KvShape { block_tokens, kv_heads, head_dim };
        let cache = Cache::new(shape, len, (&k, &v), &mut random);
        let eps = f64::from(f32::EPSILON);
        let bound = 2.0 * (0.3 * (head_dim * head_dim) as f64 + len as f64 + 16.0) * eps;
        for isa in available_isas() {
            let out = cache.attend(&Kernels::with_isa(isa, 1).unwrap(), &q, heads, &visible);
            for (i, (q, out)) in q.chunks(head_dim).zip(out.chunks(head_dim)).enumerate() {
                let head = i % heads;
                let expected = reference(q, (&k, &v), (head / group, kv_heads), visible[i / heads]);
                for (found, expected) in out.iter().zip(expected) {
                    prop_assert!((f64::from(*found) - expected).abs() <= bound, "{}: {} not {}", isa, found, expected);
                }
            }
        }
    }
}

/// The bits of a row depend on its own keys only: not on the block size, the block numbers, the other rows or the
/// number of threads.
#[test]
fn a_row_has_the_same_bits_in_any_batch_and_any_block_layout() {
    let mut random = Random(5);
    for (kv_heads, group, head_dim) in [(3, 3, 64), (1, 8, 40), (2, 1, 20), (2, 7, 128)] {
        let (len, heads) = (133, kv_heads * group);
        let visible: Vec<(usize, usize)> =
            (0..17).map(|i| (if i % 3 == 0 { i * 5 } else { 0 }, (i * 8 + 5).min(len))).collect();
        let (k, v) = (random.floats(len * kv_heads * head_dim), random.floats(len * kv_heads * head_dim));
        let q = random.floats(visible.len() * heads * head_dim);
        for isa in available_isas() {
            let one = Kernels::with_isa(isa, 1).unwrap();
            let cache = |block_tokens, random: &mut Random| {
                Cache::new(KvShape { block_tokens, kv_heads, head_dim }, len, (&k, &v), random)
            };
            let first = cache(16, &mut random);
            let alone: Vec<u32> = visible
                .iter()
                .zip(q.chunks(heads * head_dim))
                .flat_map(|(&visible, q)| bits(&first.attend(&one, q, heads, &[visible])))
                .collect();
            for (block_tokens, num_threads) in [(16, 1), (1, 2), (7, 3), (64, 2), (200, 1)] {
                let kernels = Kernels::with_isa(isa, num_threads).unwrap();
                let found = cache(block_tokens, &mut random).attend(&kernels, &q, heads, &visible);
                assert_eq!(bits(&found), alone, "{isa}, blocks of {block_tokens}, {num_threads} threads");
            }
        }
    }
}

#[test]
fn a_row_that_sees_nothing_is_zero() {
    let shape = KvShape { block_tokens: 4, kv_heads: 1, head_dim: 2 };
    for isa in available_isas() {
        let cache = Cache::new(shape, 4, (&[1.0; 8], &[2.0; 8]), &mut Random(6));
        let out = cache.attend(&Kernels::with_isa(isa, 1).unwrap(), &[0.5; 4], 1, &[(2, 2), (0, 3)]);
        assert_eq!(out, [0.0, 0.0, 2.0, 2.0], "{isa}");
    }
}

/// Large scores: the running maximum keeps the exponentials finite.
#[test]
fn large_scores_do_not_overflow() {
    let shape = KvShape { block_tokens: 8, kv_heads: 1, head_dim: 1 };
    let keys: Vec<f32> = (0..70).map(|i| i as f32 * 1000.0).collect();
    let values: Vec<f32> = (0..70).map(|i| i as f32).collect();
    for isa in available_isas() {
        let cache = Cache::new(shape, 70, (&keys, &values), &mut Random(7));
        let kernels = Kernels::with_isa(isa, 1).unwrap();
        assert_eq!(cache.attend(&kernels, &[1.0, -1.0], 1, &[(0, 70), (0, 70)]), [69.0, 0.0], "{isa}");
    }
}

#[test]
#[should_panic(expected = "is not among")]
fn an_unknown_block_panics() {
    let shape = KvShape { block_tokens: 1, kv_heads: 1, head_dim: 1 };
    let rows = [AttentionRow { blocks: &[1], start: 0, end: 1 }];
    let args = Attention { q: &[1.0], k: &[1.0], v: &[1.0], shape, heads: 1, scale: 1.0, rows: &rows };
    Kernels::new(1).unwrap().attention(args, &mut [0.0]);
}
