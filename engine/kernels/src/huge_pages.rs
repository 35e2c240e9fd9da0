//! Memory for weights and buffers: zeroed, and backed by huge pages where it is long enough and the system gives them.
//!
//! A product reads every weight once, so its speed at one row is that of memory; with 4 KiB pages half of it is lost
//! to address translation (measured here: 27 GB/s against 58 GB/s for a working set of 100 MiB).

use std::ptr::NonNull;

/// Alignment and granularity: the size of a huge page of x86-64.
const HUGE_PAGE: usize = 2 << 20;
/// Size of a small one.
const PAGE: usize = 4096;

/// Zeroed bytes that never move.
pub(crate) struct HugePages {
    start: NonNull<u8>,
    len: usize,
    /// The mapping: `start` and `len` before alignment.
    mapping: (NonNull<u8>, usize),
}

// SAFETY: the bytes belong to this value alone, as those of a `Vec<u8>` do.
unsafe impl Send for HugePages {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for HugePages {}

impl HugePages {
    /// Zeroed memory of `len` bytes, aligned to a huge page; aborts where there is none, as a `Vec` does.
    pub(crate) fn zeroed(len: usize) -> HugePages {
        let mapping_len = len.next_multiple_of(HUGE_PAGE) + HUGE_PAGE;
        let mapping = map(mapping_len);
        let start = mapping.as_ptr().map_addr(|at| at.next_multiple_of(HUGE_PAGE));
        advise(start, len.next_multiple_of(HUGE_PAGE));
        let start = NonNull::new(start).expect("invariant: an aligned address inside a mapping is not null");
        HugePages { start, len, mapping: (mapping, mapping_len) }
    }

    /// The same in whole small pages, so that a short buffer does not take a huge one; aligned to a small page. It goes back to the
    /// system at once when it is dropped, whatever was made after it.
    pub(crate) fn of_buffer(len: usize) -> HugePages {
        let mapping_len = len.next_multiple_of(PAGE).max(PAGE);
        let start = map(mapping_len);
        // As long as it surely holds one.
        if len >= 2 * HUGE_PAGE {
            advise(start.as_ptr(), mapping_len);
        }
        HugePages { start, len, mapping: (start, mapping_len) }
    }

    /// The bytes.
    pub(crate) fn as_slice(&self) -> &[u8] {
        // SAFETY: `len` bytes from `start` lie in the mapping, which is zeroed and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// The bytes, to fill them.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for HugePages {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        unmap(self.mapping.0, self.mapping.1);
    }
}

#[cfg(target_os = "linux")]
fn map(len: usize) -> NonNull<u8> {
    let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new anonymous mapping at an address of the system's choice touches no memory in use.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), len, access, kind, -1, 0) };
    if start == libc::MAP_FAILED {
        std::alloc::handle_alloc_error(layout(len));
    }
    NonNull::new(start.cast()).expect("invariant: a mapping is not at null")
}

#[cfg(target_os = "linux")]
fn unmap(start: NonNull<u8>, len: usize) {
    // SAFETY: `start` and `len` are those of a mapping that `map` made, and its owner is being dropped.
    unsafe { libc::munmap(start.as_ptr().cast(), len) };
}

/// Asks for huge pages. A refusal costs speed, not correctness, so it is not reported.
#[cfg(target_os = "linux")]
fn advise(start: *mut u8, len: usize) {
    // SAFETY: the range lies in memory that the caller has just made; the advice does not change its contents.
    unsafe { libc::madvise(start.cast(), len, libc::MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn map(len: usize) -> NonNull<u8> {
    // SAFETY: the layout has a size above zero.
    let start = unsafe { std::alloc::alloc_zeroed(layout(len)) };
    NonNull::new(start).unwrap_or_else(|| std::alloc::handle_alloc_error(layout(len)))
}

#[cfg(not(target_os = "linux"))]
fn unmap(start: NonNull<u8>, len: usize) {
    // SAFETY: `map` allocated it with this layout.
    unsafe { std::alloc::dealloc(start.as_ptr(), layout(len)) };
}

#[cfg(not(target_os = "linux"))]
fn advise(_start: *mut u8, _len: usize) {}

fn layout(len: usize) -> std::alloc::Layout {
    std::alloc::Layout::from_size_align(len, PAGE).expect("invariant: sizes of weights and buffers fit an `isize`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned_zeroed_and_writable_to_its_end() {
        for len in [0, 1, 64, HUGE_PAGE - 1, HUGE_PAGE, HUGE_PAGE + 1] {
            let mut pages = HugePages::zeroed(len);
            assert_eq!((pages.as_slice().len(), pages.as_slice().as_ptr().addr() % HUGE_PAGE), (len, 0));
            assert!(pages.as_slice().iter().all(|byte| *byte == 0));
            pages.as_mut_slice().fill(7);
            assert!(pages.as_slice().iter().all(|byte| *byte == 7));
            let mut pages = HugePages::of_buffer(len);
            assert_eq!((pages.as_slice().len(), pages.as_slice().as_ptr().addr() % PAGE), (len, 0));
            pages.as_mut_slice().fill(7);
            assert!(pages.as_slice().iter().all(|byte| *byte == 7));
        }
    }
}
