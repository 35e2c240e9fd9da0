//! What the reference thinks of each pair: computed once with the adapter off, and cached beside the run.

use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use sha2::{Digest, Sha256};

use crate::example::Example;
use crate::items::pieces;
use crate::pass::Pass;
use crate::step::reference_logprobs;
use crate::{TrainError, files};

/// Gives the log-probabilities of both answers of each pair, from the cache of the run if it holds them.
///
/// `identity` says which base computes them. `progress` hears how many pairs are done; where it returns `false` the work stops and
/// `None` is given.
///
/// **Errors**: `Io` when the cache cannot be written.
pub fn references(
    pass: &mut Pass<'_>,
    examples: &[Example],
    (identity, batch_tokens): (&str, usize),
    cache: &Path,
    progress: &mut dyn FnMut(usize) -> bool,
) -> Result<Option<Vec<[f64; 2]>>, TrainError> {
    let key = key(identity, examples);
    if let Some(found) = read(cache, &key, examples.len()) {
        return Ok(Some(found));
    }
    let refs: Vec<&Example> = examples.iter().collect();
    let mut logprobs = Vec::with_capacity(examples.len());
    for piece in pieces(&refs, batch_tokens) {
        if !progress(logprobs.len()) {
            return Ok(None);
        }
        let sums = reference_logprobs(pass, &refs[piece]);
        logprobs.extend(sums.as_chunks::<2>().0.iter().copied());
    }
    let bytes: Vec<u8> = logprobs.iter().flatten().flat_map(|value| value.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F64, vec![logprobs.len(), 2], &bytes).expect("invariant: eight bytes a value");
    let metadata = Some([("key".to_owned(), key)].into());
    let text =
        safetensors::serialize([("logprobs", view)], metadata).map_err(|error| TrainError::file(cache, error))?;
    files::write_atomic(cache, &text)?;
    Ok(Some(logprobs))
}

/// The cached values, if they are there and belong to these pairs and this base.
fn read(cache: &Path, key: &str, num: usize) -> Option<Vec<[f64; 2]>> {
    let bytes = std::fs::read(cache).ok()?;
    let (_, header) = SafeTensors::read_metadata(&bytes).ok()?;
    if header.metadata().as_ref()?.get("key")? != key {
        return None;
    }
    let stored = SafeTensors::deserialize(&bytes).ok()?;
    let tensor = stored.tensor("logprobs").ok()?;
    let values: Vec<f64> = tensor.data().as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();
    (tensor.shape() == [num, 2]).then(|| values.as_chunks::<2>().0.to_vec())
}

fn key(identity: &str, examples: &[Example]) -> String {
    let mut hasher = Sha256::new();
    hasher.update(identity.as_bytes());
    for example in examples {
        if let Example::Pair { prompt, chosen, rejected } = example {
            for ids in [prompt, chosen, rejected] {
                hasher.update((ids.len() as u64).to_le_bytes());
                ids.iter().for_each(|id| hasher.update(id.to_le_bytes()));
            }
        }
    }
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
