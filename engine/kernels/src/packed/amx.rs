//! Integer products with AMX: the sums of sixteen activation rows and sixteen weight rows at once in a tile register.
//!
//! A *unit* is what shares a scale: a block, or half of one where halves have their own. Units are multiplied apart, so
//! that the floats that follow are those of every other instruction set: [`dots`] makes the integer sums of some units,
//! [`accumulate`] scales and adds them in order. The packed layout is that of the right factor of `tdpbsud` already:
//! a row of a tile register holds four columns of each of the sixteen weight rows. Codes of fewer than eight bits are
//! unpacked first.
//!
//! Groups too small to fill a tile register take the AVX-512 way, with the same bits.
//!
//! What that gains over AVX-512 depends on the processor, so [`is_faster`] measures it.

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::time::Instant;

use super::{Format, Scales, Sums, TILE, TileJob, avx512};
use crate::quantized::{BLOCK, Quantized};
use crate::tiles::{self, LINE, Shape};

/// Activation rows of a group: the rows of a tile register.
pub(crate) const GROUP_ROWS: usize = tiles::ROWS;
/// Groups below this size take the AVX-512 way, whose cost is by row: a tile register costs the same however full.
const GROUP_ROWS_MIN: usize = 5;
/// Units whose integer sums are made before they are scaled: codes and sums take 12 KiB of a first-level cache.
const UNITS: usize = 8;
/// Bytes of an activation row in a block: the distance of the rows of a left factor.
const X_STRIDE: usize = 32;
/// Bytes of the unpacked codes of a block.
const BLOCK_CODES: usize = 512;
/// Steps of four columns in half a block.
const HALF_STEPS: usize = 4;
/// Bytes between the codes in use and those that the caches are asked for.
const AHEAD: usize = 4096;

/// Integer sums of some units, unit by unit: activation row, weight row.
#[repr(align(64))]
struct Dots(MaybeUninit<[[[i32; TILE]; GROUP_ROWS]; UNITS]>);

impl Dots {
    /// The row of a unit, which is there once [`dots`] has made it.
    fn row(&self, unit: usize, row: usize) -> *const i32 {
        self.0.as_ptr().cast::<i32>().wrapping_add((unit * GROUP_ROWS + row) * TILE)
    }
}

/// Unpacked codes of some units.
#[repr(align(64))]
struct Codes(MaybeUninit<[u8; UNITS * BLOCK_CODES]>);

/// The shape of the units of a job.
#[derive(Clone, Copy)]
struct Units {
    /// Units of a block: 1 or 2.
    per_block: usize,
    /// Columns of a unit.
    cols: usize,
}

impl Units {
    const fn of(format: Format) -> Units {
        match format.scales() {
            Scales::SuperHalves => Units { per_block: 2, cols: 16 },
            _ => Units { per_block: 1, cols: 32 },
        }
    }
}

/// Whether tiles of full groups take clearly less time than the AVX-512 way, by the best of some runs of each; under a millisecond. One
/// format stands for all.
///
/// # Safety
/// The processor has AMX.
pub(crate) unsafe fn is_faster() -> bool {
    /// What this loop, with all its operands in a first-level cache, leaves out: where it found the two about equal, steps of 16 and 32
    /// sequences took 14 to 18 % longer with tile registers, and half of such a step are other things than products.
    const MARGIN: f64 = 1.3;
    // SAFETY: AMX includes AVX-512, and the rest is the caller's promise.
    unsafe { MARGIN * seconds_per_row(GROUP_ROWS, tile) < seconds_per_row(avx512::GROUP_ROWS, avx512::tile) }
}

