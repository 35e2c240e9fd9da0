//! Python tools in virtual environments under the user's cache, made on first use and named by what they hold.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::child;

/// Returns the `bin` directory of a virtual environment in which `pip install <pip_args>` has succeeded.
///
/// `requirements` is the text that says what is installed: another text is another environment.
///
/// # Errors
/// Python has no `venv`, or pip fails.
pub(crate) fn bin_dir(cache: &Path, requirements: &str, pip_args: &[&str]) -> Result<PathBuf> {
    let venv = cache.join(venv_name(requirements));
    let bin = venv.join("bin");
    // What was installed, and from where: a second clone on the same machine installs its own sources over it.
    let stamp = venv.join("installed");
    let installed = pip_args.join("\n");
    if fs::read_to_string(&stamp).is_ok_and(|text| text == installed) {
        return Ok(bin);
    }
    fs::create_dir_all(cache).with_context(|| format!("create `{}`", cache.display()))?;
    child::run(Command::new("python3").args(["-m", "venv"]).arg(&venv))
        .context("make a virtual environment (Debian: `apt-get install python3-venv`)")?;
    child::run(
        Command::new(bin.join("python"))
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
            .args(pip_args),
    )?;
    fs::write(&stamp, installed).with_context(|| format!("write `{}`", stamp.display()))?;
    Ok(bin)
}

/// The hash need not be stable across Rust releases: a new one costs one more installation.
fn venv_name(requirements: &str) -> String {
    let mut hasher = DefaultHasher::new();
    requirements.hash(&mut hasher);
    format!("venv-{:016x}", hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_follows_the_requirements() {
        assert_eq!(venv_name("a==1"), venv_name("a==1"));
        assert_ne!(venv_name("a==1"), venv_name("a==2"));
    }
}
