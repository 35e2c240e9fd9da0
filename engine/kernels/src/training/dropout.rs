//! Dropout: zeros some elements and scales the others, by a mask that is a pure function of its key and the place.

/// Elements that share one mixed number, 16 bits each.
pub(super) const LANES: usize = 4;

/// Which elements are dropped.
///
/// **Meaning**: bits `16 i ..` of `mix(key ^ p)` decide about element `4 p + i`, which is dropped where they are below
/// `65 536 rate`; the others are divided by the share that stays.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mask {
    /// The share that is dropped, in `0..1`, in steps of 1/65 536.
    pub rate: f32,
    /// Tells masks apart.
    pub key: u64,
}

/// Mixes a number into one that looks random.
///
/// **Source**: Steele, Lea and Flood, 2014, SplitMix64.
#[inline]
pub fn mix(value: u64) -> u64 {
    let z = value.wrapping_add(MIX_STEP);
    let z = (z ^ (z >> 30)).wrapping_mul(FACTORS[0]);
    let z = (z ^ (z >> 27)).wrapping_mul(FACTORS[1]);
    z ^ (z >> 31)
}

/// Increment of SplitMix64: numbers that follow each other by it are mixed into the sequence of that generator.
pub const MIX_STEP: u64 = 0x9E37_79B9_7F4A_7C15;
/// Factors of SplitMix64.
pub(super) const FACTORS: [u64; 2] = [0xBF58_476D_1CE4_E5B9, 0x94D0_49BB_1331_11EB];

impl Mask {
    /// Sixteen bits below this drop an element.
    pub(super) fn limit(&self) -> u16 {
        (f64::from(self.rate) * 65536.0).round().min(65535.0) as u16
    }

    /// What the others are multiplied with.
    pub(super) fn keep(&self) -> f32 {
        65536.0 / (65536 - u32::from(self.limit())) as f32
    }
}

/// Some elements of a tensor; the first is at place `first`, a multiple of [`LANES`].
pub(super) struct Masked<'a> {
    pub(super) mask: &'a Mask,
    pub(super) first: usize,
    pub(super) x: &'a [f32],
    /// Whether they are added to the output.
    pub(super) add: bool,
}

/// Writes or adds masked elements.
#[inline(always)]
pub(super) fn scalar(masked: &Masked<'_>, out: &mut [f32]) {
    let Masked { mask, first, x, add } = *masked;
    let (limit, keep) = (mask.limit(), mask.keep());
    for (place, (x, out)) in x.chunks(LANES).zip(out.chunks_mut(LANES)).enumerate() {
        let mut bits = mix(mask.key ^ (first / LANES + place) as u64);
        for (x, out) in x.iter().zip(out) {
            let value = if (bits as u16) < limit { 0.0 } else { x * keep };
            *out = if add { *out + value } else { value };
            bits >>= 16;
        }
    }
}
