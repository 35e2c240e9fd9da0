//! Where things are: the root of the clone, cargo's target directory and the user's cache.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The directories that the steps work in.
pub(crate) struct Workspace {
    /// The root of the clone.
    pub(crate) root: PathBuf,
    /// Cargo's target directory, wherever the environment or a config file puts it.
    pub(crate) target: PathBuf,
    /// Our directory in the user's cache; it may not exist yet.
    pub(crate) cache: PathBuf,
}

impl Workspace {
    /// Finds the directories by asking cargo and the environment.
    ///
    /// # Errors
    /// Cargo did not run this program, `cargo metadata` fails, or neither `XDG_CACHE_HOME` nor `HOME` is set.
    pub(crate) fn locate() -> Result<Self> {
        // Asked at run time: clones that share a target directory share this program too.
        let xtask = std::env::var_os("CARGO_MANIFEST_DIR").context("run this as `cargo xtask`")?;
        let root = Path::new(&xtask).parent().context("invariant: xtask is in the root")?.to_owned();
        let output = Command::new("cargo")
            .args(["metadata", "--no-deps", "--format-version=1"])
            .current_dir(&root)
            .output()
            .context("run `cargo metadata`")?;
        ensure!(output.status.success(), "`cargo metadata`: {}", String::from_utf8_lossy(&output.stderr).trim());
        let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).context("parse `cargo metadata`")?;
        let target = metadata["target_directory"].as_str().context("`cargo metadata` names no target directory")?;
        Ok(Self { root, target: PathBuf::from(target), cache: cache_dir()? })
    }
}

fn cache_dir() -> Result<PathBuf> {
    let of = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = of("XDG_CACHE_HOME").or_else(|| of("HOME").map(|home| home.join(".cache")));
    Ok(base.context("neither `XDG_CACHE_HOME` nor `HOME` is an absolute path")?.join("bespoke"))
}
