//! From a recipe to an opened model and examples.

use std::path::PathBuf;

use anyhow::Context;
use bespoke_model::ModelSource;
use bespoke_store::{Store, TerminalProgress};
use bespoke_trainer::{ExampleMaker, Made, Method, Recipe, RowFile, make_all};

/// Opens a model by catalogue name, hub id or path, fetching it first if need be.
pub(crate) fn open_model(reference: &str) -> anyhow::Result<ModelSource> {
    let store = Store::open(None)?;
    let path: PathBuf = match store.resolve(reference)? {
        Some(path) => path,
        None => store.pull(reference, &TerminalProgress::new()).with_context(|| format!("fetching `{reference}`"))?,
    };
    Ok(ModelSource::open(&path)?)
}

/// The examples of one file.
pub(crate) struct Examples {
    /// The examples.
    pub(crate) made: Vec<Made>,
    /// The file and its digest.
    pub(crate) file: (PathBuf, String),
}

/// Reads a file of rows and makes its examples.
pub(crate) fn examples(maker: &ExampleMaker, recipe: &Recipe, reference: &str) -> anyhow::Result<Examples> {
    let file = RowFile::read(reference)?;
    let made = make_all(maker, &file.rows, file.bad, &recipe.data, num_threads(recipe))?;
    let num_cut = made.iter().filter(|made| made.num_cut > 0).count();
    tracing::info!(file = %file.path.display(), num_examples = made.len(), num_cut, "rows read");
    Ok(Examples { made, file: (file.path, file.sha256) })
}

/// The maker of examples for a model.
pub(crate) fn maker(source: &ModelSource, recipe: &Recipe, method: Method) -> anyhow::Result<ExampleMaker> {
    Ok(ExampleMaker::new(source, &recipe.data, method)?)
}

/// Threads to use.
pub(crate) fn num_threads(recipe: &Recipe) -> usize {
    match recipe.train.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    }
}
