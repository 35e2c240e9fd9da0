//! The encoders against the `gguf` package's bytes, against their own decoders, and on numbers that are hard.

use proptest::prelude::*;

use super::*;

/// Bytes of three blocks (a coarse grid, irregular fractions, zeros) from `gguf.quants.quantize` of the PyPI package `gguf`
/// 0.19.0.
const GGUF_BYTES: [(DType, &str); 5] = [
    (
        DType::Q8_0,
        "d023ae46d76f009129ba52e37b0c9e35c75ef08119aa42d36bfc8d25b64edf77089a1310815e370fe8c099764e27ffd8b089663e17efc8a07d562e07dfb8906d461ef7cf00000000000000000000000000000000000000000000000000000000000000000000",
    ),
    (
        DType::Q4_0,
        "c033730ca53fc851fb841da63fd962fb942e0b20907e4b29f6d4b18f6d3a18f5c3a07e5c008088888888888888888888888888888888",
    ),
    (
        DType::Q4_1,
        "1134c0bf730c952ec851ea731da63fc862fb841d4a200bac907d4b28f6d4a18f6c3a17e5c3907e5b0000000000000000000000000000000000000000",
    ),
    (
        DType::Q5_0,
        "c02f5aad546ae6093b5e80a2d5f72a5c7fa2c4f7193c0b1c8ec7f13830ec9742fdb8631fca7520eb9641fda80080ffffffff00000000000000000000000000000000",
    ),
    (
        DType::Q5_1,
        "df2fc0bf5aad546ae6083b5d80a2d5f72a4c7f91c4e6193b261c0bac8ec3f13820eb9641fda8530ec9742fdb8631eca7000000000000000000000000000000000000000000000000",
    ),
];

fn golden_values() -> Vec<f32> {
    let coarse = (0..32).map(|i| ((i * 37 + 11) % 64 - 31) as f32 / 16.0);
    let irregular = (0..32).map(|i| ((i * 7919 + 13) % 1009 - 504) as f32 / 7770.0);
    coarse.chain(irregular).chain([0.0; 32]).collect()
}

fn encode(dtype: DType, values: &[f32]) -> Result<Matrix, Fault> {
    let matrix = Matrix::from_f32(1, values.len(), values).unwrap();
    crate::quantize::quantize_matrix(&matrix, dtype, 1)
}

fn round_trip(dtype: DType, values: &[f32]) -> Vec<f32> {
    let mut decoded = vec![0.0; values.len()];
    encode(dtype, values).unwrap().dequantize_row(0, &mut decoded);
    decoded
}

#[test]
fn small_blocks_are_the_bytes_of_the_gguf_package() {
    for (dtype, expected) in GGUF_BYTES {
        let found: String =
            encode(dtype, &golden_values()[..]).unwrap().row_bytes(0).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(found, expected, "{dtype}");
    }
}

const BLOCK_FORMATS: [DType; 8] =
    [DType::Q8_0, DType::Q4_0, DType::Q4_1, DType::Q5_0, DType::Q5_1, DType::Q4K, DType::Q5K, DType::Q6K];

/// How far a decoded weight may lie from the weight, for a block whose farthest weight is `far` and whose range is `range`.
///
/// The 32-weight formats round to half a step, or a whole one at the end that has one level less; halves add `2^-11` of what
/// they hold. In the K formats the extremes alone would be within half a step of the widest sub-block; the search lowers
/// the weighted sum of squares, so one weight of 32 can get worse by `sqrt(32)` times that at most, which is below 3 steps.
fn bound(dtype: DType, far: f32, range: f32) -> f32 {
    let halves = (far + range) / 2048.0;
    let (error, multiple) = match dtype {
        DType::Q8_0 => (far / 127.0 * 0.5, 127.0),
        DType::Q4_0 => (far / 8.0, 8.0),
        DType::Q5_0 => (far / 16.0, 16.0),
        DType::Q4_1 => (range / 15.0 * 0.5, 16.0),
        DType::Q5_1 => (range / 31.0 * 0.5, 32.0),
        DType::Q4K => (3.0 * range.max(far) / 15.0, 63.0 * 16.0),
        DType::Q5K => (3.0 * range.max(far) / 31.0, 63.0 * 32.0),
        _ => (3.0 * far / 32.0, 128.0 * 32.0),
    };
    // The smallest halves are `2^-24` apart, and a weight is up to so many times the half that is stored.
    error * 1.001 + halves + multiple * 2f32.powi(-25)
}

