//! SentencePiece BPE by scores: merges the neighbours whose union has the highest score, the leftmost first among equals.
//!
//! The `tokenizers` crate ranks pairs, not unions, and cannot break a tie between two pairs of one union by place, so this is
//! ours. A heap over a linked list: `O(n log n)` for a text of `n` characters.
//!
//! **Source**: llama.cpp `src/llama-vocab.cpp`, `llm_tokenizer_spm_session`.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use super::added::AddedTokens;
use super::vocabulary::SPACE_MARK;

/// The tables of a SentencePiece BPE model.
#[derive(Debug)]
pub(super) struct ScoreMerge {
    /// Id and score of each piece that text may become.
    pub(super) pieces: HashMap<String, (u32, f32)>,
    /// The token of each byte, for characters without a piece.
    pub(super) byte_ids: Vec<Option<u32>>,
    /// Stands for a byte without a token.
    pub(super) unknown: Option<u32>,
    /// Whether a space goes before each text that follows the start, a control token or an added token.
    pub(super) add_space_prefix: bool,
    /// Tokens that are found in the text before anything is merged.
    pub(super) added: AddedTokens,
    /// Length of the longest piece, in bytes: a longer union needs no look-up.
    pub(super) piece_bytes_max: usize,
}

/// A run of characters that is one piece so far; `len` 0 marks one that was merged into its left neighbour.
#[derive(Clone, Copy)]
struct Symbol {
    /// Where it starts in the marked text.
    at: usize,
    /// Its length in the marked text, in bytes.
    len: usize,
    /// Where its first character starts in the caller's text.
    start: usize,
    prev: Option<usize>,
    next: Option<usize>,
}

/// A possible merge; it is stale when the two symbols no longer have `len` bytes together.
struct Candidate {
    score: f32,
    left: usize,
    len: usize,
}

impl ScoreMerge {
    /// Encodes a run of text, appending to `ids` and, for each id, the offset of its first byte in `text` to `starts`.
    pub(super) fn encode(&self, text: &str, ids: &mut Vec<u32>, starts: &mut Vec<usize>) {
        for piece in self.added.split(text) {
            match piece.id {
                Some(id) => {
                    ids.push(id);
                    starts.push(piece.start);
                }
                None => self.encode_plain(piece.text, piece.start, ids, starts),
            }
        }
    }

    fn encode_plain(&self, text: &str, offset: usize, ids: &mut Vec<u32>, starts: &mut Vec<usize>) {
        let (marked, mut symbols) = self.symbols(text, offset);
        self.merge(&marked, &mut symbols);
        for symbol in symbols.iter().filter(|symbol| symbol.len > 0) {
            let piece = &marked[symbol.at..symbol.at + symbol.len];
            if let Some(&(id, _)) = self.pieces.get(piece) {
                ids.push(id);
                starts.push(symbol.start);
                continue;
            }
            for byte in piece.bytes() {
                if let Some(id) = self.byte_ids[usize::from(byte)].or(self.unknown) {
                    ids.push(id);
                    starts.push(symbol.start);
                }
            }
        }
    }

    /// Marks the spaces of a text and cuts it into characters.
    fn symbols(&self, text: &str, offset: usize) -> (String, Vec<Symbol>) {
        let mut marked = String::with_capacity(text.len() + SPACE_MARK.len_utf8());
        let mut symbols: Vec<Symbol> = Vec::with_capacity(text.len() + 1);
        let prefix = self.add_space_prefix.then_some((0, ' '));
        for (start, char) in prefix.into_iter().chain(text.char_indices()) {
            let (at, index) = (marked.len(), symbols.len());
            marked.push(if char == ' ' { SPACE_MARK } else { char });
            let prev = index.checked_sub(1);
            symbols.push(Symbol { at, len: marked.len() - at, start: offset + start, prev, next: Some(index + 1) });
        }
        if let Some(last) = symbols.last_mut() {
            last.next = None;
        }
        (marked, symbols)
    }

    fn merge(&self, marked: &str, symbols: &mut [Symbol]) {
        let mut queue: BinaryHeap<Candidate> =
            (0..symbols.len()).filter_map(|left| self.candidate(marked, symbols, left)).collect();
        while let Some(Candidate { left, len, .. }) = queue.pop() {
            let Some(right) = symbols[left].next else { continue };
            // A symbol that was merged away has length 0 and still points at its old neighbour.
            if symbols[left].len == 0 || symbols[left].len + symbols[right].len != len {
                continue;
            }
            let next = symbols[right].next;
            symbols[right].len = 0;
            symbols[left].len = len;
            symbols[left].next = next;
            if let Some(next) = next {
                symbols[next].prev = Some(left);
            }
            queue.extend(symbols[left].prev.and_then(|prev| self.candidate(marked, symbols, prev)));
            queue.extend(self.candidate(marked, symbols, left));
        }
    }

    /// Looks up the union of a symbol and its right neighbour.
    fn candidate(&self, marked: &str, symbols: &[Symbol], left: usize) -> Option<Candidate> {
        let len = symbols[left].len + symbols[symbols[left].next?].len;
        if len > self.piece_bytes_max {
            return None;
        }
        let at = symbols[left].at;
        let &(_, score) = self.pieces.get(&marked[at..at + len])?;
        Some(Candidate { score, left, len })
    }
}

impl Ord for Candidate {
    /// The greatest is merged first. Scores are never NaN and never -0: the loader sees to it.
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left)).then(self.len.cmp(&other.len))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}
