//! The meaning of a part.

use super::{GROUP, LANES, Part, SQUARE, SQUARE_PAIRS, even, odd};
use crate::shared::Place;

/// # Safety
/// As [`super::Multiply`].
pub(super) unsafe fn multiply(part: &Part<'_>, place: Place) {
    part.check();
    for row in 0..part.rows {
        let squares = part.x[part.row(row)..].chunks(SQUARE);
        let x = squares.flat_map(|square| &square[..SQUARE_PAIRS]).take(part.pairs);
        // SAFETY: the caller's promise: the place has a group of floats for each row.
        let out = unsafe { std::slice::from_raw_parts_mut(place.start.add(row * place.stride), GROUP) };
        for (lines, out) in part.lines.iter().zip(out.as_chunks_mut::<LANES>().0) {
            let mut sums = if place.add { *out } else { [0.0; LANES] };
            for (line, &x) in lines.as_chunks::<LANES>().0.iter().zip(x.clone()) {
                for (sum, &w) in sums.iter_mut().zip(line) {
                    *sum = odd(w).mul_add(odd(x), even(w).mul_add(even(x), *sum));
                }
            }
            *out = sums;
        }
    }
}
