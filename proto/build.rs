//! Compiles `proto/bespoke/v1/*.proto` and `proto/inference/*.proto` in pure Rust: messages, services and the descriptor set that reflection serves.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

/// The folder that import paths start from; the same as in `buf.yaml`.
const ROOT: &str = "proto";
const FOLDERS: [&str; 2] = ["proto/bespoke/v1", "proto/inference"];

/// Messages that hold texts of users or models, which a derived `Debug` would print. `src/debug.rs` writes theirs.
const PRIVATE: [&str; 26] = [
    ".bespoke.v1.PromptSpec",
    ".bespoke.v1.Message",
    ".bespoke.v1.TokenIdList",
    ".bespoke.v1.PersonaSource",
    ".bespoke.v1.StopParams",
    ".bespoke.v1.Started",
    ".bespoke.v1.Delta",
    ".bespoke.v1.TokenLogprob",
    ".bespoke.v1.TopLogprob",
    ".bespoke.v1.MatchedStop",
    ".bespoke.v1.GeneratedChoice",
    ".bespoke.v1.Continuation",
    ".bespoke.v1.EmbedRequest",
    ".bespoke.v1.Embedding",
    ".bespoke.v1.TokenizeRequest",
    ".bespoke.v1.TokenizeResponse",
    ".bespoke.v1.DetokenizeRequest",
    ".bespoke.v1.DetokenizeResponse",
    ".bespoke.v1.RenderPromptRequest",
    ".bespoke.v1.RenderPromptResponse",
    ".bespoke.v1.Span",
    ".inference.InferParameter",
    ".inference.InferTensorContents",
    ".inference.ModelInferRequest",
    ".inference.ModelInferResponse",
    ".inference.ModelStreamInferResponse",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={ROOT}");
    let mut files = Vec::new();
    for folder in FOLDERS {
        for entry in fs::read_dir(folder)? {
            files.push(entry?.path());
        }
    }
    files.sort();
    let descriptors = protox::compile(&files, [ROOT])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("bespoke.v1.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .btree_map(".bespoke.v1.SamplingParams.logit_bias")
        .skip_debug(PRIVATE)
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)?;
    Ok(())
}
