//! Products in bf16 with the tile registers of AMX: four of them hold the sums of 32 rows and 32 outputs.

use std::arch::asm;
use std::arch::x86_64::{_MM_HINT_ET0, _MM_HINT_T1, _mm_prefetch};

use super::{GROUP, LANES, Part, STEP};
use crate::shared::Place;
use crate::tiles::{self, LINE, ROWS, Shape};

/// Pairs of a row of a tile register.
const PAIRS: usize = STEP / 2;

/// # Safety
/// As [`super::Multiply`].
pub(super) unsafe fn multiply(part: &Part<'_>, place: Place) {
    part.check();
    let mut configured = None;
    let mut ahead = Ahead::of(part);
    for row in (0..part.rows).step_by(2 * ROWS) {
        let rows = (part.rows - row).min(2 * ROWS);
        let heights = (rows.min(ROWS), rows.saturating_sub(ROWS));
        if configured != Some(heights) {
            configure(heights);
            configured = Some(heights);
        }
        // SAFETY: `check` has passed, the registers are configured for these rows; the rest is the caller's promise.
        unsafe {
            match heights.1 {
                0 => block::<false>(part, row, place, &mut ahead),
                _ => block::<true>(part, row, place, &mut ahead),
            }
        }
    }
    tiles::release();
}

/// Lines that are multiplied next: with each pair of squares as many are asked for as it takes to have asked for all in the end.
struct Ahead {
    halves: [*const u32; 2],
    /// Of each half.
    lines_left: usize,
    lines_per_step: usize,
}

impl Ahead {
    fn of(part: &Part<'_>) -> Ahead {
        let num_steps = part.rows.div_ceil(2 * ROWS) * (part.pairs / PAIRS);
        let num_lines = part.next[0].len().div_ceil(LANES);
        let lines_per_step = num_lines.div_ceil(num_steps.max(1));
        Ahead { halves: part.next.map(<[u32]>::as_ptr), lines_left: num_lines, lines_per_step }
    }

    #[inline(always)]
    fn ask(&mut self) {
        let num_lines = self.lines_per_step.min(self.lines_left);
        self.lines_left -= num_lines;
        for _ in 0..num_lines {
            for half in &mut self.halves {
                // SAFETY: SSE is in the baseline of x86-64, and a prefetch of any address reads nothing.
                unsafe { _mm_prefetch::<_MM_HINT_T1>(half.cast()) };
                *half = half.wrapping_add(LANES);
            }
        }
    }
}

/// Registers 0 to 3 for the sums: the upper rows with both halves of the outputs, then the lower rows; 4 and 5 for the upper and
/// the lower rows of activations; 6 and 7 for both halves of the weights.
fn configure((upper, lower): (usize, usize)) {
    let rows = |rows| Shape { rows, bytes_per_row: LINE };
    let (upper, lower) = (rows(upper), rows(lower));
    tiles::configure([upper, upper, lower, lower, upper, lower, rows(PAIRS), rows(PAIRS)]);
}

/// Computes up to 32 rows; the lower ones only where there are some.
///
/// # Safety
/// `Part::check` has passed, [`configure`] was called for the rows from `row` on, and the place has them.
#[inline]
unsafe fn block<const LOWER: bool>(part: &Part<'_>, row: usize, place: Place, ahead: &mut Ahead) {
    let out = place.start.wrapping_add(row * place.stride);
    let lower_out = out.wrapping_add(ROWS * place.stride);
    let out_stride = place.stride * size_of::<f32>();
    let x = part.x.as_ptr().wrapping_add(part.row(row));
    let lower_x = x.wrapping_add(part.block_len);
    // SAFETY: the caller's promise. Tile registers are nothing that the compiler uses, so they keep their contents in between.
    unsafe {
        if place.add {
            asm!("tileloadd tmm0, [{out} + {stride}]", "tileloadd tmm1, [{out} + {stride} + 64]",
                out = in(reg) out, stride = in(reg) out_stride, options(nostack, readonly));
        } else {
            asm!("tilezero tmm0", "tilezero tmm1", options(nostack, nomem));
        }
        if LOWER && place.add {
            asm!("tileloadd tmm2, [{out} + {stride}]", "tileloadd tmm3, [{out} + {stride} + 64]",
                out = in(reg) lower_out, stride = in(reg) out_stride, options(nostack, readonly));
        } else if LOWER {
            asm!("tilezero tmm2", "tilezero tmm3", options(nostack, nomem));
        }
        // The outputs are asked for while they are computed.
        for row in 0..if LOWER { 2 * ROWS } else { ROWS } {
            let line = out.wrapping_add(row * place.stride).cast();
            _mm_prefetch::<_MM_HINT_ET0>(line);
            _mm_prefetch::<_MM_HINT_ET0>(line.wrapping_byte_add(LINE));
        }
        for pair in (0..part.pairs).step_by(PAIRS) {
            let lines = part.lines.map(|lines| lines.as_ptr().wrapping_add(pair * LANES));
            ahead.ask();
            asm!(
                "tileloadd tmm6, [{first} + {line}]",
                "tileloadd tmm4, [{x} + {line}]",
                "tileloadd tmm7, [{second} + {line}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                first = in(reg) lines[0],
                second = in(reg) lines[1],
                x = in(reg) x.wrapping_add(pair * ROWS),
                line = in(reg) LINE,
                options(nostack, readonly),
            );
            if LOWER {
                asm!(
                    "tileloadd tmm5, [{x} + {line}]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    x = in(reg) lower_x.wrapping_add(pair * ROWS),
                    line = in(reg) LINE,
                    options(nostack, readonly),
                );
            }
        }
        asm!("tilestored [{out} + {stride}], tmm0", "tilestored [{out} + {stride} + 64], tmm1",
            out = in(reg) out, stride = in(reg) out_stride, options(nostack));
        if LOWER {
            asm!("tilestored [{out} + {stride}], tmm2", "tilestored [{out} + {stride} + 64], tmm3",
                out = in(reg) lower_out, stride = in(reg) out_stride, options(nostack));
        }
    }
    const { assert!(GROUP * size_of::<f32>() == 2 * LINE, "a row of a group is two rows of tile registers") };
}
