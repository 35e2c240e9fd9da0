//! What the tasks of one run write: disjoint parts of a mutable slice, or rows between the rows of others.

use std::marker::PhantomData;
use std::ops::Range;

/// Borrows a slice mutably and hands out parts of it to several threads.
pub(crate) struct SharedMut<'a, T = f32> {
    start: *mut T,
    len: usize,
    _borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: the only accesses are `part` and through `pointer`, whose contract is that parts in use at one time are disjoint.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        SharedMut { start: slice.as_mut_ptr(), len: slice.len(), _borrow: PhantomData }
    }

    /// One part.
    ///
    /// # Safety
    /// No other part that is alive at the same time overlaps `range`.
    #[allow(clippy::mut_from_ref, reason = "that the parts are disjoint is the caller's contract")]
    #[inline]
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "part {range:?} of {}", self.len);
        // SAFETY: the range lies in the borrowed slice by the assertion, and is not aliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.end - range.start) }
    }

    /// The start of a part, for rows that other tasks' rows lie between. To use it is unsafe for the reason of [`SharedMut::part`].
    #[inline]
    pub(crate) fn pointer(&self, range: Range<usize>) -> *mut T {
        assert!(range.start <= range.end && range.end <= self.len, "part {range:?} of {}", self.len);
        self.start.wrapping_add(range.start)
    }
}

/// Where the sums of a block of outputs go: rows in a slice that other tasks' outputs lie between.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) start: *mut f32,
    /// Floats from one row to the next.
    pub(crate) stride: usize,
    /// Whether the sums are added to what is there.
    pub(crate) add: bool,
}

impl Place {
    /// Without the rows before `row`.
    #[inline(always)]
    pub(crate) fn at_row(self, row: usize) -> Place {
        Place { start: self.start.wrapping_add(row * self.stride), ..self }
    }
}
