//! Lays out a GGUF v3 header: metadata, then the tensor table; tensor data is written after it, in the order of the table.
//!
//! **Source**: `docs/gguf.md` of the ggml repository.

use bespoke_kernels::DType;

use super::MAGIC;

const VERSION: u32 = 3;
/// Where each tensor starts, in bytes; what readers take for granted where the metadata says nothing.
pub(crate) const ALIGNMENT: usize = 32;
/// Value types of the metadata.
const TYPE_U32: u32 = 4;
const TYPE_I32: u32 = 5;
const TYPE_F32: u32 = 6;
const TYPE_BOOL: u32 = 7;
const TYPE_STRING: u32 = 8;
const TYPE_ARRAY: u32 = 9;

/// A header while it grows.
#[derive(Debug, Default)]
pub(crate) struct Header {
    num_keys: u64,
    metadata: Vec<u8>,
    num_tensors: u64,
    tensors: Vec<u8>,
    data_bytes: u64,
}

impl Header {
    pub(crate) fn string(&mut self, key: &str, value: &str) {
        self.key(key, TYPE_STRING);
        put_string(&mut self.metadata, value);
    }

    pub(crate) fn u32(&mut self, key: &str, value: u32) {
        self.key(key, TYPE_U32);
        self.metadata.extend(value.to_le_bytes());
    }

    pub(crate) fn f32(&mut self, key: &str, value: f32) {
        self.key(key, TYPE_F32);
        self.metadata.extend(value.to_le_bytes());
    }

    pub(crate) fn bool(&mut self, key: &str, value: bool) {
        self.key(key, TYPE_BOOL);
        self.metadata.push(u8::from(value));
    }

    pub(crate) fn strings<'a>(&mut self, key: &str, values: impl ExactSizeIterator<Item = &'a str>) {
        self.array(key, TYPE_STRING, values.len());
        values.for_each(|value| put_string(&mut self.metadata, value));
    }

    pub(crate) fn i32s(&mut self, key: &str, values: &[i32]) {
        self.array(key, TYPE_I32, values.len());
        values.iter().for_each(|value| self.metadata.extend(value.to_le_bytes()));
    }

    pub(crate) fn f32s(&mut self, key: &str, values: &[f32]) {
        self.array(key, TYPE_F32, values.len());
        values.iter().for_each(|value| self.metadata.extend(value.to_le_bytes()));
    }

    /// Appends a key with its type and value as another file has them.
    pub(crate) fn raw(&mut self, pair: &[u8]) {
        self.num_keys += 1;
        self.metadata.extend(pair);
    }

    /// Appends a line of the tensor table; `shape` is outermost dimension first, `bytes` the size of the data.
    pub(crate) fn tensor(&mut self, name: &str, shape: &[usize], dtype: DType, bytes: u64) {
        self.num_tensors += 1;
        put_string(&mut self.tensors, name);
        self.tensors.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|&size| self.tensors.extend((size as u64).to_le_bytes()));
        self.tensors.extend(type_id(dtype).to_le_bytes());
        self.tensors.extend(self.data_bytes.to_le_bytes());
        self.data_bytes += bytes.next_multiple_of(ALIGNMENT as u64);
    }

    /// Returns how long the data section is, padding included.
    pub(crate) fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// Returns the header, padded to where the data starts.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(self.num_tensors.to_le_bytes());
        bytes.extend(self.num_keys.to_le_bytes());
        bytes.extend(&self.metadata);
        bytes.extend(&self.tensors);
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        bytes
    }

    fn key(&mut self, key: &str, type_id: u32) {
        self.num_keys += 1;
        put_string(&mut self.metadata, key);
        self.metadata.extend(type_id.to_le_bytes());
    }

    fn array(&mut self, key: &str, type_id: u32, len: usize) {
        self.key(key, TYPE_ARRAY);
        self.metadata.extend(type_id.to_le_bytes());
        self.metadata.extend((len as u64).to_le_bytes());
    }
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// Returns the `ggml_type` of a format.
pub(super) fn type_id(dtype: DType) -> u32 {
    match dtype {
        DType::F32 => 0,
        DType::F16 => 1,
        DType::Q4_0 => 2,
        DType::Q4_1 => 3,
        DType::Q5_0 => 6,
        DType::Q5_1 => 7,
        DType::Q8_0 => 8,
        DType::Q2K => 10,
        DType::Q3K => 11,
        DType::Q4K => 12,
        DType::Q5K => 13,
        DType::Q6K => 14,
        DType::Bf16 => 30,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use bytes::Bytes;

    use super::*;
    use crate::gguf::{Array, Gguf, Value, dtype_of};

    #[test]
    fn what_is_written_is_read_back() {
        let mut header = Header::default();
        header.string("general.architecture", "llama");
        header.u32("count", 7);
        header.f32("eps", 1e-5);
        header.bool("flag", true);
        header.strings("tokens", ["a", "▁b"].into_iter());
        header.i32s("types", &[1, -3]);
        header.f32s("scores", &[-1.0, 0.5]);
        header.tensor("a", &[2, 3], DType::F32, 24);
        header.tensor("b", &[1, 32], DType::Q8_0, 34);
        let mut bytes = header.to_bytes();
        bytes.resize(bytes.len() + header.data_bytes() as usize, 7);
        let gguf = Gguf::parse(Path::new("x.gguf"), Bytes::from(bytes.clone())).unwrap();
        let metadata = gguf.metadata();
        assert_eq!(metadata.u32("count").unwrap(), 7);
        assert_eq!(metadata.f32("eps").unwrap(), 1e-5);
        assert_eq!(metadata.get("flag"), Some(&Value::Bool(true)));
        assert_eq!(metadata.strings("tokens").unwrap(), ["a", "▁b"]);
        assert_eq!(metadata.get("types"), Some(&Value::Array(Array::Signed(vec![1, -3]))));
        assert_eq!(metadata.f32s("scores").unwrap(), [-1.0, 0.5]);
        assert_eq!(gguf.tensor("a").unwrap().shape, [2, 3]);
        assert_eq!(gguf.tensor("b").unwrap().dtype, DType::Q8_0);
        let mut copy = Header::default();
        gguf.raw_pairs().for_each(|(_, pair)| copy.raw(pair));
        copy.tensor("a", &[2, 3], DType::F32, 24);
        copy.tensor("b", &[1, 32], DType::Q8_0, 34);
        assert_eq!(copy.to_bytes(), bytes[..copy.to_bytes().len()]);
    }

    #[test]
    fn types_have_the_ids_that_the_reader_knows() {
        for dtype in DType::ALL {
            assert_eq!(dtype_of(type_id(dtype)), Some(dtype));
        }
    }
}
