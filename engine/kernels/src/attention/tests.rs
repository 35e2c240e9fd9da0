//! Attention: every instruction set against double precision, and batch invariance bit for bit.

use proptest::prelude::*;

use crate::samples::{Random, available_isas, bits};
use crate::{Attention, AttentionRow, Isa, Kernels, KvBuffer, KvDType, KvShape, KvSlot, NewRows, Rope, RopeStyle};

type Make = fn(KvDType, KvShape, usize) -> KvBuffer;

/// A cache with keys and values of one sequence, at the same numbers whatever the layout.
struct Cache {
    blocks: Vec<u32>,
    k: KvBuffer,
    v: KvBuffer,
}

impl Cache {
    /// Lays `len` positions out in blocks of a shuffled table; what is not theirs is NaN, so that reading it shows.
    fn new(shape: KvShape, len: usize, keys_and_values: (&[f32], &[f32]), random: &mut Random) -> Cache {
        Cache::of(KvDType::F32, shape, (len, keys_and_values), random)
    }

    fn of(
        dtype: KvDType,
        shape: KvShape,
        (len, (keys, values)): (usize, (&[f32], &[f32])),
        random: &mut Random,
    ) -> Cache {
        let KvShape { block_tokens, kv_heads, head_dim } = shape;
        let num_blocks = len.div_ceil(block_tokens);
        let mut blocks: Vec<u32> = (0..num_blocks as u32 + 2).collect();
        for i in (1..blocks.len()).rev() {
            blocks.swap(i, random.below(i + 1));
        }
        let row_len = kv_heads * head_dim;
        let parts: [(Make, &[f32]); 2] = [(KvBuffer::keys, keys), (KvBuffer::values, values)];
        let [k, v] = parts.map(|(make, rows)| {
            let mut buffer = make(dtype, shape, blocks.len());
            if dtype != KvDType::Q8_0 {
                let nowhere = vec![f32::NAN; row_len];
                (0..blocks.len() * block_tokens)
                    .for_each(|place| buffer.write(place / block_tokens, place % block_tokens, &nowhere));
            }
            for (position, row) in rows.chunks_exact(row_len).take(len).enumerate() {
                buffer.write(blocks[position / block_tokens] as usize, position % block_tokens, row);
            }
            buffer
        });
        blocks.truncate(num_blocks);
        Cache { blocks, k, v }
    }

