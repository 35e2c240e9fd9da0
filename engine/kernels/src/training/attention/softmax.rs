//! The softmax between two products in bf16: scores lie transposed, a row for each key and a lane for each query, so that no maximum and
//! no sum goes across a vector, and what comes out lies as the next products read it.

#[cfg(target_arch = "x86_64")]
mod avx512;

use crate::Isa;
use crate::bf16::{self, GROUP, LANES, STEP};
use crate::training::table::TrainingTable;

/// A number for each query of a block.
pub(super) type Queries<T = f32> = [T; GROUP];

/// The keys that each query sees. What fills up a block may see any, but no key that does not exist.
#[derive(Clone)]
pub(super) struct Seen {
    pub(super) starts: Queries<i32>,
    pub(super) ends: Queries<i32>,
}

/// What a softmax left, per query.
pub(super) struct Softmax {
    /// The highest score, scaled; negative infinity where no key is seen.
    pub(super) highest: Queries,
    /// Exponentials, with the highest score subtracted, added up.
    pub(super) sums: Queries,
}

/// What a block knows about its queries in the backward pass.
pub(super) struct Known {
    pub(super) seen: Seen,
    /// Logarithms of the sums.
    pub(super) log_sums: Queries,
    /// Dot products of outputs and their gradients.
    pub(super) deltas: Queries,
    /// Factor of the scores.
    pub(super) scale: f32,
}

/// What comes out of the backward pass for `keys` keys, whole steps.
pub(super) struct Factors<'a> {
    /// Probabilities, a left factor: rows of keys, pairs of queries.
    pub(super) p: &'a mut [u32],
    /// Gradients of the scores, in the same way.
    pub(super) d_scores: &'a mut [u32],
    /// The same as a right factor: pairs of keys, columns of queries.
    pub(super) d_lines: [&'a mut [u32]; 2],
}

impl Seen {
    fn has(&self, query: usize, key: usize) -> bool {
        (self.starts[query]..self.ends[query]).contains(&(key as i32))
    }
}

/// Exponentials of scores with each query's highest subtracted, as a right factor: pairs of keys, columns of queries.
///
/// **Shapes**: `scores` `(keys, queries)`, a multiple of [`STEP`] keys; each of `lines` `(keys / 2, 16)`.
pub(super) fn weigh(
    (isa, table): (Isa, &TrainingTable),
    (scores, scale): (&[Queries], f32),
    seen: &Seen,
    lines: [&mut [u32]; 2],
) -> Softmax {
    check(scores.len(), &lines);
    #[cfg(target_arch = "x86_64")]
    if bf16::has_rounding(isa) {
        // SAFETY: the instruction set has instructions for bf16, and is available.
        return unsafe { avx512::weigh((scores, scale), seen, lines) };
    }
    let _ = isa;
    weigh_plain(table, (scores, scale), seen, lines)
}

/// Probabilities and gradients of scores, rounded. `d_p` is the gradient of the probabilities.
///
/// **Shapes**: as of [`weigh`]; `p` and `d_scores` `(keys, 16)`.
pub(super) fn differentiate(
    (isa, table): (Isa, &TrainingTable),
    (scores, d_p): (&[Queries], &[Queries]),
    known: &Known,
    out: Factors<'_>,
) {
    check(scores.len(), &out.d_lines);
    assert!(d_p.len() == scores.len(), "gradients of {} keys", scores.len());
    assert!(out.p.len() == scores.len() * LANES && out.d_scores.len() == out.p.len(), "pairs of queries");
    #[cfg(target_arch = "x86_64")]
    if bf16::has_rounding(isa) {
        // SAFETY: the instruction set has instructions for bf16, and is available.
        return unsafe { avx512::differentiate((scores, d_p), known, out) };
    }
    let _ = isa;
    differentiate_plain(table, (scores, d_p), known, out);
}

fn check(keys: usize, lines: &[&mut [u32]; 2]) {
    assert!(keys.is_multiple_of(STEP), "{keys} keys");
    assert!(lines.iter().all(|lines| lines.len() == keys / 2 * LANES), "lines of {keys} keys");
}

fn weigh_plain(
    table: &TrainingTable,
    (scores, scale): (&[Queries], f32),
    seen: &Seen,
    mut lines: [&mut [u32]; 2],
) -> Softmax {
    let mut softmax = Softmax { highest: [f32::NEG_INFINITY; GROUP], sums: [0.0; GROUP] };
    for (key, scores) in scores.iter().enumerate() {
        for (query, (highest, score)) in softmax.highest.iter_mut().zip(scores).enumerate() {
            if seen.has(query, key) {
                *highest = highest.max(score * scale);
            }
        }
    }
    for (pair, scores) in scores.as_chunks::<2>().0.iter().enumerate() {
        let weights = [0, 1].map(|odd| {
            let shift = |query: usize| scores[odd][query] * scale - softmax.highest[query];
            exponentials(table, (seen, 2 * pair + odd), shift)
        });
        for weights in &weights {
            softmax.sums.iter_mut().zip(weights).for_each(|(sum, weight)| *sum += weight);
        }
        write_lines(&weights, pair, &mut lines);
    }
    softmax
}

