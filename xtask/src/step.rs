//! One function per step: the exact command line that a developer could type.

use std::process::Command;

use anyhow::{Context, Result};

use crate::totals::{Runner, Totals};
use crate::workspace::Workspace;
use crate::{child, venv};

/// The linter of the `.proto` files, pinned so that a new rule arrives as a commit.
const BUF: &str = "buf-bin==1.75.0";

/// All crates but the backend on mistral.rs, whose dependencies alone take 25 minutes of CPU time; [`mistral`] checks that one.
pub(crate) const WORKSPACE: [&str; 3] = ["--workspace", "--exclude", "bespoke-mistral"];

/// The backend on mistral.rs and the server with it, as one selection, so that dependencies are built with one set of features.
const MISTRAL: [&str; 6] = ["-p", "bespoke-mistral", "-p", "bespoke-server", "--features", "bespoke-server/mistralrs"];

pub(crate) fn format_check(workspace: &Workspace) -> Result<()> {
    child::run(cargo(workspace).args(["fmt", "--all", "--", "--check"])).context("`cargo fmt --all` repairs this")
}

pub(crate) fn clippy(workspace: &Workspace) -> Result<()> {
    child::run(cargo(workspace).arg("clippy").args(WORKSPACE).args(["--all-targets", "--", "-D", "warnings"]))
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
    command.arg("test").args(WORKSPACE).args(["--lib", "--bins", "--tests", "--no-fail-fast"]);
    counted(&mut command, Runner::Libtest, totals)
}

pub(crate) fn nextest(workspace: &Workspace, totals: &mut Totals) -> Result<()> {
    counted(cargo(workspace).args(["nextest", "run"]).args(WORKSPACE), Runner::Nextest, totals)
        .context("if nextest is missing: `cargo install --locked cargo-nextest`")
}

/// Runs the integration tests of the two crates that speak gRPC.
pub(crate) fn e2e_tests(workspace: &Workspace, totals: &mut Totals) -> Result<()> {
    const E2E: &str = "kind(test) & (package(bespoke-server) | package(bespoke-client))";
    let mut command = cargo(workspace);
    command.args(["nextest", "run"]).args(WORKSPACE).args(["--filterset", E2E]);
    counted(&mut command, Runner::Nextest, totals)
        .context("if nextest is missing: `cargo install --locked cargo-nextest`")
}

pub(crate) fn doctests(workspace: &Workspace, totals: &mut Totals) -> Result<()> {
    counted(cargo(workspace).args(["test", "--doc"]).args(WORKSPACE), Runner::Libtest, totals)
}

pub(crate) fn docs(workspace: &Workspace) -> Result<()> {
    child::run(cargo(workspace).arg("doc").args(WORKSPACE).arg("--no-deps").env("RUSTDOCFLAGS", "-D warnings"))
}

/// Runs each bench once, unoptimised: `cargo test` shares the artifacts of the tests, `cargo bench` would rebuild all.
pub(crate) fn benches_once(workspace: &Workspace) -> Result<()> {
    child::run(cargo(workspace).arg("test").args(WORKSPACE).args(["--bench", "*"]))
}

pub(crate) fn benches(workspace: &Workspace, filter: Option<&str>) -> Result<()> {
    child::run(cargo(workspace).arg("bench").args(WORKSPACE).args(["--bench", "*", "--"]).args(filter))
}

/// Lints and tests the backend on mistral.rs, and the server where it uses it. Nothing is optimised: the models are tiny, and
/// the dependencies build faster.
pub(crate) fn mistral(workspace: &Workspace, totals: &mut Totals) -> Result<()> {
    const TESTS: &str = "package(bespoke-mistral) | (package(bespoke-server) & test(mistral))";
    let unoptimised = || {
        let mut command = cargo(workspace);
        command.env("CARGO_PROFILE_DEV_OPT_LEVEL", "0");
        command
    };
    child::run(unoptimised().arg("clippy").args(MISTRAL).args(["--all-targets", "--", "-D", "warnings"]))?;
    let mut command = unoptimised();
    command.args(["nextest", "run"]).args(MISTRAL).args(["--filterset", TESTS]);
    counted(&mut command, Runner::Nextest, totals)
        .context("if nextest is missing: `cargo install --locked cargo-nextest`")
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