    fn attend(&self, kernels: &Kernels, q: &[f32], heads: usize, visible: &[(usize, usize)]) -> Vec<f32> {
        let rows: Vec<AttentionRow<'_>> =
            visible.iter().map(|&(start, end)| AttentionRow { blocks: &self.blocks, start, end }).collect();
        let mut out = vec![f32::NAN; q.len()];
        let (k, v) = (&self.k, &self.v);
        kernels.attention(Attention { q, k, v, heads, scale: 0.3, rows: &rows }, &mut out);
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Sequences with a beginning in common, of which some have drafts, see nothing or begin later.
    #[test]
    fn a_row_has_the_same_bits_beside_sequences_that_begin_alike(
        (kv_heads, group) in (1_usize..4, 1_usize..5),
        block_tokens in prop_oneof![Just(16_usize), Just(7), Just(64)],
        sequences in proptest::collection::vec((0_usize..20, 0_usize..6, 1_usize..3, 0_usize..4), 1..12),
        seed in any::<u64>(),
    ) {
        let mut random = Random(seed);
        let shape = KvShape { block_tokens, kv_heads, head_dim: 32 };
        let num_shared = sequences.iter().map(|&(shared, ..)| shared).max().unwrap_or(0);
        let mut num_blocks = num_shared as u32;
        // Per sequence its blocks, how many rows it has, and whether these see a window.
        let tables: Vec<(Vec<u32>, usize, bool)> = sequences
            .iter()
            .map(|&(shared, own, num_rows, kind)| {
                let first = num_blocks;
                num_blocks += own as u32;
                ((0..shared as u32).chain(first..num_blocks).collect(), num_rows, kind == 0)
            })
            .collect();
        let rows: Vec<AttentionRow<'_>> = tables
            .iter()
            .flat_map(|(blocks, num_rows, window)| {
                let len = blocks.len() * block_tokens;
                let ends = (0..*num_rows).map(move |row| (len + row).saturating_sub(num_rows + 2));
                ends.map(move |end| AttentionRow { blocks, start: if *window { len / 2 } else { 0 }, end })
            })
            .collect();
        for dtype in [KvDType::F32, KvDType::F16, KvDType::Q8_0] {
            let [k, v] = [KvBuffer::keys as Make, KvBuffer::values].map(|make| {
                let mut buffer = make(dtype, shape, num_blocks as usize);
                for place in 0..num_blocks as usize * block_tokens {
                    buffer.write(place / block_tokens, place % block_tokens, &random.floats(kv_heads * 32));
                }
                buffer
            });
            let (heads, row_len) = (kv_heads * group, kv_heads * group * 32);
            let q = random.floats(rows.len() * row_len);
            for (isa, num_threads) in available_isas().into_iter().flat_map(|isa| [(isa, 1), (isa, 2)]) {
                let kernels = Kernels::with_isa(isa, num_threads).unwrap();
                let attend = |q: &[f32], rows: &[AttentionRow<'_>]| {
                    let mut out = vec![f32::NAN; q.len()];
                    kernels.attention(Attention { q, k: &k, v: &v, heads, scale: 0.3, rows }, &mut out);
                    bits(&out)
                };
                let alone: Vec<u32> = q.chunks(row_len).zip(&rows).flat_map(|(q, row)| attend(q, &[*row])).collect();
                prop_assert!(attend(&q, &rows) == alone, "{}, {}, {} threads", isa, dtype, num_threads);
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
    let (k, v) = (KvBuffer::keys(KvDType::F32, shape, 1), KvBuffer::values(KvDType::F32, shape, 1));
    let args = Attention { q: &[1.0], k: &k, v: &v, heads: 1, scale: 1.0, rows: &rows };
    Kernels::new(1).unwrap().attention(args, &mut [0.0]);
}

/// What a format keeps of a value below 1 in size: its rounding error.
fn rounding(dtype: KvDType) -> f32 {
    match dtype {
        KvDType::F32 => 0.0,
        KvDType::F16 => 1.0 / 4096.0,
        KvDType::Bf16 => 1.0 / 512.0,
        // Half a step of 1/127, and the scale's own rounding.
        KvDType::Q8_0 => 0.5 / 127.0 + 1.0 / 2048.0,
    }
}

/// One visible position has weight 1, so its value comes out as it was stored.
#[test]
fn a_stored_value_comes_back_within_the_rounding_of_its_format() {
    let shape = KvShape { block_tokens: 3, kv_heads: 2, head_dim: 64 };
    let mut random = Random(8);
    let rows = random.floats(7 * 128);
    for dtype in KvDType::ALL {
        let cache = Cache::of(dtype, shape, (7, (&rows, &rows)), &mut random);
        for isa in available_isas() {
            let out = cache.attend(&Kernels::with_isa(isa, 1).unwrap(), &[0.1; 2 * 64], 2, &[(5, 6)]);
            for (found, stored) in out.iter().zip(&rows[5 * 128..]) {
                assert!((found - stored).abs() <= rounding(dtype), "{isa}, {dtype}: {found} of {stored}");
            }
        }
    }
}

/// A format changes what is stored, never how a row depends on others.
#[test]
fn rows_of_every_format_have_the_same_bits_alone_and_in_a_batch() {
    let mut random = Random(9);
    let (kv_heads, group, head_dim, len) = (3, 3, 64, 100);
    let heads = kv_heads * group;
    let visible: Vec<(usize, usize)> = (0..13).map(|i| (if i % 4 == 3 { 9 } else { 0 }, i * 7 + 10)).collect();
    let (k, v) = (random.floats(len * kv_heads * head_dim), random.floats(len * kv_heads * head_dim));
    let q = random.floats(visible.len() * heads * head_dim);
    for dtype in KvDType::ALL {
        for isa in available_isas() {
            let kernels = Kernels::with_isa(isa, 2).unwrap();
            let cache = |block_tokens, random: &mut Random| {
                Cache::of(dtype, KvShape { block_tokens, kv_heads, head_dim }, (len, (&k, &v)), random)
            };
            let (first, second) = (cache(16, &mut random), cache(5, &mut random));
            let alone = visible.iter().zip(q.chunks(heads * head_dim));
            let alone: Vec<u32> =
                alone.flat_map(|(&visible, q)| bits(&first.attend(&kernels, q, heads, &[visible]))).collect();
            assert_eq!(bits(&second.attend(&kernels, &q, heads, &visible)), alone, "{isa}, {dtype}");
        }
    }
}

/// Storing rows is to rotate them, then to write them one after the other.
#[test]
fn stored_rows_are_rotated_and_written() {
    let mut random = Random(10);
    let (shape, heads) = (KvShape { block_tokens: 16, kv_heads: 2, head_dim: 64 }, 6);
    let rope = Rope::new(RopeStyle::Half, &random.floats(32), 100, 1.0);
    for (num_rows, dtype) in [1, 45].into_iter().flat_map(|rows| KvDType::ALL.map(|dtype| (rows, dtype))) {
        let (q, k) = (random.floats(num_rows * heads * 64), random.floats(num_rows * 2 * 64));
        let v = random.floats(k.len());
        let positions: Vec<u32> = (3..3 + num_rows as u32).collect();
        let slots: Vec<KvSlot> = (0..num_rows).map(|row| KvSlot { block: 2 - row / 16, slot: row % 16 }).collect();
        for isa in available_isas() {
            let kernels = Kernels::with_isa(isa, 3).unwrap();
            let new = || (KvBuffer::keys(dtype, shape, 3), KvBuffer::values(dtype, shape, 3), q.clone(), k.clone());
            let (mut keys, mut values, mut q, mut k) = new();
            let rows = NewRows { q: &mut q, k: &mut k, v: &v, positions: &positions, slots: &slots };
            kernels.store(&rope, rows, &mut keys, &mut values);
            let (mut written_keys, mut written_values, mut rotated_q, mut rotated_k) = new();
            kernels.rope(&rope, &positions, heads, &mut rotated_q);
            kernels.rope(&rope, &positions, 2, &mut rotated_k);
            for (slot, (k, v)) in slots.iter().zip(rotated_k.chunks(128).zip(v.chunks(128))) {
                written_keys.write(slot.block, slot.slot, k);
                written_values.write(slot.block, slot.slot, v);
            }
            assert_eq!((bits(&q), bits(&k)), (bits(&rotated_q), bits(&rotated_k)), "{isa}");
            let attend = |k: &KvBuffer, v: &KvBuffer| {
                let rows: Vec<AttentionRow<'_>> =
                    (0..num_rows).map(|row| AttentionRow { blocks: &[2, 1, 0], start: row, end: row + 1 }).collect();
                let mut out = vec![f32::NAN; q.len()];
                kernels.attention(Attention { q: &q, k, v, heads, scale: 0.3, rows: &rows }, &mut out);
                bits(&out)
            };
            let (found, expected) = (attend(&keys, &values), attend(&written_keys, &written_values));
            assert!(found == expected && keys.has_the_bytes_of(&written_keys), "{isa}, {dtype}, {num_rows} rows");
        }
    }
}

#[test]
#[should_panic(expected = "is outside 1 blocks")]
fn an_unknown_slot_panics() {
    let shape = KvShape { block_tokens: 1, kv_heads: 1, head_dim: 2 };
    let (mut keys, mut values) = (KvBuffer::keys(KvDType::F32, shape, 1), KvBuffer::values(KvDType::F32, shape, 1));
    let (q, k, slots) = (&mut [0.0; 2], &mut [0.0; 2], &[KvSlot { block: 1, slot: 0 }]);
    let rows = NewRows { q, k, v: &[0.0; 2], positions: &[0], slots };
    Kernels::new(1).unwrap().store(&Rope::new(RopeStyle::Half, &[1.0], 8, 1.0), rows, &mut keys, &mut values);
}

#[test]
fn a_format_says_which_heads_it_can_store() {
    assert!(KvDType::ALL.iter().all(|dtype| dtype.supports(64)));
    assert!(KvDType::F32.supports(300) && !KvDType::F16.supports(300) && KvDType::F16.supports(20));
    assert!(!KvDType::Q8_0.supports(20));
    assert_eq!(KvDType::Q8_0.head_bytes(64), Some(68));
}

/// Values too small for a half precision scale become 0, and the largest stay in range.
#[test]
fn tiny_and_huge_values_survive_eight_bits() {
    let shape = KvShape { block_tokens: 1, kv_heads: 1, head_dim: 32 };
    for (value, expected) in [(1e-30, 0.0), (6e4, 6e4), (0.0, 0.0)] {
        let cache = Cache::of(KvDType::Q8_0, shape, (1, (&[0.0; 32], &[value; 32])), &mut Random(1));
        let out = cache.attend(&Kernels::new(1).unwrap(), &[0.0; 32], 1, &[(0, 1)]);
        assert!((out[7] - expected).abs() <= expected * 1e-3, "{} of {value}", out[7]);
    }
}

/// In tile registers: near the exact one, and a row has the same bits in any company.
#[test]
fn attention_in_bf16_is_near_the_exact_one_and_a_row_does_not_depend_on_others() {
    let Ok(kernels) = Kernels::with_isa(Isa::Amx, 2) else {
        println!("skipped: no AMX");
        return;
    };
    let mut random = Random(31);
    for (dtype, block_tokens, (kv_heads, group), head_dim) in [
        (KvDType::F16, 16, (3, 3), 64),
        (KvDType::F32, 16, (2, 7), 32),
        (KvDType::Bf16, 32, (1, 1), 128),
        (KvDType::F16, 5, (2, 2), 96),
        (KvDType::Q8_0, 16, (2, 3), 64),
    ] {
        let (len, heads) = (150, kv_heads * group);
        let shape = KvShape { block_tokens, kv_heads, head_dim };
        let (k, v) = (random.floats(len * kv_heads * head_dim), random.floats(len * kv_heads * head_dim));
        let cache = Cache::of(dtype, shape, (len, (&k, &v)), &mut random);
        // A prompt, rows with a window, one that sees nothing, and one key alone.
        let mut visible: Vec<(usize, usize)> = (40..len).map(|end| (0, end + 1)).collect();
        visible.extend((60..90).map(|end| (end - 40, end + 1)));
        visible.extend([(7, 7), (35, 36), (0, len)]);
        let q = random.floats(visible.len() * heads * head_dim);
        let attend = |q: &[f32], visible: &[(usize, usize)]| {
            let rows: Vec<AttentionRow<'_>> =
                visible.iter().map(|&(start, end)| AttentionRow { blocks: &cache.blocks, start, end }).collect();
            let mut out = vec![f32::NAN; q.len()];
            kernels.attention_bf16(Attention { q, k: &cache.k, v: &cache.v, heads, scale: 0.3, rows: &rows }, &mut out);
            out
        };
        let (exact, found) = (cache.attend(&kernels, &q, heads, &visible), attend(&q, &visible));
        let largest = exact.iter().zip(&found).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(largest > 0.0 && largest < 0.01, "{dtype}, heads of {head_dim}: {largest}");
        for chunk in [1, 7, 64] {
            let parts = visible.chunks(chunk).zip(q.chunks(chunk * heads * head_dim));
            let apart: Vec<f32> = parts.flat_map(|(visible, q)| attend(q, visible)).collect();
            assert_eq!(bits(&apart), bits(&found), "{dtype}, {chunk} rows at a time");
        }
    }
}
