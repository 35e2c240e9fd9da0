//! All the packed scales of a K block at once, by arithmetic on whole words: what the vector decoders start with.

use super::bytes_at;

const SIX_BITS: u32 = 0x3F3F_3F3F;
const FOUR_BITS: u32 = 0x0F0F_0F0F;
const TWO_BITS: u32 = 0x0303_0303;

/// As `scale_min_k4`, all eight scales and all eight minimums at once, a byte each.
#[inline(always)]
pub(super) fn scales_mins_k4(packed: &[u8; 12]) -> [u64; 2] {
    let [first, second, third] = words(packed);
    let late = |low: u32, high: u32| (low & FOUR_BITS) | ((high >> 6) & TWO_BITS) << 4;
    let both = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    [both(first & SIX_BITS, late(third, first)), both(second & SIX_BITS, late(third >> 4, second))]
}

/// As `scale_q3k`, all sixteen scales at once, a byte each and with their offset.
#[inline(always)]
pub(super) fn scales_q3k(packed: &[u8; 12]) -> [u64; 2] {
    let [first, second, third] = words(packed);
    let scales = |low: u32, high: u32| u64::from((low & FOUR_BITS) | (high & TWO_BITS) << 4);
    let (early, late) = (scales(first, third), scales(first >> 4, third >> 4));
    [early | scales(second, third >> 2) << 32, late | scales(second >> 4, third >> 6) << 32]
}

#[inline(always)]
fn words(packed: &[u8; 12]) -> [u32; 3] {
    let word = |at| u32::from_le_bytes(*bytes_at(packed, at));
    [word(0), word(4), word(8)]
}
