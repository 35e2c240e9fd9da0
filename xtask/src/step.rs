//! One function per step: the exact command line that a developer could type.

use std::process::Command;

use anyhow::{Context, Result};

use crate::totals::{Runner, Totals};
use crate::workspace::Workspace;
use crate::{child, venv};

/// The linter of the `.proto` files, pinned so that a new rule arrives as a commit.
const BUF: &str = "buf-bin==1.75.0";

pub(crate) fn format_check(workspace: &Workspace) -> Result<()> {
    child::run(cargo(workspace).args(["fmt", "--all", "--", "--check"])).context("`cargo fmt --all` repairs this")
}

pub(crate) fn clippy(workspace: &Workspace) -> Result<()> {
    child::run(cargo(workspace).args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
}

pub(crate) fn proto_lint(workspace: &Workspace) -> Result<()> {
    let bin = venv::bin_dir(&workspace.cache, BUF, &[BUF])?;
    child::run(Command::new(bin.join("buf")).arg("lint").current_dir(workspace.root.join("proto")))
}

/// Runs the Rust tests but the doctests: with nextest, or with plain cargo on a machine that lacks it.
pub(crate) fn rust_tests(workspace: &Workspace, totals: &mut Totals) -> Result<()> {
    if child::succeeds(cargo(workspace).args(["nextest", "--version"])) {
        return nextest(workspace, totals);
    }
    println!("    (cargo-nextest is not installed: using `cargo test`)");
    let mut command = cargo(workspace);
    command.args(["test", "--workspace", "--lib", "--bins", "--tests", "--no-fail-fast"]);
    counted(&mut command, Runner::Libtest, totals)
}

pub(crate) fn nextest(workspace: &Workspace, totals: &mut Totals) -> Result<()> {
    counted(cargo(workspace).args(["nextest", "run", "--workspace"]), Runner::Nextest, totals)
        .context("if nextest is missing: `cargo install --locked cargo-nextest`")
}

/// Runs the integration tests of the two crates that speak gRPC.
pub(crate) fn e2e_tests(workspace: &Workspace, totals: &mut Totals) -> Result<()> {
    const E2E: &str = "kind(test) & (package(bespoke-server) | package(bespoke-client))";
    counted(cargo(workspace).args(["nextest", "run", "--workspace", "--filterset", E2E]), Runner::Nextest, totals)
        .context("if nextest is missing: `cargo install --locked cargo-nextest`")
}

pub(crate) fn doctests(workspace: &Workspace, totals: &mut Totals) -> Result<()> {
    counted(cargo(workspace).args(["test", "--doc", "--workspace"]), Runner::Libtest, totals)
}

pub(crate) fn docs(workspace: &Workspace) -> Result<()> {
    child::run(cargo(workspace).args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))
}

/// Runs each bench once, unoptimised: `cargo test` shares the artifacts of the tests, `cargo bench` would rebuild all.
pub(crate) fn benches_once(workspace: &Workspace) -> Result<()> {
    child::run(cargo(workspace).args(["test", "--workspace", "--bench", "*"]))
}

pub(crate) fn benches(workspace: &Workspace, filter: Option<&str>) -> Result<()> {
    child::run(cargo(workspace).args(["bench", "--workspace", "--bench", "*", "--"]).args(filter))
}

/// Runs tests and adds what they count.
pub(crate) fn counted(command: &mut Command, runner: Runner, totals: &mut Totals) -> Result<()> {
    let (output, outcome) = child::run_and_keep(command)?;
    totals.add(runner, &output);
    outcome
}

/// Returns cargo in the root of the clone, without what the cargo that runs this program has said about its package: build
/// scripts that look there would run anew, and with them half of the dependencies.
pub(crate) fn cargo(workspace: &Workspace) -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(&workspace.root);
    let of_package = |name: &std::ffi::OsString| {
        name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"))
    };
    for name in std::env::vars_os().map(|(name, _)| name).filter(of_package) {
        command.env_remove(name);
    }
    command
}
