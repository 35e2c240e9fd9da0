//! Activations as 8-bit integers: what packed weights are multiplied with.
//!
//! Each row is cut into blocks of 32. With `a` the largest magnitude of a block, its scale is `d = a / 127` (in `f32`)
//! and its integers are `q = round(x * (127 / a))`, ties to even, so `|q| <= 127`, and `|x - d q| <= d / 2` up to a
//! rounding of `f32`: at most `a / 254`, half a step. A block whose largest magnitude is below [`SMALLEST`] becomes
//! zeros; one that holds an infinity or a NaN gets the scale NaN, which reaches every output of its row. All
//! instruction sets give the same bits.
//!
//! **Layout.** Rows are in *groups* that a product multiplies together, as equal in size as can be. Within a group of
//! `g` rows the order is block, row: block `b` of row `i` is at `first_row * blocks + b * g + i`. So the product walks
//! one pointer, with constant offsets to its rows.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
mod run;
pub(crate) mod scalar;
#[cfg(test)]
mod tests;

use std::ops::Range;

use crate::Buffer;

pub(crate) use run::run;

/// Values per block.
pub(crate) const BLOCK: usize = 32;
/// The largest integer.
pub(crate) const QUANT_MAX: f32 = 127.0;
/// Bits of the smallest magnitude that counts, 1e-35: for less, `127 / a` could overflow.
pub(crate) const SMALLEST: u32 = 1e-35_f32.to_bits();
/// Bits of infinity; magnitudes from here on are not finite.
pub(crate) const INFINITE: u32 = f32::INFINITY.to_bits();

/// Rows of quantized activations, reused from step to step; it grows to the largest shape it has held.
#[derive(Default)]
pub struct Quantized {
    rows: usize,
    cols: usize,
    group_max: usize,
    values: Buffer<[i8; BLOCK]>,
    meta: Meta<Buffer, Buffer<i32>, Buffer<[i32; 2]>>,
}

/// What belongs to the blocks, each in its own array.
#[derive(Clone, Copy, Default)]
pub(crate) struct Meta<F, I, H> {
    /// `d`.
    pub(crate) scales: F,
    /// `d` times the sum of the integers, for weights with a minimum.
    pub(crate) scaled_sums: F,
    /// Minus the sum of the integers, for weights with an offset.
    pub(crate) negative_sums: I,
    /// The same of each half block.
    pub(crate) negative_half_sums: H,
}

/// One group of rows.
#[derive(Clone, Copy)]
pub(crate) struct Group<'a> {
    pub(crate) rows: usize,
    pub(crate) values: &'a [[i8; BLOCK]],
    pub(crate) meta: Meta<&'a [f32], &'a [i32], &'a [[i32; 2]]>,
}

impl Quantized {
    /// Holds nothing yet.
    pub fn new() -> Quantized {
        Quantized::default()
    }

    /// Reserves memory for that many rows and columns, so that later use does not allocate.
    pub fn reserve(&mut self, rows: usize, cols: usize) {
        let (before_rows, before_cols) = (self.rows, self.cols);
        self.resize(rows.max(before_rows), cols.max(before_cols), self.group_max);
        (self.rows, self.cols) = (before_rows, before_cols);
    }

    /// Number of rows held.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns held.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Takes a shape; what it held is gone.
    pub(crate) fn resize(&mut self, rows: usize, cols: usize, group_max: usize) {
        assert!(cols.is_multiple_of(BLOCK), "{cols} columns are not whole blocks of {BLOCK}");
        (self.rows, self.cols, self.group_max) = (rows, cols, group_max);
        let len = rows * cols / BLOCK;
        if self.values.len() < len {
            self.values.fit(len);
            self.meta.scales.fit(len);
            self.meta.scaled_sums.fit(len);
            self.meta.negative_sums.fit(len);
            self.meta.negative_half_sums.fit(len);
        }
    }

    pub(crate) fn num_groups(&self) -> usize {
        self.rows.div_ceil(self.group_max.max(1))
    }

    /// The rows of group `index`.
    pub(crate) fn group_rows(&self, index: usize) -> Range<usize> {
        let num_groups = self.num_groups();
        let (least, larger) = (self.rows / num_groups, self.rows % num_groups);
        let start = |index: usize| index * least + index.min(larger);
        start(index)..start(index + 1)
    }

