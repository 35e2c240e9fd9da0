//! The meaning of the products, with sixteen partial sums so that any processor runs it at a fair speed.

use super::{GROUP, PANEL, Tile, TileSums};
use crate::DType;
use crate::dequantize::scalar::decode;

/// Activation rows per tile.
pub(crate) const TILE_ROWS: usize = 1;
/// Partial sums of a dot product.
const LANES: usize = 16;

/// Dots four stored rows, at most a panel long, with one activation row.
pub(crate) fn dot4(dtype: DType, weights: [&[u8]; GROUP], _ahead: usize, x: &[f32]) -> [f32; GROUP] {
    let mut decoded = [0.0; PANEL];
    weights.map(|row| {
        decode(dtype, row, &mut decoded[..x.len()]);
        dot(&decoded[..x.len()], x)
    })
}

/// Dots four decoded rows with each activation row.
pub(crate) fn tile(tile: &Tile<'_>, sums: &mut TileSums) {
    let len = tile.checked_len();
    for (i, sums) in sums[..tile.num_rows].iter_mut().enumerate() {
        *sums = tile.weights.map(|row| dot(row, &tile.x[i * tile.stride..][..len]));
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (a_whole, a_rest) = a.as_chunks::<LANES>();
    let (b_whole, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_whole.iter().zip(b_whole) {
        for i in 0..LANES {
            lanes[i] += a[i] * b[i];
        }
    }
    for (lane, (a, b)) in lanes.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *lane += a * b;
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}
