//! The clients against the built server on a tiny model: one function per step of CI.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::totals::{Runner, Totals};
use crate::workspace::Workspace;
use crate::{child, step, venv};

/// Where Debian puts Chromium, old and new.
const BROWSERS: [&str; 2] = ["/usr/bin/chromium", "/usr/bin/chromium-browser"];
/// What is in the folder that the environment names, or beside the clone, on machines that have it.
const REFERENCE_MODEL: &str = "fixtures/stories260k";

/// What the tests of a client run against.
struct Built {
    engine: PathBuf,
    model: PathBuf,
}

impl Built {
    /// Builds `bespoke-engine` and writes the tiny model. `--workspace --tests` selects the features that the tests were
    /// built with, so that everything but the binary is already there.
    fn new(workspace: &Workspace) -> Result<Self> {
        let what = ["--bin", "bespoke-engine", "--example", "write_tiny_model"];
        child::run(step::cargo(workspace).arg("build").args(step::WORKSPACE).arg("--tests").args(what))?;
        let engine = workspace.target.join("debug/bespoke-engine");
        ensure!(engine.is_file(), "cargo built no `{}`", engine.display());
        let model = workspace.target.join("tmp/tiny");
        child::run(Command::new(workspace.target.join("debug/examples/write_tiny_model")).arg(&model))?;
        Ok(Self { engine, model })
    }

    /// Names the server and the model to the tests that `command` runs.
    fn name_to<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env("BESPOKE_ENGINE_BIN", &self.engine).env("BESPOKE_TEST_MODEL", &self.model)
    }
}

/// Runs the Python client's tests.
pub(crate) fn python(workspace: &Workspace, totals: &mut Totals) -> Result<()> {
    let folder = workspace.root.join("clients/python");
    let manifest = folder.join("pyproject.toml");
    let requirements = std::fs::read_to_string(&manifest).with_context(|| format!("read `{}`", manifest.display()))?;
    let editable = format!("{}[test,dev]", folder.display());
    let bin = venv::bin_dir(&workspace.cache, &requirements, &["--editable", &editable])?;
    let mut built = Built::new(workspace)?;
    // The reference model's golden answer is one test more.
    built.model = reference_model(&workspace.root).unwrap_or(built.model);
    pytest(&bin, &folder, &built, totals)
}

/// Runs the tests of clients that others wrote.
pub(crate) fn interop(workspace: &Workspace, totals: &mut Totals) -> Result<()> {
    let folder = workspace.root.join("clients/interop");
    let list = folder.join("requirements.txt");
    let requirements = std::fs::read_to_string(&list).with_context(|| format!("read `{}`", list.display()))?;
    let bin = venv::bin_dir(&workspace.cache, &requirements, &["--requirement", &list.to_string_lossy()])?;
    pytest(&bin, &folder, &Built::new(workspace)?, totals)
}

fn pytest(bin: &Path, folder: &Path, built: &Built, totals: &mut Totals) -> Result<()> {
    let mut command = Command::new(bin.join("python"));
    command.args(["-m", "pytest"]).current_dir(folder);
    step::counted(built.name_to(&mut command), Runner::Pytest, totals)
}

/// Checks the types of the TypeScript client and runs its tests, in Node and in Chromium.
pub(crate) fn typescript(workspace: &Workspace, totals: &mut Totals) -> Result<()> {
    let folder = workspace.root.join("clients/typescript");
    let npm = || {
        let mut command = Command::new("npm");
        command.current_dir(&folder);
        command
    };
    if !child::succeeds(npm().arg("--version")) || !child::succeeds(Command::new("node").arg("--version")) {
        return absent("Node.js and npm: the TypeScript client is not tested (Debian: `apt-get install nodejs npm`)");
    }
    let browser = browser();
    if browser.is_none() {
        absent("Chromium: the tests in a browser are skipped (Debian: `apt-get install chromium`, or set CHROMIUM)")?;
    }
    child::run(npm().args(["ci", "--loglevel=error"]))?;
    child::run(npm().args(["run", "--silent", "check"]))?;
    let built = Built::new(workspace)?;
    let mut command = npm();
    command.args(["test", "--silent"]).envs(browser.map(|path| ("CHROMIUM", path)));
    step::counted(built.name_to(&mut command), Runner::Node, totals)
}

/// Says what this machine lacks and what that leaves out. CI leaves nothing out.
fn absent(what: &str) -> Result<()> {
    if std::env::var_os("CI").is_some_and(|ci| !ci.is_empty()) {
        bail!("no {what}");
    }
    println!("    (no {what})");
    Ok(())
}

/// The browser that the environment names, else Debian's.
fn browser() -> Option<PathBuf> {
    let named = std::env::var_os("CHROMIUM").map(PathBuf::from);
    named.into_iter().chain(BROWSERS.map(PathBuf::from)).find(|path| path.is_file())
}

/// The model with a golden answer, where this machine has it.
fn reference_model(root: &Path) -> Option<PathBuf> {
    let shared = std::env::var_os("BESPOKE_SHARED").map_or_else(|| root.join("../shared"), PathBuf::from);
    Some(shared.join(REFERENCE_MODEL)).filter(|path| path.is_dir())
}
