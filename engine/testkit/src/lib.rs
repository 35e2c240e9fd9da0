//! Test-only: small seeded models written to disk as real ones are, and the way to the shared reference fixtures.
//!
//! Depends on none of the crates it tests: what it writes is an independent reading of the file formats.

mod gguf;
mod hugging_face;
mod random;
mod stored;
mod tiny_encoder;
mod tiny_model;
mod tokenizer;

use std::path::{Path, PathBuf};

pub use stored::{StoredTensor, TinyDtype};
pub use tiny_encoder::TinyEncoder;
pub use tiny_model::{TinyArchitecture, TinyModel, TinyModelDir, TinyRope};
pub use tokenizer::{BOS_ID, CHAT_TEMPLATE, END_OF_TEXT_ID, EOS_ID, SPECIAL_TOKENS, VOCAB_SIZE};

/// Returns the folder with the shared fixtures and data, if this machine has it.
///
/// It is the environment variable `BESPOKE_SHARED`, else `../shared` beside the workspace. Tests that need it print
/// `skipped: ...` and return where it is absent.
pub fn shared_dir() -> Option<PathBuf> {
    let beside = || Some(workspace_dir()?.join("../shared"));
    let path = std::env::var_os("BESPOKE_SHARED").map_or_else(beside, |path| Some(PathBuf::from(path)))?;
    path.is_dir().then_some(path)
}

/// The clone whose tests run: asked at run time, because clones that share a target directory share these programs too.
fn workspace_dir() -> Option<PathBuf> {
    let package = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR")?);
    package.ancestors().find(|folder| folder.join("Cargo.lock").is_file()).map(Path::to_path_buf)
}

/// Returns a fixture folder of the shared directory, or says on standard error that the test is skipped.
pub fn shared_fixture(name: &str) -> Option<PathBuf> {
    let path = shared_dir().map(|shared| shared.join("fixtures").join(name)).filter(|path| path.is_dir());
    if path.is_none() {
        eprintln!("skipped: no shared fixture `{name}` on this machine");
    }
    path
}
