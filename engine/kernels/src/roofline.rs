//! The limits of this machine, measured: what the benches compare the kernels with.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::Kernels;
use crate::huge_pages::HugePages;

/// Bytes that are read: more than the caches of most processors.
const BYTES: usize = 128 << 20;
/// Bytes of a task.
const TASK_BYTES: usize = 1 << 20;
/// Bytes of a line, of which one word is added up per register.
const LINE: usize = 64;
/// Passes, of which the best counts.
const PASSES: usize = 8;

/// Upper bounds for products on the threads of a pool.
#[derive(Clone, Copy, Debug)]
pub struct Roofline {
    /// Bytes that all threads read per second from huge pages.
    pub read_bytes_per_s: f64,
    /// Multiply-adds of 8-bit integers per second from registers; `None` without AVX-512.
    pub integer_macs_per_s: Option<f64>,
}

impl Roofline {
    /// Measures for about a quarter of a second.
    pub fn measure(kernels: &Kernels) -> Roofline {
        Roofline { read_bytes_per_s: read_bytes_per_s(kernels), integer_macs_per_s: integer_macs_per_s(kernels) }
    }
}

fn read_bytes_per_s(kernels: &Kernels) -> f64 {
    let mut pages = HugePages::zeroed(BYTES);
    pages.as_mut_slice().fill(1);
    let total = AtomicU64::new(0);
    let seconds = best_seconds(|| {
        kernels.pool().run(BYTES / TASK_BYTES, |task| {
            let part = &pages.as_slice()[task * TASK_BYTES..(task + 1) * TASK_BYTES];
            let sum = part.as_chunks::<LINE>().0.iter().fold([0_u64; LINE / 8], |mut sums, line| {
                for (sum, word) in sums.iter_mut().zip(line.as_chunks::<8>().0) {
                    *sum = sum.wrapping_add(u64::from_le_bytes(*word));
                }
                sums
            });
            total.fetch_add(sum.iter().fold(0, |a, b| a ^ b), Ordering::Relaxed);
        });
    });
    std::hint::black_box(total.into_inner());
    BYTES as f64 / seconds
}

#[cfg(target_arch = "x86_64")]
fn integer_macs_per_s(kernels: &Kernels) -> Option<f64> {
    /// Rounds of a task: some tens of microseconds.
    const ROUNDS: usize = 1 << 14;
    if !crate::Isa::Avx512.is_available() {
        return None;
    }
    let tasks = 16 * kernels.pool().num_threads();
    // SAFETY: the instruction set of `kernels` is available.
    let seconds = best_seconds(|| kernels.pool().run(tasks, |_| unsafe { multiply(ROUNDS) }));
    Some((tasks * ROUNDS * ACCUMULATORS * LINE) as f64 / seconds)
}

#[cfg(not(target_arch = "x86_64"))]
fn integer_macs_per_s(_: &Kernels) -> Option<f64> {
    None
}

/// Sums under way at a time: more than latency times throughput.
#[cfg(target_arch = "x86_64")]
const ACCUMULATORS: usize = 16;

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn multiply(rounds: usize) {
    use std::arch::x86_64::*;
    let mut sums = [_mm512_setzero_si512(); ACCUMULATORS];
    let factor = std::hint::black_box(_mm512_set1_epi8(1));
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, factor, factor);
        }
    }
    std::hint::black_box(sums);
}

fn best_seconds(mut pass: impl FnMut()) -> f64 {
    let seconds = (0..PASSES).map(|_| {
        let start = Instant::now();
        pass();
        start.elapsed().as_secs_f64()
    });
    seconds.fold(f64::INFINITY, f64::min)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_positive() {
        let roofline = Roofline::measure(&Kernels::new(2).unwrap());
        assert!(roofline.read_bytes_per_s > 0.0 && roofline.integer_macs_per_s.is_none_or(|macs| macs > 0.0));
    }
}
