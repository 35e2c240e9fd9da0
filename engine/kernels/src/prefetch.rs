//! Asking the caches for memory that is used soon. A hint: it changes no result.

/// Bytes of a cache line.
const LINE: usize = 64;

/// Asks the second-level cache for all lines of a slice.
#[inline]
pub(crate) fn for_reading<T>(slice: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for line in lines(slice) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: SSE is in the baseline of x86-64, and a prefetch of any address reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (slice, LINE);
}

/// Asks the first-level cache for all lines of a slice, and for the right to write them.
#[inline]
pub(crate) fn for_writing<T>(slice: *const [T]) {
    #[cfg(target_arch = "x86_64")]
    for line in lines(slice) {
        use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
        // SAFETY: as above; where a processor does not know the hint, it does nothing.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(line) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = slice;
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn lines<T>(slice: *const [T]) -> impl Iterator<Item = *const i8> {
    let start = slice.cast::<i8>();
    (0..slice.len() * size_of::<T>()).step_by(LINE).map(move |at| start.wrapping_add(at))
}
