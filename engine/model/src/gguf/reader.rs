//! A cursor over the header of a GGUF file; every read is checked against the end of the file.

use std::path::Path;

use super::{Array, Value};
use crate::ModelError;

/// Arrays inside arrays are legal and no known file has any; deeper than this is an attack on the stack.
const MAX_ARRAY_DEPTH: usize = 4;
const TYPE_STRING: u32 = 8;
const TYPE_ARRAY: u32 = 9;

pub(super) struct Reader<'a> {
    file: &'a Path,
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(file: &'a Path, bytes: &'a [u8]) -> Reader<'a> {
        Reader { file, bytes, offset: 0 }
    }

    pub(super) fn offset(&self) -> u64 {
        self.offset as u64
    }

    pub(super) fn malformed(&self, reason: String) -> ModelError {
        ModelError::Malformed { file: self.file.to_path_buf(), reason }
    }

    pub(super) fn u32(&mut self, item: &str) -> Result<u32, ModelError> {
        Ok(u32::from_le_bytes(self.array(item)?))
    }

    pub(super) fn u64(&mut self, item: &str) -> Result<u64, ModelError> {
        Ok(u64::from_le_bytes(self.array(item)?))
    }

    pub(super) fn string(&mut self, item: &str) -> Result<String, ModelError> {
        let len = self.u64(item)?;
        let bytes = self.take(len, item)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(self.malformed(format!("{item} at offset {} is not UTF-8", self.offset))),
        }
    }

    pub(super) fn array<const N: usize>(&mut self, item: &str) -> Result<[u8; N], ModelError> {
        let bytes = self.take(N as u64, item)?;
        Ok(bytes.try_into().expect("invariant: `take` returns as many bytes as it was asked for"))
    }

    /// Reads the type and the value of a metadata key.
    pub(super) fn value(&mut self, key: &str) -> Result<Value, ModelError> {
        let item = format!("metadata key `{key}`");
        let type_id = self.u32(&item)?;
        if type_id == TYPE_ARRAY {
            return Ok(Value::Array(self.typed_array(&item, 0)?));
        }
        self.scalar(type_id, &item)
    }

    fn scalar(&mut self, type_id: u32, item: &str) -> Result<Value, ModelError> {
        Ok(match type_id {
            0 | 2 | 4 | 10 => Value::Unsigned(self.unsigned(type_id, item)?),
            1 | 3 | 5 | 11 => Value::Signed(self.signed(type_id, item)?),
            6 | 12 => Value::Float(self.float(type_id, item)?),
            7 => Value::Bool(self.bool(item)?),
            TYPE_STRING => Value::String(self.string(item)?),
            _ => return Err(self.malformed(format!("{item} has the unknown type {type_id}"))),
        })
    }

    /// Reads `uint8` (0), `uint16` (2), `uint32` (4) or else `uint64`.
    fn unsigned(&mut self, type_id: u32, item: &str) -> Result<u64, ModelError> {
        Ok(match type_id {
            0 => u64::from(u8::from_le_bytes(self.array(item)?)),
            2 => u64::from(u16::from_le_bytes(self.array(item)?)),
            4 => u64::from(self.u32(item)?),
            _ => self.u64(item)?,
        })
    }

    /// Reads `int8` (1), `int16` (3), `int32` (5) or else `int64`.
    fn signed(&mut self, type_id: u32, item: &str) -> Result<i64, ModelError> {
        Ok(match type_id {
            1 => i64::from(i8::from_le_bytes(self.array(item)?)),
            3 => i64::from(i16::from_le_bytes(self.array(item)?)),
            5 => i64::from(i32::from_le_bytes(self.array(item)?)),
            _ => i64::from_le_bytes(self.array(item)?),
        })
    }

    /// Reads `float32` (6) or else `float64`.
    fn float(&mut self, type_id: u32, item: &str) -> Result<f64, ModelError> {
        Ok(match type_id {
            6 => f64::from(f32::from_le_bytes(self.array(item)?)),
            _ => f64::from_le_bytes(self.array(item)?),
        })
    }

    fn bool(&mut self, item: &str) -> Result<bool, ModelError> {
        match self.array::<1>(item)? {
            [0] => Ok(false),
            [1] => Ok(true),
            [byte] => Err(self.malformed(format!("{item} is a bool with the value {byte}"))),
        }
    }

    fn typed_array(&mut self, item: &str, depth: usize) -> Result<Array, ModelError> {
        if depth == MAX_ARRAY_DEPTH {
            return Err(self.malformed(format!("{item} nests arrays more than {MAX_ARRAY_DEPTH} deep")));
        }
        let type_id = self.u32(item)?;
        let len = self.u64(item)?;
        self.check_array_len(type_id, len, item)?;
        Ok(match type_id {
            0 | 2 | 4 | 10 => Array::Unsigned(self.elements(len, |reader| reader.unsigned(type_id, item))?),
            1 | 3 | 5 | 11 => Array::Signed(self.elements(len, |reader| reader.signed(type_id, item))?),
            6 | 12 => Array::Floats(self.elements(len, |reader| reader.float(type_id, item))?),
            7 => Array::Bools(self.elements(len, |reader| reader.bool(item))?),
            TYPE_STRING => Array::Strings(self.elements(len, |reader| reader.string(item))?),
            TYPE_ARRAY => Array::Arrays(self.elements(len, |reader| reader.typed_array(item, depth + 1))?),
            _ => return Err(self.malformed(format!("{item} is an array of the unknown type {type_id}"))),
        })
    }

    fn elements<T>(
        &mut self,
        len: u64,
        mut read: impl FnMut(&mut Self) -> Result<T, ModelError>,
    ) -> Result<Vec<T>, ModelError> {
        // Nothing is reserved from `len`: the vector grows with what the file really holds.
        let mut values = Vec::new();
        for _ in 0..len {
            values.push(read(self)?);
        }
        Ok(values)
    }

    /// Refuses an array that cannot fit in the rest of the file, before reading any of it.
    fn check_array_len(&self, type_id: u32, len: u64, item: &str) -> Result<(), ModelError> {
        let bytes_min = match type_id {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            TYPE_STRING | 10..=12 => 8,
            // An inner array has at least its type and its length.
            TYPE_ARRAY => 12,
            _ => 0,
        };
        let needed = len.checked_mul(bytes_min).and_then(|size| size.checked_add(self.offset as u64));
        match needed {
            Some(needed) if needed <= self.bytes.len() as u64 => Ok(()),
            _ => Err(self.truncated(item, needed.unwrap_or(u64::MAX))),
        }
    }

    fn take(&mut self, len: u64, item: &str) -> Result<&'a [u8], ModelError> {
        let end = (self.offset as u64).saturating_add(len);
        if end > self.bytes.len() as u64 {
            return Err(self.truncated(item, end));
        }
        // `end` is at most the length of a slice, so it fits.
        let end = end as usize;
        let taken = &self.bytes[self.offset..end];
        self.offset = end;
        Ok(taken)
    }

    fn truncated(&self, item: &str, needed: u64) -> ModelError {
        ModelError::Truncated {
            file: self.file.to_path_buf(),
            item: item.to_owned(),
            needed,
            available: self.bytes.len() as u64,
        }
    }
}