fn differentiate_plain(
    table: &TrainingTable,
    (scores, d_p): (&[Queries], &[Queries]),
    known: &Known,
    mut out: Factors<'_>,
) {
    for pair in 0..scores.len() / 2 {
        let d_scores = [0, 1].map(|odd| {
            let key = 2 * pair + odd;
            let p = exponentials(table, (&known.seen, key), |query| {
                scores[key][query] * known.scale - known.log_sums[query]
            });
            let d_scores = std::array::from_fn(|query| match known.seen.has(query, key) {
                true => p[query] * (d_p[key][query] - known.deltas[query]) * known.scale,
                false => 0.0,
            });
            write_row(&p, key, out.p);
            write_row(&d_scores, key, out.d_scores);
            d_scores
        });
        write_lines(&d_scores, pair, &mut out.d_lines);
    }
}

/// Exponentials of what a key has for the queries that see it, zeros for the others.
fn exponentials(table: &TrainingTable, (seen, key): (&Seen, usize), x: impl Fn(usize) -> f32) -> Queries {
    let mut values = std::array::from_fn(|query| if seen.has(query, key) { x(query) } else { f32::NEG_INFINITY });
    // SAFETY: `Kernels` chose the table among those that this processor can run.
    unsafe { (table.exp_sum)(&mut values, 1.0, 0.0) };
    values
}

/// Pairs of queries of one key.
fn write_row(values: &Queries, key: usize, out: &mut [u32]) {
    for (out, [even, odd]) in out[key * LANES..].iter_mut().zip(values.as_chunks().0) {
        *out = bf16::pair(*even, *odd);
    }
}

/// A pair of keys for each query.
fn write_lines([even, odd]: &[Queries; 2], pair: usize, lines: &mut [&mut [u32]; 2]) {
    for (query, (even, odd)) in even.iter().zip(odd).enumerate() {
        lines[query / LANES][pair * LANES + query % LANES] = bf16::pair(*even, *odd);
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use proptest::prelude::*;

    use super::*;
    use crate::samples::{Random, available_isas};

    /// Scores of some keys, and what queries see of them; what nobody sees is not a number.
    fn sample(random: &mut Random, keys: usize, seen: &Seen) -> Vec<Queries> {
        let query = |random: &mut Random, key: usize, query: usize| match seen.has(query, key) {
            true => random.float() * 4.0,
            false => f32::NAN,
        };
        (0..keys).map(|key| std::array::from_fn(|at| query(random, key, at))).collect()
    }

    fn halves(pairs: &[u32]) -> impl Iterator<Item = f32> {
        pairs.iter().flat_map(|pair| [*pair as u16, (pair >> 16) as u16]).map(|bits| bf16::from_bits(bits).to_f32())
    }

    fn assert_near(found: impl Iterator<Item = f32>, expected: impl Iterator<Item = f32>, what: &str) {
        for (at, (found, expected)) in found.zip(expected).enumerate() {
            assert!((found - expected).abs() <= 0.01 * expected.abs() + 1e-6, "{what} {at}: {found} not {expected}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever queries see, of any number of keys: nothing, all, or what begins and ends within a pair.
        #[test]
        fn every_instruction_set_sees_the_same(
            bounds in prop::collection::vec((0..129_usize, 0..129_usize), GROUP),
            (similar, steps) in (any::<bool>(), 1..5_usize),
            seed in any::<u64>(),
        ) {
            let keys = steps * STEP;
            let bound = |query: usize, of: fn(&(usize, usize)) -> usize| {
                let spread = if similar { of(&bounds[0]) + query % 3 } else { of(&bounds[query]) };
                spread.min(keys) as i32
            };
            let seen = Seen {
                starts: std::array::from_fn(|query| bound(query, |b| b.0.min(b.1))),
                ends: std::array::from_fn(|query| bound(query, |b| b.0.max(b.1))),
            };
            let mut random = Random(seed);
            let (scores, d_p) = (sample(&mut random, keys, &seen), sample(&mut random, keys, &seen));
            let known = Known {
                seen: seen.clone(),
                log_sums: std::array::from_fn(|_| 2.0 + random.float()),
                deltas: std::array::from_fn(|_| random.float()),
                scale: 0.5,
            };
            let table = TrainingTable::of(Isa::Scalar);
            let run = |isa: Isa| {
                let mut lines = vec![u32::MAX; 2 * keys / 2 * LANES];
                let (upper, lower) = lines.split_at_mut(keys / 2 * LANES);
                let softmax = weigh((isa, table), (&scores, 0.5), &seen, [upper, lower]);
                let [mut p, mut d_scores, mut d_lines] = [(); 3].map(|()| vec![u32::MAX; keys * LANES]);
                let (upper, lower) = d_lines.split_at_mut(keys / 2 * LANES);
                let out = Factors { p: &mut p, d_scores: &mut d_scores, d_lines: [upper, lower] };
                differentiate((isa, table), (&scores, &d_p), &known, out);
                (softmax, [lines, p, d_scores, d_lines])
            };
            let (plain, expected) = run(Isa::Scalar);
            for isa in available_isas() {
                let (softmax, found) = run(isa);
                assert_near(softmax.sums.into_iter(), plain.sums.into_iter(), "sum");
                for (query, (found, expected)) in softmax.highest.iter().zip(&plain.highest).enumerate() {
                    assert!(found == expected, "{isa}, highest of {query}: {found} not {expected}");
                }
                for (found, expected) in found.iter().zip(&expected) {
                    assert_near(halves(found), halves(expected), "pair");
                }
            }
        }
    }
}
