//! Writing GGUF files, and quantizing while loading: what comes out loads again and computes nearly the same.

use std::path::Path;

use bespoke_kernels::{DType, argmax};
use bespoke_model::{
    LoadOptions, Model, ModelError, ModelSource, Quantization, QuantizeOptions, QuantizeSummary, quantize_model,
};
use bespoke_testkit::{TinyArchitecture, TinyDtype, TinyModel, TinyRope};

use crate::runner::{Runner, rounds_activations, tokens};

/// Wide enough that the rows of all matrices are whole blocks of the K formats.
fn wide() -> TinyModel {
    TinyModel { hidden_size: 256, intermediate_size: 512, head_dim: 64, ..TinyModel::default() }
}

fn write(source: &Path, output: &Path, quantization: Quantization) -> Result<QuantizeSummary, ModelError> {
    let options = QuantizeOptions { quantization, num_threads: 2, overwrite: false };
    let mut last = 0;
    let summary = quantize_model(&ModelSource::open(source)?, output, options, &mut |progress| {
        assert!(progress.bytes >= last && progress.bytes <= progress.bytes_total, "{progress:?}");
        last = progress.bytes;
        std::ops::ControlFlow::Continue(())
    })?;
    assert_eq!(summary.file_bytes, std::fs::metadata(output).unwrap().len());
    Ok(summary)
}

fn logits(path: &Path) -> Vec<Vec<f32>> {
    let tokens = tokens(24, 3);
    Runner::new(path).logits(&tokens, [tokens.len()])
}

/// One minus the cosine between two lists of logits.
fn distance(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    let dot =
        |a: &[Vec<f32>], b: &[Vec<f32>]| a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| a * b).sum::<f32>();
    1.0 - dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn an_unquantized_copy_computes_the_same() {
    let models = [
        TinyModel::default(),
        TinyModel { tie_embeddings: true, rope: TinyRope::Llama3, attention_bias: true, ..TinyModel::default() },
        TinyModel { dtype: TinyDtype::Bf16, rope: TinyRope::Linear(2.0), ..TinyModel::default() },
        TinyModel { architecture: TinyArchitecture::Mistral, sliding_window: Some(9), ..TinyModel::default() },
        TinyModel { architecture: TinyArchitecture::Qwen2, dtype: TinyDtype::F16, ..TinyModel::default() },
        TinyModel { architecture: TinyArchitecture::Qwen3, ..TinyModel::default() },
    ];
    for tiny in models {
        let (folder, out) = (tiny.write_hf().unwrap(), tempfile::tempdir().unwrap());
        let copy = out.path().join("copy.gguf");
        write(folder.path(), &copy, Quantization::None).unwrap();
        let (before, after) = (logits(folder.path()), logits(&copy));
        // Sums in another order may be rounded to another bf16.
        let bound = if rounds_activations(&tiny) { 0.3 } else { 1e-3 };
        for (before, after) in before.iter().zip(&after) {
            assert!(bound > 1e-3 || argmax(before) == argmax(after));
            assert!(before.iter().zip(after).all(|(a, b)| (a - b).abs() < bound), "{tiny:?}");
        }
        // A copy of the copy is the same file.
        let again = out.path().join("again.gguf");
        write(&copy, &again, Quantization::None).unwrap();
        assert_eq!(logits(&again), after);
    }
}

#[test]
fn every_scheme_stays_close_in_both_ways() {
    let folder = wide().write_hf().unwrap();
    let exact = logits(folder.path());
    // Found: 0.0018, 0.16, 0.12, 0.11, 0.034, 0.0089; random weights of this size make small models chaotic.
    let bounds = [0.004, 0.25, 0.2, 0.18, 0.06, 0.02];
    for (quantization, bound) in Quantization::ALL[1..].iter().copied().zip(bounds) {
        let out = tempfile::tempdir().unwrap();
        let file = out.path().join("out.gguf");
        let summary = write(folder.path(), &file, quantization).unwrap();
        assert!(summary.replacements.is_empty() && summary.num_requantized == 0, "{summary:?}");
        let written = logits(&file);
        assert!(distance(&exact, &written) < bound, "{quantization}: {}", distance(&exact, &written));
        let options = LoadOptions { quantization, ..LoadOptions::default() };
        let loaded = Model::load(folder.path(), options).unwrap();
        let copied = Model::load(&file, LoadOptions::default()).unwrap();
        assert_eq!((loaded.dtype(), loaded.weights().embeddings.dtype()), (copied.dtype(), DType::Q8_0));
        assert_eq!(loaded.dtype(), quantization.dtype().unwrap());
        let tokens = tokens(24, 3);
        let loaded = Runner::of(loaded).logits(&tokens, [tokens.len()]);
        assert!(distance(&loaded, &written) < 1e-3, "{quantization}: {}", distance(&loaded, &written));
    }
}