/// The best time of a group of so many rows, by row.
///
/// # Safety
/// The processor has the instruction set of `tile`.
unsafe fn seconds_per_row(rows: usize, tile: unsafe fn(&TileJob<'_>, &mut Sums)) -> f64 {
    /// Blocks of the weights: 1,024 columns.
    const BLOCKS: usize = 32;
    const ROUNDS: usize = 20;
    let format = Format::Q4_0;
    let (scales_len, codes_len) = format.tile_bytes(BLOCKS);
    let (scales, codes) = (vec![0_u8; scales_len], vec![0_u8; codes_len]);
    let mut x = Quantized::new();
    x.resize(rows, BLOCKS * BLOCK, rows);
    let job = TileJob { format, scales: &scales, codes: &codes, blocks: BLOCKS, group: &x.group(0), fetch: false };
    let mut out: Sums = [[0.0; TILE]; super::GROUP_MAX];
    let seconds = (0..ROUNDS).map(|_| {
        let start = Instant::now();
        // SAFETY: the caller's promise.
        unsafe { tile(&job, &mut out) };
        start.elapsed().as_secs_f64()
    });
    seconds.fold(f64::INFINITY, f64::min) / rows as f64
}

/// As `scalar::tile`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(crate) fn tile(job: &TileJob<'_>, sums: &mut Sums) {
    if job.group.rows < GROUP_ROWS_MIN {
        return avx512::tile(job, sums);
    }
    job.check();
    match job.format {
        Format::Q4_0 => kernel::<{ Format::Q4_0 as usize }>(job, sums),
        Format::Q4_1 => kernel::<{ Format::Q4_1 as usize }>(job, sums),
        Format::Q5_0 => kernel::<{ Format::Q5_0 as usize }>(job, sums),
        Format::Q5_1 => kernel::<{ Format::Q5_1 as usize }>(job, sums),
        Format::Q8_0 => kernel::<{ Format::Q8_0 as usize }>(job, sums),
        Format::Q3K => kernel::<{ Format::Q3K as usize }>(job, sums),
        Format::Q4K => kernel::<{ Format::Q4K as usize }>(job, sums),
        Format::Q5K => kernel::<{ Format::Q5K as usize }>(job, sums),
        Format::Q6K => kernel::<{ Format::Q6K as usize }>(job, sums),
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn kernel<const FORMAT: usize>(job: &TileJob<'_>, sums: &mut Sums) {
    let units = const { Units::of(Format::ALL[FORMAT]) };
    let num_units = job.blocks * units.per_block;
    sums[..job.group.rows].fill([0.0; TILE]);
    let mut made = Dots(MaybeUninit::uninit());
    configure(job.group.rows, units);
    for first in (0..num_units).step_by(UNITS) {
        let num = UNITS.min(num_units - first);
        // SAFETY: `tile` has checked the lengths; the tile registers are configured for the job, and its instruction set is here.
        unsafe {
            dots::<FORMAT>(job, first, num, &mut made);
            accumulate::<FORMAT>(job, first..first + num, &made, sums);
        }
    }
    tiles::release();
}

/// Configures the tile registers of this thread: 0 for sums, 1 for activations, 2 for codes. Why so few, `tiles.rs` says.
fn configure(rows: usize, units: Units) {
    let sums = Shape { rows, bytes_per_row: LINE };
    let x = Shape { rows, bytes_per_row: units.cols };
    let codes = Shape { rows: units.cols / 4, bytes_per_row: LINE };
    tiles::configure(&[sums, x, codes]);
}

/// Makes the integer sums of `num` units from unit `first` on: those of the codes as stored, with their offset.
///
/// # Safety
/// The job is as long as it says and has these units, [`configure`] was called for it, and AVX-512 is available.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn dots<const FORMAT: usize>(job: &TileJob<'_>, first: usize, num: usize, out: &mut Dots) {
    let (format, units) = const { (Format::ALL[FORMAT], Units::of(Format::ALL[FORMAT])) };
    let (first_block, per_block) = (first / units.per_block, units.per_block);
    let mut unpacked = Codes(MaybeUninit::uninit());
    let mut codes = job.codes[first_block * format.block_codes()..].as_ptr();
    if job.fetch {
        for at in (0..num / per_block * format.block_codes()).step_by(LINE) {
            _mm_prefetch::<_MM_HINT_T0>(codes.wrapping_add(AHEAD + at).cast());
        }
    }
    if format.bits() < 8 {
        let out: *mut u8 = unpacked.0.as_mut_ptr().cast();
        for block in 0..num / per_block {
            // SAFETY: the caller's promise; there is room for the codes of all units.
            unsafe { unpack::<FORMAT>(codes.add(block * format.block_codes()), out.add(block * BLOCK_CODES)) };
        }
        codes = out;
    }
    let x = job.group.values[first_block * job.group.rows..].as_ptr().cast::<i8>();
    for unit in 0..num {
        let sums = out.0.as_mut_ptr().cast::<i32>().wrapping_add(unit * GROUP_ROWS * TILE);
        let (block, half) = (unit / per_block, unit % per_block);
        let x = x.wrapping_add(block * job.group.rows * X_STRIDE + half * units.cols);
        let codes = codes.wrapping_add(unit * (BLOCK_CODES / per_block));
        // SAFETY: the caller's promise: rows of activations and codes lie where the layouts of the group and the tile say.
        unsafe { multiply(x, codes, sums) };
    }
}

/// Unpacks the codes of a block: eight steps of four columns of each row.
///
/// # Safety
/// `codes` points to a block, and `out` has room for an unpacked one.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn unpack<const FORMAT: usize>(codes: *const u8, out: *mut u8) {
    for step in 0..HALF_STEPS {
        // SAFETY: the caller's promise; a step is a vector.
        unsafe {
            let halves = [avx512::weights::<FORMAT, 0>(codes, step), avx512::weights::<FORMAT, 1>(codes, step)];
            _mm512_storeu_si512(out.add(step * LINE).cast(), halves[0]);
            _mm512_storeu_si512(out.add((HALF_STEPS + step) * LINE).cast(), halves[1]);
        }
    }
}

