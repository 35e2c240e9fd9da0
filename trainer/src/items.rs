//! What a run goes through: examples in a seeded order, cut into pieces that fit a budget of rows.

use std::ops::Range;

use crate::batch::Batch;
use crate::example::Example;
use crate::random::Random;

/// Tells the order of rows apart from other seeded numbers.
const ORDER: u64 = 0x0D3;

/// The order of an epoch: a pure function of seed and epoch, so that a resumed run goes on with it.
pub(crate) fn order(len: usize, seed: u64, epoch: u64) -> Vec<usize> {
    Random::new(&[ORDER, seed, epoch]).permutation(len)
}

/// Cuts a run of examples into pieces of at most `rows_max` rows, but at least one example.
pub(crate) fn pieces(examples: &[&Example], rows_max: usize) -> Vec<Range<usize>> {
    let mut pieces = Vec::new();
    let (mut start, mut rows) = (0, 0);
    for (index, example) in examples.iter().enumerate() {
        if index > start && rows + example.num_rows() > rows_max {
            pieces.push(start..index);
            (start, rows) = (index, 0);
        }
        rows += example.num_rows();
    }
    if start < examples.len() {
        pieces.push(start..examples.len());
    }
    pieces
}

/// Lays examples into one batch.
pub(crate) fn batch_of(examples: &[&Example]) -> Batch {
    let mut batch = Batch::default();
    for example in examples {
        match example {
            Example::Sequence { tokens, trained } => batch.push_sequence(tokens, trained),
            Example::Pair { prompt, chosen, rejected } => batch.push_pair(prompt, [chosen, rejected]),
        }
    }
    batch
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_a_permutation_of_its_seed() {
        let first = order(50, 1, 0);
        let mut sorted = first.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..50).collect::<Vec<_>>());
        assert_eq!(first, order(50, 1, 0));
        assert!(first != order(50, 1, 1) && first != order(50, 2, 0));
    }

    #[test]
    fn pieces_cover_all_and_keep_to_the_budget() {
        let example = |len: usize| Example::Sequence { tokens: vec![0; len], trained: vec![true; len] };
        let examples = [5, 3, 9, 1, 1, 1].map(example);
        let refs: Vec<&Example> = examples.iter().collect();
        assert_eq!(pieces(&refs, 8), [0..2, 2..3, 3..6]);
        assert!(pieces(&[], 8).is_empty());
    }
}