#[test]
fn rows_that_do_not_fit_are_reported() {
    let (folder, out) = (TinyModel::default().write_hf().unwrap(), tempfile::tempdir().unwrap());
    let summary = write(folder.path(), &out.path().join("out.gguf"), Quantization::Q4K).unwrap();
    assert_eq!(summary.replacements.len(), 14);
    let first = &summary.replacements[0];
    assert_eq!((first.tensor.as_str(), first.cols), ("blk.0.attn_q.weight", 64));
    assert_eq!((first.wanted, first.found), (DType::Q4K, DType::Q5_0));
    assert_eq!(
        summary.formats.iter().map(|(dtype, ..)| *dtype).collect::<Vec<_>>(),
        [DType::F32, DType::Q5_0, DType::Q8_0]
    );
}

#[test]
fn a_quantized_source_is_requantized_only_into_a_file() {
    let (source, out) =
        (TinyModel { dtype: TinyDtype::Q8_0, ..wide() }.write_gguf().unwrap(), tempfile::tempdir().unwrap());
    let same = write(source.path(), &out.path().join("same.gguf"), Quantization::Q8_0).unwrap();
    assert_eq!(same.num_requantized, 0);
    assert_eq!(logits(&out.path().join("same.gguf")), logits(source.path()));
    let again = write(source.path(), &out.path().join("again.gguf"), Quantization::Q4_0).unwrap();
    assert_eq!(again.num_requantized, 14);
    let floats = write(source.path(), &out.path().join("floats.gguf"), Quantization::None).unwrap();
    assert_eq!((floats.num_requantized, floats.formats.len()), (0, 1));
    let options = LoadOptions { quantization: Quantization::Q4_0, ..LoadOptions::default() };
    match Model::load(source.path(), options) {
        Err(ModelError::AlreadyQuantized { tensor, found, .. }) => {
            assert_eq!((tensor.as_str(), found), ("token_embd.weight", DType::Q8_0));
        }
        other => panic!("expected a refusal, got {:?}", other.map(|model| model.dtype())),
    }
}

#[test]
fn a_broken_weight_is_named_and_leaves_no_file() {
    let (source, out) = (TinyModel::default().write_hf().unwrap(), tempfile::tempdir().unwrap());
    let weights = source.path().join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let (header_bytes, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let at = 8 + header_bytes + header.info("model.layers.1.mlp.up_proj.weight").unwrap().data_offsets.0;
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&weights, bytes).unwrap();
    let load = Model::load(source.path(), LoadOptions { quantization: Quantization::Q8_0, ..LoadOptions::default() });
    for error in [write(source.path(), &out.path().join("out.gguf"), Quantization::Q8_0).err(), load.err()] {
        match error {
            Some(ModelError::TensorValue { tensor, reason, .. }) => {
                assert!(
                    tensor == "model.layers.1.mlp.up_proj.weight" && reason.starts_with("NaN in row 0, column 0"),
                    "{tensor}: {reason}"
                );
            }
            other => panic!("expected a broken weight, got {other:?}"),
        }
    }
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
}

#[test]
fn windows_of_some_layers_are_refused() {
    let tiny = TinyModel { architecture: TinyArchitecture::Qwen2, sliding_window: Some(8), ..TinyModel::default() };
    let (folder, out) = (tiny.write_hf().unwrap(), tempfile::tempdir().unwrap());
    let error = write(folder.path(), &out.path().join("out.gguf"), Quantization::Q8_0).unwrap_err().to_string();
    assert!(error.contains("sliding_window"), "{error}");
}

#[test]
fn an_interrupted_file_leaves_nothing_behind() {
    let tiny = TinyModel::default().write_hf().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let source = ModelSource::open(tiny.path()).unwrap();
    let options = QuantizeOptions { quantization: Quantization::Q8_0, num_threads: 1, overwrite: false };
    let result =
        quantize_model(&source, &folder.path().join("out.gguf"), options, &mut |_| std::ops::ControlFlow::Break(()));
    assert!(matches!(result, Err(ModelError::Interrupted)), "{result:?}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