/// Multiplies the activations and the codes of a unit.
///
/// # Safety
/// [`configure`] was called, the operands hold what its shapes say, and `sums` has [`GROUP_ROWS`] rows of [`TILE`].
#[inline(always)]
unsafe fn multiply(x: *const i8, codes: *const u8, sums: *mut i32) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tileloadd tmm1, [{x} + {x_stride}]",
            "tileloadd tmm2, [{codes} + {line}]",
            "tdpbsud tmm0, tmm1, tmm2",
            "tilestored [{sums} + {line}], tmm0",
            x = in(reg) x,
            codes = in(reg) codes,
            sums = in(reg) sums,
            x_stride = in(reg) X_STRIDE,
            line = in(reg) LINE,
            options(nostack),
        );
    }
}

/// Takes the offsets off the integer sums of some units, scales them and adds them in order.
///
/// # Safety
/// The job is as long as it says and has the units, whose sums [`dots`] has made.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn accumulate<const FORMAT: usize>(job: &TileJob<'_>, units: Range<usize>, dots: &Dots, sums: &mut Sums) {
    let mut row = 0;
    // SAFETY: the caller's promise; the rows stay below those of the group.
    unsafe {
        while row + 8 <= job.group.rows {
            accumulate_rows::<FORMAT, 8>(job, (units.clone(), row), dots, sums);
            row += 8;
        }
        while row + 2 <= job.group.rows {
            accumulate_rows::<FORMAT, 2>(job, (units.clone(), row), dots, sums);
            row += 2;
        }
        if row < job.group.rows {
            accumulate_rows::<FORMAT, 1>(job, (units.clone(), row), dots, sums);
        }
    }
}

