//! A ragged batch without padding: sequences that share a beginning share its rows.

use bespoke_domain::TokenId;
use bespoke_kernels::{Segment, Tree};

/// Tokens that go through the model together.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// The token of each row.
    pub tokens: Vec<TokenId>,
    /// Its position in its sequence.
    pub positions: Vec<u32>,
    /// Who sees whom.
    pub trees: Vec<Tree>,
    /// The predictions that count.
    pub scored: Vec<Scored>,
    /// Number of items that predictions belong to.
    pub num_items: usize,
    /// Tokens of all sequences as if none shared a row: what a padded implementation counts, without its padding.
    pub num_tokens: usize,
}

/// A prediction that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scored {
    /// The row that predicts.
    pub row: usize,
    /// The token that comes.
    pub target: TokenId,
    /// The item (a sequence, or one answer of a pair) that it belongs to.
    pub item: usize,
}

impl Batch {
    /// Adds a sequence as one item; `trained` says for each token whether its prediction counts.
    pub fn push_sequence(&mut self, tokens: &[TokenId], trained: &[bool]) {
        let item = self.num_items;
        self.num_items += 1;
        self.num_tokens += tokens.len();
        let start = self.tokens.len();
        // The last token predicts nothing that counts, so it needs no row.
        let Some((_, inputs)) = tokens.split_last() else { return };
        self.rows(inputs, 0);
        for place in 1..tokens.len() {
            if trained[place] {
                self.scored.push(Scored { row: start + place - 1, target: tokens[place], item });
            }
        }
        if !inputs.is_empty() {
            self.trees.push(Tree::sequence(start..self.tokens.len()));
        }
    }

    /// Adds a prompt with two answers as two items, of which every token counts; the rows of the prompt are shared.
    ///
    /// **Panics** if the prompt is empty.
    pub fn push_pair(&mut self, prompt: &[TokenId], answers: [&[TokenId]; 2]) {
        assert!(!prompt.is_empty(), "a pair has a prompt");
        let start = self.tokens.len();
        self.rows(prompt, 0);
        let prefix = start..self.tokens.len();
        let mut segments = vec![Segment { rows: prefix.clone(), prefix: start..start }];
        for answer in answers {
            let item = self.num_items;
            self.num_items += 1;
            self.num_tokens += prompt.len() + answer.len();
            let Some((_, inputs)) = answer.split_last() else { continue };
            let first = self.tokens.len();
            self.rows(inputs, prompt.len());
            for (place, &target) in answer.iter().enumerate() {
                let row = if place == 0 { prefix.end - 1 } else { first + place - 1 };
                self.scored.push(Scored { row, target, item });
            }
            if !inputs.is_empty() {
                segments.push(Segment { rows: first..self.tokens.len(), prefix: prefix.clone() });
            }
        }
        self.trees.push(Tree { segments });
    }

    /// Number of rows.
    pub fn num_rows(&self) -> usize {
        self.tokens.len()
    }

    /// Sums values of predictions by item.
    pub fn sum_by_item(&self, values: &[f32]) -> Vec<f64> {
        let mut sums = vec![0.0; self.num_items];
        for (scored, value) in self.scored.iter().zip(values) {
            sums[scored.item] += f64::from(*value);
        }
        sums
    }

    fn rows(&mut self, tokens: &[TokenId], first_position: usize) {
        self.tokens.extend_from_slice(tokens);
        self.positions.extend((first_position as u32..).take(tokens.len()));
    }
}