fn assert_bounded(values: &[f32]) {
    for dtype in BLOCK_FORMATS {
        let decoded = round_trip(dtype, values);
        for (block, decoded) in values.chunks(dtype.block_len()).zip(decoded.chunks(dtype.block_len())) {
            let far = block.iter().fold(0.0f32, |far, v| far.max(v.abs()));
            let max = block.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let range = max - block.iter().copied().fold(f32::INFINITY, f32::min);
            for (value, found) in block.iter().zip(decoded) {
                let bound = bound(dtype, far, range);
                assert!((value - found).abs() <= bound, "{dtype}: {value} became {found}, bound {bound}");
            }
        }
    }
}

#[test]
fn zeros_stay_zeros() {
    for dtype in BLOCK_FORMATS {
        assert!(round_trip(dtype, &[0.0; 256]).iter().all(|&value| value == 0.0), "{dtype}");
    }
}

#[test]
fn extremes_are_bounded() {
    let alternating: Vec<f32> = (0..256).map(|i| if i % 2 == 0 { WEIGHT_MAX } else { -WEIGHT_MAX }).collect();
    assert_bounded(&alternating);
    assert_bounded(&[WEIGHT_MAX; 256]);
    assert_bounded(&[-WEIGHT_MAX; 256]);
    assert_bounded(&[1e-3; 256]);
    assert_bounded(&[f32::from_bits(1); 256]);
    assert_bounded(&[-f32::MIN_POSITIVE; 256]);
    let mut outlier = [1e-6; 256];
    outlier[77] = -9000.0;
    assert_bounded(&outlier);
}

#[test]
fn what_is_no_number_or_too_large_is_placed() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 65_505.0] {
        for dtype in BLOCK_FORMATS.into_iter().chain([DType::F16]) {
            let mut values = vec![1.0; 256];
            values[200] = value;
            let fault = encode(dtype, &values).unwrap_err();
            assert_eq!((fault.row, fault.col, fault.value.to_bits()), (0, 200, value.to_bits()), "{dtype}");
        }
    }
}

#[test]
fn threads_and_ranges_change_nothing() {
    let values: Vec<f32> = (0..7 * 256).map(|i| ((i * 7919 % 1009) as f32 - 504.0) / 500.0).collect();
    let matrix = Matrix::from_f32(7, 256, &values).unwrap();
    for dtype in [DType::Q4K, DType::Q8_0, DType::F32, DType::Bf16] {
        let rows = Rows { matrix: &matrix, order: RowOrder::Interleaved { head_dim: 7 }, dtype, num_threads: 1 };
        let mut whole = Vec::new();
        rows.encode(0..7, &mut whole).unwrap();
        let mut parts = Vec::new();
        for range in [0..1, 1..1, 1..6, 6..7] {
            Rows { num_threads: 3, ..rows }.encode(range, &mut parts).unwrap();
        }
        assert!(whole == parts, "{dtype}");
    }
}

#[test]
fn interleaving_joins_the_halves_of_each_head() {
    let order = RowOrder::Interleaved { head_dim: 4 };
    assert_eq!((0..8).map(|row| order.source(row)).collect::<Vec<_>>(), [0, 2, 1, 3, 4, 6, 5, 7]);
}

/// Root of the mean square over that of the weights, for weights like those of a trained matrix: mostly near zero, with tails.
#[test]
fn the_search_beats_plain_rounding() {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    let values: Vec<f32> = (0..64 * 256).map(|_| (0..4).map(|_| uniform()).sum::<f32>() * 0.05).collect();
    let error = |dtype: DType| {
        let squares = values.iter().zip(round_trip(dtype, &values)).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
        (squares / values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>()).sqrt()
    };
    assert!(error(DType::Q4K) < 0.93 * error(DType::Q4_0));
    assert!(error(DType::Q5K) < 0.93 * error(DType::Q5_0));
    assert!(error(DType::Q6K) < 0.55 * error(DType::Q5_0));
    assert!(error(DType::Q6K) > error(DType::Q8_0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn decoded_weights_are_near(
        values in proptest::collection::vec(-1.0f32..1.0, 256),
        exponent in -20i32..16,
        shift in -1.0f32..1.0,
    ) {
        let scale = 2f32.powi(exponent);
        assert_bounded(&values.iter().map(|value| (value + shift) * 0.5 * scale).collect::<Vec<_>>());
    }
}