/// # Safety
/// As [`accumulate`]; the group has `N` rows from `row` on.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn accumulate_rows<const FORMAT: usize, const N: usize>(
    job: &TileJob<'_>,
    (indices, row): (Range<usize>, usize),
    dots: &Dots,
    sums: &mut Sums,
) {
    let (format, units) = const { (Format::ALL[FORMAT], Units::of(Format::ALL[FORMAT])) };
    let meta = &job.group.meta;
    // SAFETY: a row of sums or dots is a vector; the caller's promise bounds the rest.
    unsafe {
        let mut acc: [__m512; N] = std::array::from_fn(|i| _mm512_loadu_ps(sums[row + i].as_ptr()));
        for (made, unit) in indices.enumerate() {
            let (block, half) = (unit / units.per_block, unit % units.per_block);
            let at = block * job.group.rows + row;
            let (scales, min) = avx512::scales::<FORMAT>(job.scales.as_ptr(), block);
            let mut totals = avx512::offsets::<FORMAT, N>(job, at, half);
            for (i, total) in totals.iter_mut().enumerate() {
                *total = _mm512_add_epi32(*total, _mm512_loadu_si512(dots.row(made, row + i).cast()));
            }
            avx512::add::<N>(&mut acc, &totals, scales[half], meta.scales.as_ptr().add(at));
            if matches!(format.scales(), Scales::HalfMin | Scales::SuperMin) {
                for (i, acc) in acc.iter_mut().enumerate() {
                    let sum = _mm512_set1_ps(*meta.scaled_sums.as_ptr().add(at + i));
                    *acc = _mm512_fmadd_ps(min, sum, *acc);
                }
            }
        }
        for (sums, acc) in sums[row..].iter_mut().zip(acc) {
            _mm512_storeu_ps(sums.as_mut_ptr(), acc);
        }
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use crate::quantized;
    use crate::samples::Random;
    use crate::source::Source;
    use crate::table::Table;
    use crate::tile_emulator::TileEmulator;
    use crate::{DType, Isa, Kernels, PackedMatrix};

    /// The integer sums of a job, made the plain way from the layout.
    fn expected(job: &TileJob<'_>, unit: usize, units: Units, row: usize, weight_row: usize) -> i32 {
        let (block, half) = (unit / units.per_block, unit % units.per_block);
        let codes = &job.codes[block * job.format.block_codes()..][..job.format.block_codes()];
        let x = &job.group.values[block * job.group.rows + row];
        (half * units.cols..(half + 1) * units.cols)
            .map(|col| super::super::scalar::code_of(job.format, codes, weight_row, col) * i32::from(x[col]))
            .sum()
    }

    fn check<const FORMAT: usize>(emulator: &TileEmulator, random: &mut Random, dtype: DType) {
        let units = Units::of(Format::ALL[FORMAT]);
        let kernels = Kernels::with_isa(Isa::Avx2, 1).unwrap();
        // Groups as large as those of AMX.
        let table = Box::leak(Box::new(Table { packed_rows: GROUP_ROWS, ..*Table::of(Isa::Avx2) }));
        for (cols, rows) in [(512, 16), (768, 5), (256, 13)] {
            let packed = PackedMatrix::pack(&random.matrix(dtype, TILE, cols), kernels.pool()).unwrap();
            let mut x = Quantized::new();
            let source = Source::Plain { x: &random.floats(rows * cols) };
            quantized::run(table, kernels.pool(), source, rows, &mut x);
            let group = x.group(0);
            let job = packed.tile_job(0, &group, true);
            assert_eq!(job.group.rows, rows);
            let num_units = cols / BLOCK * units.per_block;
            let mut made = Dots(MaybeUninit::new([[[-1; TILE]; GROUP_ROWS]; UNITS]));
            emulator.run(|| configure(rows, units));
            for first in (0..num_units).step_by(UNITS) {
                let num = UNITS.min(num_units - first);
                // SAFETY: the lengths are those of a packed matrix; the emulator stands in where AMX is missing.
                emulator.run(|| unsafe { dots::<FORMAT>(&job, first, num, &mut made) });
                // SAFETY: it was made of numbers.
                for (unit, dots) in (first..first + num).zip(unsafe { made.0.assume_init_ref() }) {
                    for (row, dots) in dots[..rows].iter().enumerate() {
                        for (weight_row, &dot) in dots.iter().enumerate() {
                            assert_eq!(dot, expected(&job, unit, units, row, weight_row), "{dtype}, unit {unit}");
                        }
                    }
                }
            }
            emulator.run(tiles::release);
        }
    }

    #[test]
    fn a_way_can_be_timed() {
        if Isa::Avx2.is_available() {
            // SAFETY: AVX2 is available.
            let seconds = unsafe { seconds_per_row(super::super::avx2::GROUP_ROWS, super::super::avx2::tile) };
            assert!(seconds > 0.0 && seconds < 0.1, "{seconds}");
        }
    }

    /// Tile instructions run on the processor where it has them, else in an emulator.
    #[test]
    fn tile_registers_make_the_integer_sums_of_every_format() {
        if !Isa::Avx512.is_available() {
            println!("skipped: no AVX-512");
            return;
        }
        let (emulator, mut random) = (TileEmulator::install(), Random(21));
        check::<{ Format::Q4_0 as usize }>(&emulator, &mut random, DType::Q4_0);
        check::<{ Format::Q4_1 as usize }>(&emulator, &mut random, DType::Q4_1);
        check::<{ Format::Q5_0 as usize }>(&emulator, &mut random, DType::Q5_0);
        check::<{ Format::Q5_1 as usize }>(&emulator, &mut random, DType::Q5_1);
        check::<{ Format::Q8_0 as usize }>(&emulator, &mut random, DType::Q8_0);
        check::<{ Format::Q3K as usize }>(&emulator, &mut random, DType::Q3K);
        check::<{ Format::Q4K as usize }>(&emulator, &mut random, DType::Q4K);
        check::<{ Format::Q5K as usize }>(&emulator, &mut random, DType::Q5K);
        check::<{ Format::Q6K as usize }>(&emulator, &mut random, DType::Q6K);
    }
}
