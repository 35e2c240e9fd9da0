//! Reads the tensors of a Hugging Face folder: one `model.safetensors`, or the shards that an index lists.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use bespoke_kernels::DType;
use bytes::Bytes;
use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use serde::Deserialize;

use crate::ModelError;
use crate::mapping::FileMap;
use crate::tensor::{Tensor, WeightFile};

pub(crate) const SINGLE_FILE: &str = "model.safetensors";
pub(crate) const INDEX_FILE: &str = "model.safetensors.index.json";
/// The length of the header stands in the first eight bytes.
const LENGTH_BYTES: usize = 8;

/// The mapped safetensors files of one model.
#[derive(Debug)]
pub(crate) struct SafetensorsFolder {
    /// What a missing tensor is missing from: the single file or the index.
    listing: PathBuf,
    shards: Vec<Shard>,
    /// Index into `shards` for each tensor.
    tensors: HashMap<String, usize>,
}

#[derive(Debug)]
struct Shard {
    file: PathBuf,
    bytes: Bytes,
    /// Where the bytes are those of a file.
    map: Option<FileMap>,
    data_start: usize,
    header: Metadata,
}

#[derive(Deserialize)]
struct Index {
    /// File name for each tensor.
    weight_map: BTreeMap<String, String>,
}

impl SafetensorsFolder {
    /// Maps the files of a folder and checks their headers and the index.
    pub(crate) fn open(folder: &Path) -> Result<SafetensorsFolder, ModelError> {
        let single = folder.join(SINGLE_FILE);
        if !single.exists() {
            return SafetensorsFolder::open_index(folder, folder.join(INDEX_FILE));
        }
        let shard = Shard::open(single.clone())?;
        let tensors = shard.header.tensors().into_keys().map(|name| (name, 0)).collect();
        Ok(SafetensorsFolder { listing: single, shards: vec![shard], tensors })
    }

    fn open_index(folder: &Path, listing: PathBuf) -> Result<SafetensorsFolder, ModelError> {
        let malformed = |reason: String| ModelError::Malformed { file: listing.clone(), reason };
        let text = std::fs::read(&listing).map_err(|source| ModelError::Io { file: listing.clone(), source })?;
        let index: Index = serde_json::from_slice(&text).map_err(|error| malformed(error.to_string()))?;
        let mut shards: Vec<Shard> = Vec::new();
        let mut shard_of_name: HashMap<String, usize> = HashMap::new();
        let mut tensors = HashMap::new();
        for (tensor, name) in index.weight_map {
            let number = match shard_of_name.get(&name) {
                Some(&number) => number,
                None => {
                    // An index must not reach outside its folder.
                    if Path::new(&name).file_name() != Some(name.as_ref()) {
                        return Err(malformed(format!("`{name}` is not a plain file name")));
                    }
                    shards.push(Shard::open(folder.join(&name))?);
                    shard_of_name.insert(name, shards.len() - 1);
                    shards.len() - 1
                }
            };
            let shard = &shards[number];
            if shard.header.info(&tensor).is_none() {
                return Err(ModelError::MissingTensor { file: shard.file.clone(), tensor });
            }
            tensors.insert(tensor, number);
        }
        Ok(SafetensorsFolder { listing, shards, tensors })
    }

    /// Returns a tensor; its data shares the map.
    pub(crate) fn tensor(&self, name: &str) -> Result<Tensor, ModelError> {
        let missing = || ModelError::MissingTensor { file: self.listing.clone(), tensor: name.to_owned() };
        let shard = &self.shards[*self.tensors.get(name).ok_or_else(missing)?];
        let info = shard.header.info(name).ok_or_else(missing)?;
        let dtype = match info.dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::Bf16,
            other => {
                let (file, tensor, found) = (shard.file.clone(), name.to_owned(), format!("{other:?}"));
                return Err(ModelError::TensorType { file, tensor, found });
            }
        };
        // `read_metadata` has checked the offsets against the shape and against the file.
        let (start, end) = info.data_offsets;
        let data = shard.bytes.slice(shard.data_start + start..shard.data_start + end);
        Ok(Tensor { file: shard.file.clone(), dtype, shape: info.shape.clone(), data })
    }

    /// Gives back the memory of what was read so far.
    pub(crate) fn release(&self) {
        self.shards.iter().filter_map(|shard| shard.map.as_ref()).for_each(FileMap::release);
    }

    /// Returns what the digest is taken of, in the order of the file names.
    pub(crate) fn weight_files(&self) -> Vec<WeightFile> {
        let mut shards: Vec<&Shard> = self.shards.iter().collect();
        shards.sort_by(|a, b| a.file.cmp(&b.file));
        shards.iter().map(|shard| WeightFile { bytes: shard.bytes.clone(), data_start: shard.data_start }).collect()
    }
}

