//! Buffers of what kernels read and write.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::Pod;

use crate::huge_pages;

/// Bytes of a line of the caches: a vector register, or a row of a tile register.
const LINE: usize = 64;

/// Values that begin at a line of the caches, on huge pages where they are many and the system gives them.
///
/// A large `Vec` begins 16 bytes behind a line, so that each vector and each row of a tile register that is read or written lies in
/// two of them. Products in tile registers take up to twice as long then.
pub struct Buffer<T = f32> {
    /// As many as were ever needed. Zeros take no memory before they are used.
    bytes: Vec<u8>,
    /// Bytes before the first value.
    start: usize,
    len: usize,
    values: PhantomData<T>,
}

impl<T: Pod> Buffer<T> {
    /// `len` zeros.
    pub fn zeroed(len: usize) -> Buffer<T> {
        let mut bytes = vec![0; len * size_of::<T>() + LINE];
        huge_pages::advise_buffer(&mut bytes);
        let start = bytes.as_ptr().align_offset(LINE);
        Buffer { bytes, start, len, values: PhantomData }
    }

    /// Makes it `len` long and returns it. What it holds means nothing: what some earlier use has left, or zeros.
    pub fn fit(&mut self, len: usize) -> &mut [T] {
        if self.bytes.len() < self.start + len * size_of::<T>() {
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
        Buffer { bytes: Vec::new(), start: 0, len: 0, values: PhantomData }
    }
}

impl<T: Pod> Deref for Buffer<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        if self.len == 0 {
            return &[];
        }
        bytemuck::cast_slice(&self.bytes[self.start..self.start + self.len * size_of::<T>()])
    }
}

impl<T: Pod> DerefMut for Buffer<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        if self.len == 0 {
            return &mut [];
        }
        bytemuck::cast_slice_mut(&mut self.bytes[self.start..self.start + self.len * size_of::<T>()])
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
