//! Reads GGUF v2 and v3: header, metadata and tensor table are parsed and checked, tensor data stays in the map.
//!
//! Every length and offset comes from the file and is checked before use: no count is trusted for an allocation.
//!
//! **Source**: `docs/gguf.md` of the ggml repository.

mod metadata;
mod reader;
mod writer;

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use bespoke_kernels::DType;
use bytes::Bytes;

pub use metadata::{Array, Metadata, Value, optional};
pub(crate) use writer::{ALIGNMENT, Header};

use crate::ModelError;
use crate::mapping::FileMap;
use crate::tensor::{Tensor, WeightFile};
use reader::Reader;

const MAGIC: [u8; 4] = *b"GGUF";
const VERSIONS: std::ops::RangeInclusive<u32> = 2..=3;
/// `GGML_MAX_DIMS`: no tensor has more dimensions.
const MAX_DIMENSIONS: u32 = 4;
/// `GGUF_DEFAULT_ALIGNMENT`: used where the metadata has no `general.alignment`.
const DEFAULT_ALIGNMENT: u64 = 32;

/// An open GGUF file: its metadata and its tensor table over a memory map.
#[derive(Debug)]
pub struct Gguf {
    file: PathBuf,
    bytes: Bytes,
    /// Where the bytes are those of a file.
    map: Option<FileMap>,
    metadata: Metadata,
    /// Where each key stands in the file with its type and value, in the order of the file.
    pairs: Vec<(String, Range<usize>)>,
    tensors: HashMap<String, TensorInfo>,
    /// Where the tensor data starts; a file without tensors may end before.
    data_start: usize,
}

/// One line of the tensor table.
#[derive(Debug)]
struct TensorInfo {
    /// Outermost dimension first, which is the reverse of the file's order.
    shape: Vec<usize>,
    type_id: u32,
    /// Where the data starts, from the start of the file.
    start: u64,
}

impl Gguf {
    /// Maps and parses a file.
    ///
    /// **Errors**: `Io`, `Malformed`, `Truncated`, and `MetadataType` for an alignment that is not a `u32`.
    pub fn open(file: &Path) -> Result<Gguf, ModelError> {
        let (map, bytes) = FileMap::open(file)?;
        Ok(Gguf { map, ..Gguf::parse(file, bytes)? })
    }

    /// Parses the bytes of a file; `file` only names it in errors.
    ///
    /// **Errors**: as [`Gguf::open`].
    pub fn parse(file: &Path, bytes: Bytes) -> Result<Gguf, ModelError> {
        let mut reader = Reader::new(file, &bytes);
        let (num_tensors, num_keys) = read_counts(&mut reader)?;
        let mut pairs = HashMap::new();
        let mut places = Vec::new();
        for _ in 0..num_keys {
            let start = reader.offset() as usize;
            let key = reader.string("metadata key")?;
            let value = reader.value(&key)?;
            if pairs.insert(key.clone(), value).is_some() {
                return Err(reader.malformed(format!("metadata key `{key}` occurs twice")));
            }
            places.push((key, start..reader.offset() as usize));
        }
        let metadata = Metadata::new(file.to_path_buf(), pairs);
        let mut tensors = HashMap::new();
        for _ in 0..num_tensors {
            let (name, info) = read_tensor_info(&mut reader)?;
            if tensors.insert(name.clone(), info).is_some() {
                return Err(reader.malformed(format!("tensor `{name}` occurs twice")));
            }
        }
        let alignment = alignment(&metadata)?;
        let data_start = reader.offset().next_multiple_of(alignment);
        for (name, info) in &mut tensors {
            if info.start % alignment != 0 {
                return Err(reader.malformed(format!("tensor `{name}` is not aligned to {alignment} bytes")));
            }
            info.start = info
                .start
                .checked_add(data_start)
                .ok_or_else(|| reader.malformed(format!("tensor `{name}` has offset {}", info.start)))?;
        }
        let gguf = Gguf {
            file: file.to_path_buf(),
            data_start: bytes.len().min(data_start as usize),
            bytes,
            map: None,
            metadata,
            pairs: places,
            tensors,
        };
        gguf.check_extents()?;
        Ok(gguf)
    }

    /// Returns the path of the file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Returns the metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Returns each metadata key with its bytes in the file (key, type and value), in the order of the file.
    pub(crate) fn raw_pairs(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.pairs.iter().map(|(key, place)| (key.as_str(), &self.bytes[place.clone()]))
    }

    /// Gives back the memory of what was read so far.
    pub(crate) fn release(&self) {
        self.map.iter().for_each(FileMap::release);
    }

    /// Returns what the digest is taken of.
    pub(crate) fn weight_file(&self) -> WeightFile {
        WeightFile { bytes: self.bytes.clone(), data_start: self.data_start }
    }

