//! `cargo xtask tidy`: the rules of STYLE.md that a program can check. Each rule is a pure function of a path and a text.
//!
//! `manifest` holds the dependency arrows, `lockfile` the duplicate versions, `path` the names and sizes of files,
//! `text` what may stand in any file, `rust` what may stand in Rust code (it reads `token`s, so strings and comments
//! are never mistaken for code).

mod lockfile;
mod manifest;
mod path;
mod rust;
mod text;
mod token;

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// The reasons for two versions of one crate, one `name: reason` per line.
const DUPLICATE_VERSIONS: &str = "xtask/duplicate-versions.txt";

/// A rule of STYLE.md that a place in a file breaks.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Violation {
    path: String,
    line: usize,
    message: String,
}

impl Violation {
    fn new(path: &str, line: usize, message: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, message: message.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.message)
    }
}

/// Checks every file that git tracks or would add, and prints each violation.
///
/// # Errors
/// A file breaks a rule, or git or a file cannot be read.
pub(crate) fn run(root: &Path) -> Result<()> {
    let paths = paths_of(root)?;
    let mut violations = Vec::new();
    for path in &paths {
        let bytes = fs::read(root.join(path)).with_context(|| format!("read `{path}`"))?;
        violations.extend(check_file(path, &bytes));
    }
    let read = |path: &str| fs::read_to_string(root.join(path)).with_context(|| format!("read `{path}`"));
    violations.extend(lockfile::check(&read("Cargo.lock")?, &read(DUPLICATE_VERSIONS)?));
    violations.sort();
    for violation in &violations {
        println!("{violation}");
    }
    ensure!(violations.is_empty(), "tidy: {} violations in {} files", violations.len(), paths.len());
    println!("tidy: {} files, no violation", paths.len());
    Ok(())
}

/// Applies every rule that looks at one file.
fn check_file(path: &str, bytes: &[u8]) -> Vec<Violation> {
    let mut violations = path::check(path, bytes.len());
    let Ok(text) = std::str::from_utf8(bytes) else { return violations };
    violations.extend(text::check(path, text));
    if path.ends_with(".rs") {
        violations.extend(rust::check(path, text));
    }
    if path == "Cargo.toml" || path.ends_with("/Cargo.toml") {
        violations.extend(manifest::check(path, text));
    }
    violations
}

/// The files that git tracks or would add, so that a violation shows before the commit.
fn paths_of(root: &Path) -> Result<Vec<String>> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .context("run `git ls-files`")?;
    if !output.status.success() {
        bail!("`git ls-files`: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let listing = String::from_utf8(output.stdout).context("a path is not UTF-8")?;
    // A file deleted but not yet committed is still listed.
    Ok(listing.split_terminator('\0').filter(|path| root.join(path).is_file()).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_violation_prints_as_file_line_message() {
        assert_eq!(Violation::new("a/b.rs", 7, "too long").to_string(), "a/b.rs:7: too long");
    }

    #[test]
    fn every_rule_of_a_file_is_reported_not_the_first() {
        let text = "fn f() { todo!() }\nfn g() { unimplemented!() }\n";
        let violations = check_file("engine/src/utils.rs", text.as_bytes());
        // The name, the missing `//!`, and the two macros.
        assert_eq!(violations.len(), 4, "{violations:?}");
    }

    #[test]
    fn bytes_that_are_not_text_are_only_measured() {
        assert!(check_file("fixtures/model.gguf", &[0xff, 0xfe]).is_empty());
    }
}
