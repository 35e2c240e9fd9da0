//! Asking the caches for memory that is used soon. A hint: it changes no result.

/// Bytes of a cache line.
const LINE: usize = 64;

/// Asks the second-level cache for all lines of a slice.
#[inline]
pub(crate) fn for_reading<T>(slice: &[T]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        let start = slice.as_ptr().cast::<u8>();
        for at in (0..size_of_val(slice)).step_by(LINE) {
            // SAFETY: SSE is in the baseline of x86-64, and a prefetch of any address reads nothing.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(start.wrapping_add(at).cast()) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (slice, LINE);
}
