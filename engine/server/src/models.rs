//! `pull` and `models`: the local cache of models.

use std::{io::Write, path::PathBuf};

use bespoke_store::{Store, TerminalProgress, catalogue};
use clap::Args;

/// Arguments of `pull`.
#[derive(Args, Debug)]
pub struct Pull {
    /// A name that `models` lists, a hub id such as owner/name or owner/name:file.gguf, or a path.
    pub model: String,
    /// Folder of the cache. Default: $BESPOKE_CACHE, else bespoke in the user's cache folder.
    #[arg(long, value_name = "FOLDER")]
    pub cache: Option<PathBuf>,
}

/// Arguments of `models`.
#[derive(Args, Debug)]
pub struct Listing {
    /// Print one JSON object instead of a table.
    #[arg(long)]
    pub json: bool,
    /// Folder of the cache. Default: $BESPOKE_CACHE, else bespoke in the user's cache folder.
    #[arg(long, value_name = "FOLDER")]
    pub cache: Option<PathBuf>,
}

/// Fetches a model and prints its path.
///
/// **Errors**: a model that cannot be had.
pub fn pull(arguments: &Pull) -> anyhow::Result<()> {
    let path = Store::open(arguments.cache.clone())?.pull(&arguments.model, &TerminalProgress::new())?;
    writeln!(std::io::stdout(), "{}", path.display())?;
    Ok(())
}

/// Prints the models of the cache and the catalogue.
///
/// **Errors**: a cache that cannot be read.
pub fn list_models(arguments: &Listing) -> anyhow::Result<()> {
    let cached = Store::open(arguments.cache.clone())?.list()?;
    let mut out = std::io::stdout().lock();
    if arguments.json {
        let cached: Vec<_> = cached
            .iter()
            .map(|model| {
                let path = model.path.display().to_string();
                serde_json::json!({"name": model.name, "path": path, "bytes": model.bytes, "source": model.source})
            })
            .collect();
        let known: Vec<_> = catalogue()
            .iter()
            .map(|entry| {
                let (name, description) = (entry.name, entry.description);
                serde_json::json!({"name": name, "description": description, "licence": entry.licence, "bytes": entry.bytes()})
            })
            .collect();
        writeln!(out, "{:#}", serde_json::json!({"cached": cached, "catalogue": known}))?;
        return Ok(());
    }
    writeln!(out, "In the cache:")?;
    for model in &cached {
        writeln!(out, "  {:<30} {:>7} MB  {}", model.name, megabytes(model.bytes), model.path.display())?;
    }
    if cached.is_empty() {
        writeln!(out, "  nothing yet; `bespoke-engine pull {}` fetches the default", bespoke_store::DEFAULT_MODEL)?;
    }
    writeln!(out, "Known by name:")?;
    for entry in catalogue() {
        writeln!(out, "  {:<30} {:>7} MB  {}", entry.name, megabytes(entry.bytes()), entry.description)?;
    }
    Ok(())
}

fn megabytes(bytes: u64) -> u64 {
    bytes.div_ceil(1_000_000)
}
