//! Data sets: the rows of a file that a stage works on, with the digest that manifests hold.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use bespoke_domain::{Row, read_rows};
use clap::Args;
use serde_json::{Map, Value, json};

use crate::{case::hex_digest, options::SelectOptions};

/// Where the rows are.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Rows")]
pub(crate) struct DataOptions {
    /// JSON lines with `prompt`, `chosen`, `rejected` and, where needed, the persona columns.
    #[arg(long, value_name = "FILE")]
    pub(crate) data: PathBuf,
    /// Name of the data set, which chooses prompts and folders: BeaverTails, Anthropic-HHH, SHP, Mnemonic or one of yours.
    /// Default: taken from the path.
    #[arg(long, value_name = "NAME")]
    pub(crate) dataset: Option<String>,
    #[command(flatten)]
    pub(crate) select: SelectOptions,
}

/// The data sets of the paper.
const KNOWN: [&str; 4] = ["BeaverTails", "Anthropic-HHH", "SHP", "Mnemonic"];

/// The chosen rows of a file, each with its place in the file.
pub(crate) struct Dataset {
    pub(crate) name: String,
    pub(crate) rows: Vec<(usize, Row)>,
    pub(crate) digest: String,
}

impl Dataset {
    /// Reads a file.
    ///
    /// **Errors**: a file that cannot be read, a line that is not a row; no row at all.
    pub(crate) fn read(options: &DataOptions) -> Result<Self> {
        let path = &options.data;
        let all = read_all(path)?;
        let places = options.select.places(all.len());
        ensure!(!places.is_empty(), "{}: no rows are left to take", path.display());
        let rows = places.into_iter().map(|place| (place, all[place].clone())).collect();
        let name = options.dataset.clone().unwrap_or_else(|| name_of(path));
        Ok(Self { name, rows, digest: file_digest(path)? })
    }

    /// Returns what a manifest says about the rows.
    pub(crate) fn identity(&self, options: &DataOptions) -> Map<String, Value> {
        let mut identity = Map::new();
        identity.insert("data_digest".to_owned(), self.digest.clone().into());
        identity.insert("select".to_owned(), json!(options.select));
        identity
    }
}

/// Reads all rows of a file.
pub(crate) fn read_all(path: &Path) -> Result<Vec<Row>> {
    Ok(read_rows(path)?.collect::<Result<Vec<Row>, _>>()?)
}

/// Identifies the content of a file.
pub(crate) fn file_digest(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(hex_digest(&bytes)[..16].to_owned())
}

/// The known data set that the path names, else the file's own name.
fn name_of(path: &Path) -> String {
    let text = path.to_string_lossy();
    let known = KNOWN.iter().find(|name| text.contains(**name)).map(|name| (*name).to_owned());
    known.unwrap_or_else(|| {
        path.file_stem().map_or_else(|| "data".to_owned(), |stem| stem.to_string_lossy().into_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_names_the_data_set() {
        assert_eq!(name_of(Path::new("x/persona-tailoring/Anthropic-HHH/test.jsonl")), "Anthropic-HHH");
        assert_eq!(name_of(Path::new("mine.jsonl")), "mine");
    }
}
