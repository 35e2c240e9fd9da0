//! Buffers of what kernels read and write.

use std::fmt;
use std::ops::{Deref, DerefMut};

use aligned_vec::{AVec, ConstAlign};

use crate::huge_pages;

/// Bytes of a line of the caches: a vector register, or a row of a tile register.
const LINE: usize = 64;

/// Values that begin at a line of the caches, on huge pages where they are many and the system gives them.
///
/// A large `Vec` begins 16 bytes behind a line, so that each vector and each row of a tile register that is read or written lies in
/// two of them. Products in tile registers take up to twice as long then.
pub struct Buffer<T = f32> {
    /// As many as were ever needed.
    values: AVec<T, ConstAlign<LINE>>,
    len: usize,
}

impl<T: Copy + Default> Buffer<T> {
    /// `len` zeros.
    pub fn zeroed(len: usize) -> Buffer<T> {
        let mut values = AVec::<T, _>::with_capacity(LINE, len);
        huge_pages::advise_buffer(values.as_mut_ptr().cast(), len * size_of::<T>());
        values.resize(len, T::default());
        Buffer { values, len }
    }

    /// Makes it `len` long and returns it. What it holds means nothing: what some earlier use has left, or zeros.
    pub fn size(&mut self, len: usize) -> &mut [T] {
        if self.values.len() < len {
            *self = Buffer::zeroed(len);
        }
        self.len = len;
        self
    }

    /// Makes it as long as `from`, with the same values.
    pub fn copy_from(&mut self, from: &[T]) {
        self.size(from.len()).copy_from_slice(from);
    }
}

impl<T> Default for Buffer<T> {
    fn default() -> Buffer<T> {
        Buffer { values: AVec::new(LINE), len: 0 }
    }
}

impl<T> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.values[..self.len]
    }
}

impl<T> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.values[..self.len]
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
        for len in [0, 1, 17, 1 << 10, 3 << 20] {
            let buffer = Buffer::<f32>::zeroed(len);
            assert_eq!((buffer.len(), buffer.as_ptr().addr() % LINE), (len, 0));
            assert!(buffer.iter().all(|&value| value == 0.0));
        }
    }

    #[test]
    fn a_buffer_keeps_its_memory_when_it_shrinks() {
        let mut buffer = Buffer::<u32>::default();
        buffer.copy_from(&[7; 40]);
        let start = buffer.as_ptr();
        assert_eq!(buffer.size(3), [7; 3]);
        assert_eq!((buffer.size(40).len(), buffer.as_ptr()), (40, start));
        assert_eq!(buffer.size(41), [0; 41]);
        assert_eq!(buffer.as_ptr().addr() % LINE, 0);
    }
}