impl Shard {
    fn open(file: PathBuf) -> Result<Shard, ModelError> {
        let (map, bytes) = FileMap::open(&file)?;
        Ok(Shard { map, ..Shard::parse(file, bytes)? })
    }

    fn parse(file: PathBuf, bytes: Bytes) -> Result<Shard, ModelError> {
        match SafeTensors::read_metadata(&bytes) {
            Ok((header_bytes, header)) => {
                Ok(Shard { data_start: LENGTH_BYTES + header_bytes, file, bytes, map: None, header })
            }
            Err(error) => Err(explain(file, &bytes, error)),
        }
    }
}

/// Says which tensor a short file cuts, where the header can still be read.
fn explain(file: PathBuf, bytes: &[u8], error: SafeTensorError) -> ModelError {
    let available = bytes.len() as u64;
    let truncated = |item: String, needed: u64| ModelError::Truncated { file: file.clone(), item, needed, available };
    let Some(length) = bytes.first_chunk::<LENGTH_BYTES>().map(|length| u64::from_le_bytes(*length)) else {
        return truncated("header length".to_owned(), LENGTH_BYTES as u64);
    };
    let data_start = length.saturating_add(LENGTH_BYTES as u64);
    match error {
        SafeTensorError::InvalidHeaderLength => truncated("header".to_owned(), data_start),
        SafeTensorError::MetadataIncompleteBuffer => match cut_tensor(bytes, data_start) {
            Some((tensor, needed)) => truncated(format!("tensor `{tensor}`"), needed),
            None => ModelError::Malformed { file, reason: "tensors do not fill the file".to_owned() },
        },
        other => ModelError::Malformed { file, reason: other.to_string() },
    }
}

/// Finds the first tensor that ends after the file, and where it ends.
fn cut_tensor(bytes: &[u8], data_start: u64) -> Option<(String, u64)> {
    let header = bytes.get(LENGTH_BYTES..usize::try_from(data_start).ok()?)?;
    let header: Metadata = serde_json::from_slice(header).ok()?;
    let end_of = |info: &TensorInfo| (info.data_offsets.1 as u64).saturating_add(data_start);
    let cut = header.tensors().into_iter().filter(|(_, info)| end_of(info) > bytes.len() as u64);
    cut.map(|(name, info)| (name, end_of(info))).min_by_key(|(_, end)| *end)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file_bytes() -> Vec<u8> {
        let header = br#"{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"b":{"dtype":"I64","shape":[1],"data_offsets":[16,24]}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header);
        bytes.extend([0; 24]);
        bytes
    }

    fn parse(bytes: Vec<u8>) -> Result<Shard, ModelError> {
        Shard::parse(PathBuf::from("model.safetensors"), Bytes::from(bytes))
    }

    #[test]
    fn a_short_file_names_the_tensor_it_cuts() {
        let whole = file_bytes();
        assert!(parse(whole.clone()).is_ok());
        for (len, cut) in
            [(whole.len() - 1, "tensor `b`"), (whole.len() - 9, "tensor `a`"), (20, "header"), (3, "header length")]
        {
            match parse(whole[..len].to_vec()) {
                Err(ModelError::Truncated { item, .. }) => assert_eq!(item, cut),
                other => panic!("expected a truncation at {len}, got {other:?}"),
            }
        }
    }

    #[test]
    fn trailing_bytes_are_refused() {
        let mut bytes = file_bytes();
        bytes.push(0);
        assert!(matches!(parse(bytes), Err(ModelError::Malformed { .. })));
    }

    proptest! {
        #[test]
        fn changed_bytes_never_panic(changes in proptest::collection::vec((0usize..160, any::<u8>()), 1..6), keep in 0usize..200) {
            let mut bytes = file_bytes();
            for (at, byte) in changes {
                if let Some(slot) = bytes.get_mut(at) {
                    *slot = byte;
                }
            }
            bytes.truncate(keep);
            if let Ok(shard) = parse(bytes) {
                for info in shard.header.tensors().values() {
                    prop_assert!(shard.data_start + info.data_offsets.1 <= shard.bytes.len());
                }
            }
        }
    }
}
