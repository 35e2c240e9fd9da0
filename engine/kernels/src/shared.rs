//! A mutable slice of which the tasks of one run write disjoint parts.

use std::marker::PhantomData;
use std::ops::Range;

/// Borrows a slice mutably and hands out parts of it to several threads.
pub(crate) struct SharedMut<'a> {
    start: *mut f32,
    len: usize,
    _borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: the only access is `part`, whose contract is that parts handed out at one time are disjoint.
unsafe impl Sync for SharedMut<'_> {}

impl<'a> SharedMut<'a> {
    pub(crate) fn new(slice: &'a mut [f32]) -> Self {
        SharedMut { start: slice.as_mut_ptr(), len: slice.len(), _borrow: PhantomData }
    }

    /// One part.
    ///
    /// # Safety
    /// No other part that is alive at the same time overlaps `range`.
    #[allow(clippy::mut_from_ref, reason = "that the parts are disjoint is the caller's contract")]
    #[inline]
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &mut [f32] {
        assert!(range.start <= range.end && range.end <= self.len, "part {range:?} of {}", self.len);
        // SAFETY: the range lies in the borrowed slice by the assertion, and is not aliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.end - range.start) }
    }
}