    pub(crate) fn group(&self, index: usize) -> Group<'_> {
        let rows = self.group_rows(index);
        let blocks = self.cols / BLOCK;
        let range = rows.start * blocks..rows.end * blocks;
        let meta = Meta {
            scales: &self.meta.scales[range.clone()],
            scaled_sums: &self.meta.scaled_sums[range.clone()],
            negative_sums: &self.meta.negative_sums[range.clone()],
            negative_half_sums: &self.meta.negative_half_sums[range.clone()],
        };
        Group { rows: rows.len(), values: &self.values[range], meta }
    }

    /// Hands out rows to be written by several threads.
    pub(crate) fn writer(&mut self) -> Writer<'_> {
        let meta = Meta {
            scales: self.meta.scales.as_mut_ptr(),
            scaled_sums: self.meta.scaled_sums.as_mut_ptr(),
            negative_sums: self.meta.negative_sums.as_mut_ptr(),
            negative_half_sums: self.meta.negative_half_sums.as_mut_ptr(),
        };
        Writer { values: self.values.as_mut_ptr(), meta: SinkMeta(meta), of: self }
    }
}

#[derive(Clone, Copy)]
struct SinkMeta(Meta<*mut f32, *mut i32, *mut [i32; 2]>);

/// Quantized activations of which tasks write different rows.
pub(crate) struct Writer<'a> {
    values: *mut [i8; BLOCK],
    meta: SinkMeta,
    of: &'a Quantized,
}

// SAFETY: the only access is through sinks, whose contract is that they are of different rows.
unsafe impl Sync for Writer<'_> {}

impl Writer<'_> {
    /// As [`Quantized::group_rows`].
    pub(crate) fn group_rows(&self, index: usize) -> Range<usize> {
        self.of.group_rows(index)
    }

    /// Where the blocks of a row go.
    ///
    /// # Safety
    /// No other sink of the same row is alive.
    pub(crate) unsafe fn sink(&self, group: usize, row: usize) -> Sink<'_> {
        let rows = self.of.group_rows(group);
        assert!(rows.contains(&row) && rows.end <= self.of.rows, "row {row} is not in group {group}");
        let blocks = self.of.cols / BLOCK;
        let first = rows.start * blocks + row - rows.start;
        Sink { writer: self, first, stride: rows.len(), blocks }
    }
}

/// Where the blocks of one row go.
pub(crate) struct Sink<'a> {
    writer: &'a Writer<'a>,
    first: usize,
    stride: usize,
    blocks: usize,
}

impl Sink<'_> {
    /// The integers of a block, to be written.
    #[inline(always)]
    pub(crate) fn values(&mut self, block: usize) -> &mut [i8; BLOCK] {
        assert!(block < self.blocks, "block {block} of {}", self.blocks);
        // SAFETY: the block is one of the row, all of which lie in the vector; this sink alone is of that row.
        unsafe { &mut *self.writer.values.add(self.first + block * self.stride) }
    }

    /// Notes the scale of a block and the sums of the halves of its integers.
    #[inline(always)]
    pub(crate) fn finish(&mut self, block: usize, scale: f32, half_sums: [i32; 2]) {
        assert!(block < self.blocks, "block {block} of {}", self.blocks);
        let (at, sum) = (self.first + block * self.stride, half_sums[0] + half_sums[1]);
        let meta = &self.writer.meta.0;
        // SAFETY: as in `values`; the vectors of `meta` are as long.
        unsafe {
            *meta.scales.add(at) = scale;
            *meta.scaled_sums.add(at) = scale * sum as f32;
            *meta.negative_sums.add(at) = -sum;
            *meta.negative_half_sums.add(at) = [-half_sums[0], -half_sums[1]];
        }
    }
}

/// Scale and factor of a block, from the bits of its largest magnitude.
#[inline(always)]
pub(crate) fn scale_and_factor(largest: u32) -> (f32, f32) {
    match largest {
        ..SMALLEST => (0.0, 0.0),
        SMALLEST..INFINITE => (f32::from_bits(largest) / QUANT_MAX, QUANT_MAX / f32::from_bits(largest)),
        INFINITE.. => (f32::NAN, 0.0),
    }
}
