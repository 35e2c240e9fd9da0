//! Packing: from the blocks of a file to tiles.

use std::array::from_fn;
use std::sync::Arc;

use super::{Format, PackedMatrix, SUPER, Scales, TILE};
use crate::dequantize::{bytes_at, scale_min_k4, scale_q3k};
use crate::huge_pages::HugePages;
use crate::quantized::BLOCK;
use crate::shared::SharedMut;
use crate::{DType, Matrix, Pool};

/// Bytes of a vector of codes.
const VECTOR: usize = 64;
/// Columns of a row in a vector of codes.
const STEP: usize = 4;
/// Weights that are worth a task.
const TASK_WEIGHTS: usize = 1 << 16;

/// The unsigned codes of one block of one row.
type Codes = [u8; BLOCK];

pub(super) fn pack_all(matrices: &[&Matrix], pool: &Pool) -> Vec<Option<PackedMatrix>> {
    let mut len = 0;
    let formats: Vec<Option<(Format, usize)>> = matrices
        .iter()
        .map(|matrix| {
            let format = Format::of(matrix.dtype())?;
            let (scales, codes) = format.tile_bytes(matrix.cols() / BLOCK);
            let start = len;
            len += matrix.rows().div_ceil(TILE) * (scales + codes);
            Some((format, start))
        })
        .collect();
    let mut data = HugePages::zeroed(len);
    for (matrix, place) in matrices.iter().zip(&formats) {
        if let Some((format, start)) = *place {
            pack_matrix(matrix, format, &mut data.as_mut_slice()[start..], pool);
        }
    }
    let data = Arc::new(data);
    let packed = |(matrix, place): (&&Matrix, Option<(Format, usize)>)| {
        let (format, start) = place?;
        let (rows, cols) = (matrix.rows(), matrix.cols());
        let (scales, codes) = format.tile_bytes(cols / BLOCK);
        let range = start..start + rows.div_ceil(TILE) * (scales + codes);
        Some(PackedMatrix { dtype: matrix.dtype(), format, rows, cols, data: Arc::clone(&data), range })
    };
    matrices.iter().zip(formats).map(packed).collect()
}

fn pack_matrix(matrix: &Matrix, format: Format, out: &mut [u8], pool: &Pool) {
    let blocks = matrix.cols() / BLOCK;
    let (scales_len, codes_len) = format.tile_bytes(blocks);
    let (num_tiles, tile_len) = (matrix.rows().div_ceil(TILE), scales_len + codes_len);
    let task_tiles = TASK_WEIGHTS.div_ceil((TILE * matrix.cols()).max(1));
    let out = SharedMut::new(&mut out[..num_tiles * tile_len]);
    pool.run(num_tiles.div_ceil(task_tiles), |task| {
        for tile in task * task_tiles..num_tiles.min((task + 1) * task_tiles) {
            // SAFETY: every tile is packed by one task.
            let out = unsafe { out.part(tile * tile_len..(tile + 1) * tile_len) };
            let (scales, codes) = out.split_at_mut(scales_len);
            for row in 0..TILE.min(matrix.rows() - tile * TILE) {
                let stored = matrix.row_bytes(tile * TILE + row);
                pack_row(matrix.dtype(), format, stored, row, (scales, codes));
            }
        }
    });
}

/// Packs one row of a tile.
fn pack_row(dtype: DType, format: Format, stored: &[u8], row: usize, (scales, codes): (&mut [u8], &mut [u8])) {
    let parts = dtype.block_len() / BLOCK;
    let code_blocks = codes.chunks_exact_mut(format.block_codes());
    let blocks = stored.chunks_exact(dtype.block_bytes());
    for (index, out) in code_blocks.enumerate() {
        let block = &stored[index / parts * dtype.block_bytes()..][..dtype.block_bytes()];
        pack_codes(format, &codes_of(format, block, index % parts), row, out);
    }
    for (index, block) in blocks.enumerate() {
        pack_scales(format, block, row, index, scales);
    }
}

#[inline(always)]
fn nibbles(packed: &[u8; 16]) -> Codes {
    from_fn(|i| if i < 16 { packed[i] & 0xF } else { packed[i - 16] >> 4 })
}

#[inline(always)]
fn with_fifth_bits(codes: Codes, packed: &[u8; 4]) -> Codes {
    let bits = u32::from_le_bytes(*packed);
    from_fn(|i| codes[i] | ((bits >> i & 1) as u8) << 4)
}

