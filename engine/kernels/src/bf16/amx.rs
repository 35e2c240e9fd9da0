//! Products in bf16 with the tile registers of AMX: two of them hold the sums of 16 rows and 32 outputs.
//!
//! Four registers are in use, for the reason that `tiles.rs` gives. Eight would halve the loads; what those cost while a thread has
//! its core for itself is won back by the first-level cache: inputs come in chunks whose lines stay there for all rows.

use std::arch::asm;
use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
use std::mem::MaybeUninit;
use std::ops::Range;

use super::product::ROWS as ROWS_MAX;
use super::{GROUP, LANES, Part, STEP};
use crate::ahead::Lines;
use crate::shared::Place;
use crate::tiles::{LINE, ROWS};

/// Pairs of a row of a tile register.
const PAIRS: usize = STEP / 2;
/// Most pairs of a chunk: the lines of a group take 24 KiB.
const CHUNK_PAIRS: usize = 12 * PAIRS;

/// Sums between two chunks. Rows that a part does not have are never set: they pass through registers, and nothing reads them.
#[repr(align(64))]
struct Sums(MaybeUninit<[[f32; GROUP]; ROWS_MAX]>);

/// # Safety
/// As [`super::Multiply`].
pub(super) unsafe fn multiply(part: &Part<'_>, place: Place) {
    part.check();
    assert!(part.rows <= ROWS_MAX, "{} rows of a part", part.rows);
    let mut sums = Sums(MaybeUninit::uninit());
    let sums = Place { start: sums.0.as_mut_ptr().cast(), stride: GROUP, add: true };
    let mut next = Next::of(part);
    // Equal chunks.
    let step = part.pairs.div_ceil(part.pairs.div_ceil(CHUNK_PAIRS)).next_multiple_of(PAIRS);
    for first in (0..part.pairs).step_by(step) {
        let pairs = first..part.pairs.min(first + step);
        for row in (0..part.rows).step_by(ROWS) {
            // SAFETY: `check` has passed, the registers are configured, and the sums have every row; the rest is the caller's promise.
            unsafe { block(part, (row, pairs.clone()), (place.at_row(row), sums.at_row(row)), &mut next) };
        }
    }
}

/// What is read or written next: with each square as many lines are asked for as it takes to have asked for all in the end.
struct Next {
    lines: Lines,
    lines_per_step: usize,
}

impl Next {
    fn of(part: &Part<'_>) -> Next {
        let num_steps = part.rows.div_ceil(ROWS) * (part.pairs / PAIRS);
        let num_lines = part.next.num_lines();
        Next { lines: { part.next }.take(num_lines), lines_per_step: num_lines.div_ceil(num_steps.max(1)) }
    }

    #[inline(always)]
    fn ask(&mut self) {
        for _ in 0..self.lines_per_step {
            self.lines.ask();
        }
    }
}

/// Rows of outputs that are written when a chunk is done, asked for some with each square: all at once would wait for each other.
struct Outputs {
    place: Place,
    rows: Range<usize>,
    rows_per_step: usize,
}

impl Outputs {
    #[inline(always)]
    fn ask(&mut self) {
        for row in self.rows.by_ref().take(self.rows_per_step) {
            let line = self.place.at_row(row).start.cast::<i8>();
            // SAFETY: AMX includes what has this instruction; it reads nothing.
            unsafe {
                _mm_prefetch::<_MM_HINT_ET0>(line);
                _mm_prefetch::<_MM_HINT_ET0>(line.wrapping_byte_add(LINE));
            }
        }
    }
}

