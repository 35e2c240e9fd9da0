//! Block formats against hand-derived values, against the `gguf` package, and every instruction set against scalar.

use half::f16;
use proptest::prelude::*;

use crate::samples::{available_isas, scale_offsets};
use crate::table::Table;
use crate::{DType, Isa};

fn decode(isa: Isa, dtype: DType, src: &[u8], out: &mut [f32]) {
    assert!(isa.is_available());
    // SAFETY: the processor has the instruction set.
    unsafe { (Table::of(isa).decode)(dtype, src, out) }
}

/// A block with the given half-precision numbers and the remaining bytes `fill`.
fn block(dtype: DType, scales: &[f32], fill: u8) -> Vec<u8> {
    let mut block = vec![fill; dtype.block_bytes()];
    for (&at, &scale) in scale_offsets(dtype).iter().zip(scales) {
        block[at..at + 2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
    }
    block
}

/// First, last and number of distinct values of one block, derived by hand from the layout.
#[test]
fn blocks_decode_to_hand_derived_values() {
    let cases: [(DType, &[f32], u8, f32, f32); 10] = [
        // Nibbles 3 (first half) and 10 (second half): (3 - 8) * 2 and (10 - 8) * 2.
        (DType::Q4_0, &[2.0], 0xA3, -10.0, 4.0),
        // 3 * 2 + 0.5 and 10 * 2 + 0.5.
        (DType::Q4_1, &[2.0, 0.5], 0xA3, 6.5, 20.5),
        // Fifth bits come from 0xA3 too: bit 0 is 1, bit 31 is 1: (3 + 16 - 16) * 2 and (10 + 16 - 16) * 2.
        (DType::Q5_0, &[2.0], 0xA3, 6.0, 20.0),
        (DType::Q5_1, &[2.0, 0.5], 0xA3, 38.5, 52.5),
        // 0xA3 is -93.
        (DType::Q8_0, &[2.0], 0xA3, -186.0, -186.0),
        // Scale 3, minimum 10, low pair 3, high pair 2: 2 * 3 * 3 - 0.5 * 10 and 2 * 3 * 2 - 5.
        (DType::Q2K, &[2.0, 0.5], 0xA3, 13.0, 7.0),
        // Scale 0: low 3, high bits of 0xA3 are 3: 51 - 32 = 19; weight 3, high bit 1: 3. Scale 15: low 10, high 2:
        // 42 - 32 = 10; pair 2, high bit 1: 2.
        (DType::Q3K, &[2.0], 0xA3, 114.0, 40.0),
        // Part 0: 0xA3 & 63 = 35 for both: 2 * 35 * 3 - 0.5 * 35. Part 7: scale 3 | 2 << 4 = 35, minimum 10 | 2 << 4
        // = 42: 2 * 35 * 10 - 0.5 * 42.
        (DType::Q4K, &[2.0, 0.5], 0xA3, 192.5, 679.0),
        // With fifth bits 1 (bit 0) and 1 (bit 7): 2 * 35 * 19 - 17.5 and 2 * 35 * 26 - 21.
        (DType::Q5K, &[2.0, 0.5], 0xA3, 1312.5, 1799.0),
        // Scale -93; 3 | 3 << 4 = 51 - 32 = 19 and 10 | 2 << 4 = 42 - 32 = 10.
        (DType::Q6K, &[2.0], 0xA3, -3534.0, -1860.0),
    ];
    for (dtype, scales, fill, first, last) in cases {
        let mut out = vec![0.0; dtype.block_len()];
        decode(Isa::Scalar, dtype, &block(dtype, scales, fill), &mut out);
        assert_eq!((out[0], out[out.len() - 1]), (first, last), "{dtype}");
    }
}

/// Values of two blocks of patterned bytes, from `gguf.quants.dequantize` of the PyPI package `gguf` 0.19.0: the first,
/// second, eighteenth, the last of the first block and the last of all, then `sum((i + 1) * value[i])` in double precision.
const GGUF_VALUES: [(DType, [u32; 5], f64); 10] = [
    (DType::Q4_0, [0xbdb05000, 0xbd7be000, 0xbc498000, 0x3cc98000, 0x3d498000], -13.540740966796875),
    (DType::Q4_1, [0xbe3e1800, 0xbe574800, 0xbe574800, 0xbe7d1000, 0xbe7d1000], -593.6419372558594),
    (DType::Q5_0, [0x3e23b800, 0xbc498000, 0x3d172000, 0x3dfbe000, 0xbe3ce800], -25.863922119140625),
    (DType::Q5_1, [0xbe0bb800, 0xbd805000, 0xbebd8000, 0xbea45000, 0xbeb73400], -367.2987976074219),
    (DType::Q8_0, [0x3f7f0600, 0x3fb50900, 0xbf90d400, 0xbfc1a100, 0x3f9d6c00], -64.6905517578125),
    (DType::Q2K, [0x3e8a8800, 0x3e8a8800, 0x3f8fb300, 0x409f7a80, 0x3ff65200], 328317.34298706055),
    (DType::Q3K, [0xbf209200, 0xbe561800, 0x3f0a8800, 0x3f8a8800, 0xbe8a8800], -3306.8555603027344),
    (DType::Q4K, [0x41abab60, 0x419fdce0, 0x419e6310, 0x41bce1c0, 0x41b1a5a0], 1649932.421447754),
    (DType::Q5K, [0x419fdce0, 0x41abab60, 0x41b018d0, 0x41b80f90, 0x41379400], 2112480.189147949),
    (DType::Q6K, [0x40133080, 0x40637980, 0x4208dbd0, 0x417465c0, 0xc1679b60], -88153.91326904297),
];

#[test]
fn blocks_decode_as_in_the_gguf_package() {
    for (dtype, expected, checksum) in GGUF_VALUES {
        let mut bytes: Vec<u8> =
            (0..2 * dtype.block_bytes()).map(|i| (((i * 37 + 11) % 256) ^ (i * i % 251)) as u8).collect();
        for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
            for (&at, scale) in scale_offsets(dtype).iter().zip([0.0123, -0.37]) {
                block[at..at + 2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
            }
        }
        for isa in available_isas() {
            let mut out = vec![0.0; 2 * dtype.block_len()];
            decode(isa, dtype, &bytes, &mut out);
            let found = [0, 1, 17, dtype.block_len() - 1, out.len() - 1].map(|i| out[i].to_bits());
            assert_eq!(found, expected, "{dtype} on {isa}");
            let sum: f64 = out.iter().enumerate().map(|(i, &value)| f64::from(value) * (i + 1) as f64).sum();
            assert_eq!(sum, checksum, "{dtype} on {isa}");
        }
    }
}

#[test]
fn floats_decode_exactly() {
    let values = [0.0, -0.0, 1.5, -65504.0, 6e-8, f32::INFINITY];
    for isa in available_isas() {
        let mut out = [0.0; 6];
        let halves: Vec<u8> = values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect();
        decode(isa, DType::F16, &halves, &mut out);
        assert_eq!(out.map(f32::to_bits), values.map(|v| f16::from_f32(v).to_f32().to_bits()));
        let upper: Vec<u8> = values.iter().flat_map(|v| ((v.to_bits() >> 16) as u16).to_le_bytes()).collect();
        decode(isa, DType::Bf16, &upper, &mut out);
        assert_eq!(out.map(f32::to_bits), values.map(|v| v.to_bits() & 0xFFFF_0000));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any bytes at any address, infinite and NaN scales included: the same bits as scalar, or NaN where it is NaN.
    #[test]
    fn every_isa_decodes_the_bits_of_scalar(
        (dtype, len) in (proptest::sample::select(DType::ALL.to_vec()), 0_usize..100)
            .prop_map(|(dtype, n)| (dtype, if dtype.block_len() == 1 { n } else { n % 4 * dtype.block_len() })),
        offset in 0_usize..4,
        bytes in proptest::collection::vec(any::<u8>(), 900),
    ) {
        let src = &bytes[offset..][..dtype.row_bytes(len).unwrap()];
        let mut expected = vec![0.0; len];
        decode(Isa::Scalar, dtype, src, &mut expected);
        for isa in available_isas() {
            let mut out = vec![7.0; len + 2];
            decode(isa, dtype, src, &mut out[1..=len]);
            prop_assert!(out[0] == 7.0 && out[len + 1] == 7.0);
            for (i, (found, expected)) in out[1..=len].iter().zip(&expected).enumerate() {
                let same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
                prop_assert!(same, "{} on {}: value {} is {} not {}", dtype, isa, i, found, expected);
            }
        }
    }
}