/// The codes of part `part` of a stored block; the layouts are those of `dequantize::scalar`.
#[inline(always)]
fn codes_of(format: Format, block: &[u8], part: usize) -> Codes {
    let (half, quarter) = (part / 4, part % 4);
    let nibbles_k = |at: usize| -> Codes {
        let packed: &Codes = bytes_at(block, at + 32 * (part / 2));
        let shift = 4 * (part % 2);
        from_fn(|i| packed[i] >> shift & 0xF)
    };
    match format {
        Format::Q4_0 => nibbles(bytes_at(block, 2)),
        Format::Q4_1 => nibbles(bytes_at(block, 4)),
        Format::Q5_0 => with_fifth_bits(nibbles(bytes_at(block, 6)), bytes_at(block, 2)),
        Format::Q5_1 => with_fifth_bits(nibbles(bytes_at(block, 8)), bytes_at(block, 4)),
        Format::Q8_0 => bytes_at::<BLOCK>(block, 2).map(|code| code ^ 0x80),
        Format::Q3K => {
            let (high, low): (&Codes, &Codes) = (bytes_at(block, 0), bytes_at(block, 32 + 32 * half));
            from_fn(|i| (low[i] >> (2 * quarter) & 3) | (high[i] >> part & 1) << 2)
        }
        Format::Q4K => nibbles_k(16),
        Format::Q5K => {
            let (codes, high): (Codes, &Codes) = (nibbles_k(48), bytes_at(block, 16));
            from_fn(|i| codes[i] | (high[i] >> part & 1) << 4)
        }
        Format::Q6K => {
            let low: &Codes = bytes_at(block, 64 * half + 32 * (quarter % 2));
            let high: &Codes = bytes_at(block, 128 + 32 * half);
            let (low_shift, high_shift) = (4 * (quarter / 2), 2 * quarter);
            from_fn(|i| (low[i] >> low_shift & 0xF) | (high[i] >> high_shift & 3) << 4)
        }
    }
}

/// Spreads the codes of a row over the vectors of a block.
#[inline(always)]
fn pack_codes(format: Format, codes: &Codes, row: usize, out: &mut [u8]) {
    let mut put = |vector: usize, bytes: [u8; STEP]| {
        let at = vector * VECTOR + row * STEP;
        out[at..at + STEP].copy_from_slice(&bytes);
    };
    let step = |g: usize| -> [u8; STEP] { *bytes_at(codes, g * STEP) };
    if format.bits() == 8 {
        (0..8).for_each(|g| put(g, step(g)));
        return;
    }
    let low: [u8; 16] = from_fn(|i| (codes[i] & 0xF) | codes[i + 16] << 4);
    (0..4).for_each(|g| put(g, *bytes_at(&low, g * STEP)));
    let high = |g: usize| u32::from_le_bytes(step(g)) >> 4 & 0x0303_0303;
    match format.bits() {
        5 => put(4, (0..8).fold(0, |bits, g| bits | high(g) << g).to_le_bytes()),
        6 => {
            put(4, (0..4).fold(0, |bits, g| bits | high(g) << (2 * g)).to_le_bytes());
            put(5, (0..4).fold(0, |bits, g| bits | high(g + 4) << (2 * g)).to_le_bytes());
        }
        _ => {}
    }
}

/// Puts the scales of stored block `index` of a row where the kernels look for them.
#[inline(always)]
fn pack_scales(format: Format, block: &[u8], row: usize, index: usize, out: &mut [u8]) {
    let put_half = |out: &mut [u8], at: usize, from: usize| {
        out[at + 2 * row..at + 2 * row + 2].copy_from_slice(&block[from..from + 2]);
    };
    match format.scales() {
        Scales::Half => put_half(out, index * 2 * TILE, 0),
        Scales::HalfMin => {
            put_half(out, index * 4 * TILE, 0);
            put_half(out, index * 4 * TILE + 2 * TILE, 2);
        }
        Scales::SuperMin => {
            let start = index * (4 * TILE + SUPER * 2 * TILE);
            put_half(out, start, 0);
            put_half(out, start + 2 * TILE, 2);
            // What is stored is subtracted; the kernels add.
            out[start + 2 * TILE + 2 * row + 1] ^= 0x80;
            for part in 0..SUPER {
                let (scale, min) = scale_min_k4(bytes_at(block, 4), part);
                let at = start + 4 * TILE + part * 2 * TILE + row;
                (out[at], out[at + TILE]) = (scale, min);
            }
        }
        Scales::SuperHalves => {
            let start = index * (2 * TILE + SUPER * 2 * TILE);
            let (from, is_q3) = if format == Format::Q3K { (108, true) } else { (208, false) };
            put_half(out, start, from);
            for half in 0..2 * SUPER {
                let scale = if is_q3 { scale_q3k(bytes_at(block, 96), half) as u8 } else { block[192 + half] };
                out[start + 2 * TILE + half * TILE + row] = scale;
            }
        }
    }
}