/// Adds the products of a chunk to up to 16 rows: from the outputs, or zeros, in the first chunk, to the outputs in the last, and by
/// way of the sums in between. Fewer rows than a tile register has pass through the sums in the first and the last chunk too.
///
/// # Safety
/// `Part::check` has passed, and both places begin with the row: `out` has those of the part, `sums` as many as a tile register.
#[inline]
unsafe fn block(part: &Part<'_>, (row, pairs): (usize, Range<usize>), (out, sums): (Place, Place), next: &mut Next) {
    let rows = ROWS.min(part.rows - row);
    let (is_first, is_last) = (pairs.start == 0, pairs.end == part.pairs);
    // SAFETY: the caller's promise.
    unsafe {
        let start = match is_first {
            true if rows == ROWS => out,
            true => {
                copy(out, sums, if out.add { rows } else { 0 });
                Place { add: out.add, ..sums }
            }
            false => sums,
        };
        load(start);
        let outputs = Outputs {
            place: out,
            rows: 0..if is_last { rows } else { 0 },
            rows_per_step: rows.div_ceil(pairs.len() / PAIRS),
        };
        add_products(part, (row, pairs), next, outputs);
        match is_last {
            true if rows == ROWS => store(out),
            true => {
                store(sums);
                copy(sums, out, rows);
            }
            false => store(sums),
        }
    }
}

/// Registers 0 and 1 hold the sums of both halves of the outputs, 2 the activations, and 3 the weights of one half.
///
/// # Safety
/// As [`block`].
#[inline(always)]
unsafe fn add_products(part: &Part<'_>, (row, pairs): (usize, Range<usize>), next: &mut Next, mut outputs: Outputs) {
    let x = part.x.as_ptr().wrapping_add(part.row(row));
    for pair in pairs.step_by(PAIRS) {
        let lines = part.lines.map(|lines| lines.as_ptr().wrapping_add(pair * LANES));
        next.ask();
        outputs.ask();
        // SAFETY: the caller's promise. Tile registers are nothing that the compiler uses, so they keep their contents in between.
        unsafe {
            asm!(
                "tileloadd tmm2, [{x} + {line}]",
                "tileloadd tmm3, [{first} + {line}]",
                "tdpbf16ps tmm0, tmm2, tmm3",
                "tileloadd tmm3, [{second} + {line}]",
                "tdpbf16ps tmm1, tmm2, tmm3",
                // Zeros take no register.
                "tilezero tmm2",
                "tilezero tmm3",
                first = in(reg) lines[0],
                second = in(reg) lines[1],
                x = in(reg) x.wrapping_add(pair * ROWS),
                line = in(reg) LINE,
                options(nostack, readonly),
            );
        }
    }
}

/// Starts with the sums of a place, or with zeros.
///
/// # Safety
/// The registers are configured to be whole, and a place that is added to has [`ROWS`] rows.
#[inline(always)]
unsafe fn load(place: Place) {
    let stride = place.stride * size_of::<f32>();
    // SAFETY: the caller's promise.
    unsafe {
        if place.add {
            asm!("tileloadd tmm0, [{start} + {stride}]", "tileloadd tmm1, [{start} + {stride} + 64]",
                start = in(reg) place.start, stride = in(reg) stride, options(nostack, readonly));
        } else {
            asm!("tilezero tmm0", "tilezero tmm1", options(nostack, nomem));
        }
    }
    const { assert!(GROUP * size_of::<f32>() == 2 * LINE, "a row of a group is two rows of tile registers") };
}

/// # Safety
/// The registers are configured to be whole, and the place has [`ROWS`] rows.
#[inline(always)]
unsafe fn store(place: Place) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("tilestored [{start} + {stride}], tmm0", "tilestored [{start} + {stride} + 64], tmm1",
            start = in(reg) place.start, stride = in(reg) place.stride * size_of::<f32>(), options(nostack));
    }
}

/// # Safety
/// Both places have so many rows and do not overlap.
unsafe fn copy(from: Place, to: Place, rows: usize) {
    for row in 0..rows {
        // SAFETY: the caller's promise.
        unsafe { to.at_row(row).start.copy_from_nonoverlapping(from.at_row(row).start, GROUP) };
    }
}
