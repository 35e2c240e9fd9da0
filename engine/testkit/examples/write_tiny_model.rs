//! Writes a tiny model with random weights into a folder, for tests in other languages: `write_tiny_model FOLDER`.

use anyhow::{Context, Result};
use bespoke_testkit::TinyModel;

fn main() -> Result<()> {
    let folder = std::env::args_os().nth(1).context("usage: write_tiny_model FOLDER")?;
    // Room for a chat template with a persona, whose letters are tokens here, and slow enough that an answer can be stopped.
    let written =
        TinyModel { context_length: 2048, num_layers: 8, hidden_size: 128, ..TinyModel::default() }.write_hf()?;
    std::fs::create_dir_all(&folder)?;
    for entry in std::fs::read_dir(written.path())? {
        let entry = entry?;
        std::fs::copy(entry.path(), std::path::Path::new(&folder).join(entry.file_name()))?;
    }
    Ok(())
}