    /// Says whether the file has a tensor of this name.
    pub(crate) fn has_tensor(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Returns the shape of a tensor, outermost dimension first.
    pub(crate) fn tensor_shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|info| info.shape.as_slice())
    }

    /// Returns a tensor; its data shares the map.
    pub(crate) fn tensor(&self, name: &str) -> Result<Tensor, ModelError> {
        let info = self
            .tensors
            .get(name)
            .ok_or_else(|| ModelError::MissingTensor { file: self.file.clone(), tensor: name.to_owned() })?;
        let dtype = info.dtype().ok_or_else(|| ModelError::TensorType {
            file: self.file.clone(),
            tensor: name.to_owned(),
            found: type_name(info.type_id),
        })?;
        let (start, end) = self.extent(name, info, dtype)?;
        Ok(Tensor { file: self.file.clone(), dtype, shape: info.shape.clone(), data: self.bytes.slice(start..end) })
    }

    /// Checks that the data of every tensor of a known type lies inside the file.
    fn check_extents(&self) -> Result<(), ModelError> {
        for (name, info) in &self.tensors {
            if let Some(dtype) = info.dtype() {
                self.extent(name, info, dtype)?;
            }
        }
        Ok(())
    }

    fn extent(&self, name: &str, info: &TensorInfo, dtype: DType) -> Result<(usize, usize), ModelError> {
        let malformed = |reason: String| ModelError::Malformed { file: self.file.clone(), reason };
        let cols = info.shape.last().copied().unwrap_or(1);
        let row_bytes = dtype
            .row_bytes(cols)
            .ok_or_else(|| malformed(format!("tensor `{name}`: rows of {cols} are not whole {dtype:?} blocks")))?;
        let num_rows = info.shape.iter().rev().skip(1).try_fold(1usize, |product, &d| product.checked_mul(d));
        let end = num_rows
            .and_then(|rows| rows.checked_mul(row_bytes))
            .and_then(|size| info.start.checked_add(u64::try_from(size).ok()?))
            .ok_or_else(|| malformed(format!("tensor `{name}` has the impossible shape {:?}", info.shape)))?;
        match (usize::try_from(info.start), usize::try_from(end)) {
            (Ok(start), Ok(end)) if end <= self.bytes.len() => Ok((start, end)),
            _ => Err(ModelError::Truncated {
                file: self.file.clone(),
                item: format!("tensor `{name}`"),
                needed: end,
                available: self.bytes.len() as u64,
            }),
        }
    }
}

impl TensorInfo {
    fn dtype(&self) -> Option<DType> {
        dtype_of(self.type_id)
    }
}

fn read_counts(reader: &mut Reader<'_>) -> Result<(u64, u64), ModelError> {
    if reader.array::<4>("magic")? != MAGIC {
        return Err(reader.malformed("it does not start with `GGUF`".to_owned()));
    }
    let version = reader.u32("version")?;
    if !VERSIONS.contains(&version) {
        return Err(reader.malformed(format!("version {version} is not 2 or 3 (or the file is big-endian)")));
    }
    Ok((reader.u64("tensor count")?, reader.u64("metadata count")?))
}

fn read_tensor_info(reader: &mut Reader<'_>) -> Result<(String, TensorInfo), ModelError> {
    let name = reader.string("tensor name")?;
    let num_dimensions = reader.u32("tensor dimensions")?;
    if num_dimensions == 0 || num_dimensions > MAX_DIMENSIONS {
        return Err(reader.malformed(format!("tensor `{name}` has {num_dimensions} dimensions")));
    }
    let mut shape = Vec::new();
    for _ in 0..num_dimensions {
        let dimension = reader.u64("tensor dimension")?;
        let dimension = usize::try_from(dimension)
            .map_err(|_| reader.malformed(format!("tensor `{name}` has a dimension of {dimension}")))?;
        shape.push(dimension);
    }
    shape.reverse();
    let type_id = reader.u32("tensor type")?;
    let start = reader.u64("tensor offset")?;
    Ok((name, TensorInfo { shape, type_id, start }))
}

fn alignment(metadata: &Metadata) -> Result<u64, ModelError> {
    let Some(alignment) = optional(metadata.u32("general.alignment"))? else {
        return Ok(DEFAULT_ALIGNMENT);
    };
    if !alignment.is_power_of_two() {
        return Err(ModelError::Config {
            file: metadata.file().to_path_buf(),
            field: "general.alignment".to_owned(),
            reason: format!("{alignment} is not a power of two"),
        });
    }
    Ok(u64::from(alignment))
}

/// Maps `ggml_type` to the formats that have kernels.
fn dtype_of(type_id: u32) -> Option<DType> {
    Some(match type_id {
        0 => DType::F32,
        1 => DType::F16,
        2 => DType::Q4_0,
        3 => DType::Q4_1,
        6 => DType::Q5_0,
        7 => DType::Q5_1,
        8 => DType::Q8_0,
        10 => DType::Q2K,
        11 => DType::Q3K,
        12 => DType::Q4K,
        13 => DType::Q5K,
        14 => DType::Q6K,
        30 => DType::Bf16,
        _ => return None,
    })
}

/// Names a `ggml_type` without kernels; the numbers of removed and future types stay numbers.
fn type_name(type_id: u32) -> String {
    let name = match type_id {
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return format!("ggml type {type_id}"),
    };
    name.to_owned()
}
