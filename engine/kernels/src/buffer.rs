//! Buffers of what kernels read and write.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::Pod;

use crate::huge_pages::HugePages;

/// Values that begin at a line of the caches (a vector register, or a row of a tile register), on huge pages where they are many and
/// the system gives them.
///
/// A large `Vec` begins 16 bytes behind a line, so that each vector and each row of a tile register that is read or written lies in
/// two of them. Products in tile registers take up to twice as long then. And what a `Vec` has given back may stay with the process.
pub struct Buffer<T = f32> {
    /// As many bytes as were ever needed. Zeros take no memory before they are used.
    pages: Option<HugePages>,
    len: usize,
    values: PhantomData<T>,
}

impl<T: Pod> Buffer<T> {
    /// `len` zeros.
    pub fn zeroed(len: usize) -> Buffer<T> {
        let pages = (len > 0).then(|| HugePages::of_buffer(len * size_of::<T>()));
        Buffer { pages, len, values: PhantomData }
    }

    /// Makes it `len` long and returns it. What it holds means nothing: what some earlier use has left, or zeros.
    pub fn fit(&mut self, len: usize) -> &mut [T] {
        if self.pages.as_ref().map_or(0, |pages| pages.as_slice().len()) < len * size_of::<T>() {
            // The old memory goes before the new one comes.
            *self = Buffer::default();
            *self = Buffer::zeroed(len);
        }
        self.len = len;
        self
    }

    /// Makes it as long as `from`, with the same values.
    pub fn copy_from(&mut self, from: &[T]) {
        self.fit(from.len()).copy_from_slice(from);
    }
}

impl<T> Default for Buffer<T> {
    fn default() -> Buffer<T> {
        Buffer { pages: None, len: 0, values: PhantomData }
    }
}

impl<T: Pod> Deref for Buffer<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        let bytes = self.pages.as_ref().map_or(&[][..], HugePages::as_slice);
        match self.len {
            0 => &[],
            len => bytemuck::cast_slice(&bytes[..len * size_of::<T>()]),
        }
    }
}

impl<T: Pod> DerefMut for Buffer<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        let bytes = self.pages.as_mut().map_or(&mut [][..], HugePages::as_mut_slice);
        match self.len {
            0 => &mut [],
            len => bytemuck::cast_slice_mut(&mut bytes[..len * size_of::<T>()]),
        }
    }
}

impl<T> fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer of {}", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: usize = 64;

    #[test]
    fn every_length_begins_at_a_line_and_is_zeros() {
        for len in [1, 17, 1 << 10, 3 << 20] {
            let buffer = Buffer::<f32>::zeroed(len);
            assert_eq!((buffer.len(), buffer.as_ptr().addr() % LINE), (len, 0));
            assert!(buffer.iter().all(|&value| value == 0.0));
        }
        assert!(Buffer::<f32>::zeroed(0).is_empty() && Buffer::<f32>::default().is_empty());
    }

    #[test]
    fn a_buffer_keeps_its_memory_when_it_shrinks() {
        let mut buffer = Buffer::<u32>::default();
        buffer.copy_from(&[7; 40]);
        let start = buffer.as_ptr();
        assert_eq!(buffer.fit(3), [7; 3]);
        assert_eq!((buffer.fit(40).len(), buffer.as_ptr()), (40, start));
        assert_eq!(buffer.fit(1000), [0; 1000]);
        assert_eq!(buffer.as_ptr().addr() % LINE, 0);
    }
}
