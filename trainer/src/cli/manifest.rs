//! `manifest.json`: what a run was made of, for whoever wants to make it again.

use std::path::{Path, PathBuf};

use anyhow::Context;
use bespoke_kernels::Kernels;
use bespoke_model::ModelSource;
use bespoke_trainer::{ExampleMaker, Method, Outcome, Recipe};
use serde_json::json;
use sha2::{Digest, Sha256};

/// What a manifest tells.
pub(crate) struct Manifest<'a> {
    pub(crate) method: Method,
    pub(crate) recipe: &'a Recipe,
    pub(crate) source: &'a ModelSource,
    pub(crate) maker: &'a ExampleMaker,
    /// Files of rows and their digests.
    pub(crate) files: Vec<(PathBuf, String)>,
    /// As [`instruction_sets`].
    pub(crate) isa: String,
}

impl Manifest<'_> {
    /// Digest of what must not change between two halves of a run: all but where it writes and how many threads it has.
    pub(crate) fn fingerprint(&self) -> anyhow::Result<String> {
        let mut recipe = self.recipe.clone();
        recipe.train.output = PathBuf::new();
        recipe.train.threads = 0;
        // The same rows under another path are the same rows.
        (recipe.data.train, recipe.data.validation) = (String::new(), String::new());
        let digests: Vec<&String> = self.files.iter().map(|(_, digest)| digest).collect();
        let parts = json!([self.method, recipe, self.source.digest()?, digests, self.maker.template_hash()]);
        Ok(Sha256::digest(parts.to_string()).iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Writes the manifest and the complete recipe.
    pub(crate) fn write(&self, outcome: Option<&Outcome>) -> anyhow::Result<()> {
        let output = &self.recipe.train.output;
        let write = |name: &str, text: String| {
            let path = output.join(name);
            std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
        };
        write("recipe.toml", toml::to_string(self.recipe).context("a recipe is always TOML")?)?;
        let files: Vec<_> =
            self.files.iter().map(|(path, sha256)| json!({"path": absolute(path), "sha256": sha256})).collect();
        let manifest = json!({
            "method": self.method,
            "recipe": self.recipe,
            "base": {"name": self.source.name(), "path": absolute(self.source.path()), "digest": self.source.digest()?},
            "data": files,
            "template_hash": self.maker.template_hash(),
            "seed": self.recipe.train.seed,
            "version": env!("CARGO_PKG_VERSION"),
            "commit": option_env!("BESPOKE_COMMIT"),
            "isa": self.isa,
            "fingerprint": self.fingerprint()?,
            "written_at": jiff::Timestamp::now().to_string(),
            "result": outcome.map(|outcome| json!({
                "ending": format!("{:?}", outcome.ending).to_lowercase(),
                "steps": outcome.state.step,
                "tokens": outcome.state.num_tokens,
                "train_seconds": outcome.state.seconds,
                "best_eval_loss": outcome.state.best_loss(),
                "best_step": outcome.state.best_step,
            })),
        });
        write("manifest.json", format!("{manifest:#}\n"))
    }
}

/// The instruction set that a run computes with, and whether it has products in bf16: its last bits depend on that. If the run in the folder
/// goes on with another one, warns, and names those before it too.
pub(crate) fn instruction_sets(kernels: &Kernels, goes_on_in: Option<&Path>) -> String {
    let now = format!("{}{}", kernels.isa(), if kernels.has_bf16() { " with bf16" } else { "" });
    let manifest = goes_on_in.and_then(|folder| std::fs::read_to_string(folder.join("manifest.json")).ok());
    let manifest = manifest.and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok());
    match manifest.as_ref().and_then(|manifest| manifest["isa"].as_str()) {
        Some(before) if before.rsplit(", then ").next() != Some(&now) => {
            tracing::warn!(before, now, "this run began on another instruction set, so it does not go on bit for bit");
            format!("{before}, then {now}")
        }
        Some(before) => before.to_owned(),
        None => now,
    }
}

fn absolute(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string()
}
