//! Hostile headers: any bytes give a model or an error, never a panic, and no allocation that the file's size does not pay for.

use std::ops::Range;
use std::path::Path;
use std::sync::LazyLock;

use bespoke_model::gguf::Gguf;
use bespoke_model::{ModelError, ModelSource, Weights};
use bespoke_testkit::{TinyDtype, TinyModel};
use proptest::prelude::*;

/// A GGUF file, and where it is worth changing: the short values before the token list, and the tensor table.
static GGUF_FILE: LazyLock<(Vec<u8>, [Range<usize>; 2])> = LazyLock::new(|| {
    let bytes = TinyModel { dtype: TinyDtype::Q8_0, num_layers: 1, ..TinyModel::default() }.gguf_bytes();
    let find = |text: &str| bytes.windows(text.len()).position(|window| window == text.as_bytes()).unwrap();
    // The tensors stand in the order of their Hugging Face names; a line of the table takes at most 64 bytes.
    let regions = [0..find("tokenizer.ggml.tokens") + 64, find("output.weight") - 8..find("output_norm.weight") + 64];
    (bytes, regions)
});
/// A Hugging Face folder, written once: `model.safetensors` and `config.json`.
static HF_FILES: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| {
    let written = TinyModel { num_layers: 1, ..TinyModel::default() }.write_hf().unwrap();
    ["model.safetensors", "config.json"].map(|name| std::fs::read(written.path().join(name)).unwrap())
});

fn parse(bytes: Vec<u8>) -> Result<Gguf, ModelError> {
    Gguf::parse(Path::new("fuzz.gguf"), bytes.into())
}

/// Opens a file as far as a model goes before it runs.
fn open(path: &Path) -> Result<Weights, ModelError> {
    let source = ModelSource::open(path)?;
    source.digest()?;
    Weights::load(&source, &source.config()?)
}

fn header(num_tensors: u64, num_keys: u64) -> Vec<u8> {
    [&b"GGUF\x03\0\0\0"[..], &num_tensors.to_le_bytes(), &num_keys.to_le_bytes()].concat()
}

/// A key `k` of a type, and what follows.
fn key(type_id: u32, rest: &[u8]) -> Vec<u8> {
    [&1u64.to_le_bytes()[..], b"k", &type_id.to_le_bytes(), rest].concat()
}

fn array(type_id: u32, len: u64) -> Vec<u8> {
    [&type_id.to_le_bytes()[..], &len.to_le_bytes()].concat()
}

#[test]
fn absurd_counts_are_refused_before_anything_is_read() {
    let truncated = |bytes: Vec<u8>| matches!(parse(bytes), Err(ModelError::Truncated { .. }));
    assert!(truncated(header(u64::MAX, 0)));
    assert!(truncated(header(0, u64::MAX)));
    assert!(truncated([header(0, 1), u64::MAX.to_le_bytes().to_vec()].concat()), "length of a key");
    for type_id in 0..=12 {
        assert!(truncated([header(0, 1), key(9, &array(type_id, u64::MAX))].concat()), "array of type {type_id}");
        assert!(truncated([header(0, 1), key(9, &array(type_id, 1 << 40))].concat()), "array of type {type_id}");
    }
    assert!(truncated(Vec::new()));
}

#[test]
fn broken_rules_are_malformed() {
    let malformed = |bytes: Vec<u8>| matches!(parse(bytes), Err(ModelError::Malformed { .. }));
    assert!(malformed([header(0, 1), key(13, &[0; 64])].concat()), "unknown type");
    assert!(malformed([header(0, 1), key(9, &array(13, 0))].concat()), "array of an unknown type");
    assert!(malformed([header(0, 1), key(7, &[2])].concat()), "bool of 2");
    assert!(malformed([header(0, 2), key(7, &[1]), key(7, &[1])].concat()), "a key twice");
    let nested: Vec<u8> = std::iter::repeat_n(array(9, 1), 100).flatten().collect();
    assert!(malformed([header(0, 1), key(9, &nested)].concat()), "deep nesting");
    let text = [&1u64.to_le_bytes()[..], &[0xff]].concat();
    assert!(malformed([header(0, 1), key(8, &text)].concat()), "a string that is not UTF-8");
    let tensor = |dims: &[u64], offset: u64| {
        let dims_bytes: Vec<u8> = dims.iter().flat_map(|dim| dim.to_le_bytes()).collect();
        let counts = [1u64.to_le_bytes().to_vec(), b"t".to_vec(), (dims.len() as u32).to_le_bytes().to_vec()].concat();
        [header(1, 0), counts, dims_bytes, vec![0; 4], offset.to_le_bytes().to_vec(), vec![0; 64]].concat()
    };
    assert!(parse(tensor(&[4], 0)).is_ok());
    assert!(malformed(tensor(&[], 0)), "no dimensions");
    assert!(malformed(tensor(&[1; 5], 0)), "five dimensions");
    assert!(malformed(tensor(&[4], 8)), "misaligned");
    assert!(malformed(tensor(&[1 << 40, 1 << 40], 0)), "overflowing size");
    assert!(malformed(tensor(&[4], u64::MAX - 31)), "overflowing offset");
}

fn open_folder(weights: &[u8], config: &[u8]) -> Result<Weights, ModelError> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("model.safetensors"), weights).unwrap();
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    open(folder.path())
}

#[test]
fn the_unchanged_files_load() {
    let [weights, config] = &*HF_FILES;
    assert!(open_folder(weights, config).is_ok());
    let (bytes, regions) = &*GGUF_FILE;
    assert!(parse(bytes.clone()).is_ok());
    assert!(regions.iter().all(|region| region.len() > 500 && region.end < bytes.len()), "{regions:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn changed_gguf_headers_never_panic(
        changes in proptest::collection::vec((any::<bool>(), any::<usize>(), any::<u8>()), 1..8),
        keep in proptest::option::weighted(0.2, 0usize..7000),
    ) {
        let (bytes, regions) = &*GGUF_FILE;
        let mut bytes = bytes.clone();
        for (table, at, byte) in changes {
            let region = &regions[usize::from(table)];
            bytes[region.start + at % region.len()] = byte;
        }
        bytes.truncate(keep.unwrap_or(bytes.len()));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fuzz.gguf");
        std::fs::write(&path, bytes).unwrap();
        let _ = open(&path);
    }

    #[test]
    fn changed_safetensors_headers_never_panic(
        changes in proptest::collection::vec((0usize..1200, any::<u8>()), 1..4),
        keep in proptest::option::weighted(0.3, 0usize..3000),
    ) {
        let [weights, config] = &*HF_FILES;
        let mut weights = weights.clone();
        for (at, byte) in changes {
            weights[at] = byte;
        }
        weights.truncate(keep.unwrap_or(weights.len()));
        let _ = open_folder(&weights, config);
    }

    #[test]
    fn changed_configurations_never_panic(at in any::<usize>(), byte in 0x20u8..0x7f) {
        let [weights, config] = &*HF_FILES;
        let mut config = config.clone();
        let at = at % config.len();
        config[at] = byte;
        let _ = open_folder(weights, &config);
    }
}
