//! `cargo xtask`: the one way to check, test and document the workspace. `.ci/run` calls `cargo xtask ci`.
//!
//! Read `ci.rs` for what must pass before a commit lands, then `step.rs` for each command line, then `tidy.rs` for the
//! house rules that a program can check.

#![expect(clippy::print_stdout, reason = "a command line tool: its output is its purpose")]

mod child;
mod ci;
mod clients;
mod peers;
mod step;
mod tidy;
mod totals;
mod venv;
mod workspace;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::totals::Totals;
use crate::workspace::Workspace;

/// Developer commands of Bespoke. Everything needed besides cargo is installed into the user's cache on first use.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Everything that must pass before a commit lands; stops at the first failure, ends with the wall times.
    Ci,
    /// The rules of STYLE.md that a program can check; reports every violation as `file:line: message`.
    Tidy,
    /// All Rust tests: nextest (plain `cargo test` where it is not installed), then the doctests.
    Test,
    /// The end-to-end tests: server and client over real sockets, then all other clients against the built server.
    E2e,
    /// Clients that others wrote (openai, tritonclient, grpcio-health-checking) against the built server.
    Interop,
    /// The TypeScript client against the built server, in Node and in Chromium.
    Typescript,
    /// The backend on mistral.rs and the server with it: lints and tests, after 25 minutes of CPU time for its dependencies.
    Mistral,
    /// The criterion benches, optimised; results are kept under `target/criterion`.
    Bench {
        /// Run only the benches whose name contains this text.
        filter: Option<String>,
    },
    /// Us and llama.cpp in turn on one model: speed of the model, then both served with the same load.
    BenchPeers(peers::Arguments),
    /// The API documentation, where a broken link is an error.
    Docs,
    /// Lint of the `.proto` files (buf).
    Proto,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let workspace = Workspace::locate()?;
    let mut totals = Totals::default();
    let outcome = match args.command {
        Command::Ci => ci::run(&workspace, &mut totals),
        Command::Tidy => tidy::run(&workspace.root),
        Command::Test => {
            step::rust_tests(&workspace, &mut totals).and_then(|()| step::doctests(&workspace, &mut totals))
        }
        Command::E2e => e2e(&workspace, &mut totals),
        Command::Interop => clients::interop(&workspace, &mut totals),
        Command::Typescript => clients::typescript(&workspace, &mut totals),
        Command::Mistral => step::mistral(&workspace, &mut totals),
        Command::Bench { filter } => step::benches(&workspace, filter.as_deref()),
        Command::BenchPeers(arguments) => peers::run(&workspace, &arguments),
        Command::Docs => step::docs(&workspace),
        Command::Proto => step::proto_lint(&workspace),
    };
    // The error goes out first: the totals are the line that readers of a log look for at its end.
    if let Err(error) = &outcome {
        eprintln!("error: {error:#}");
    }
    if totals != Totals::default() {
        println!("{totals}");
    }
    if outcome.is_err() {
        std::process::exit(1);
    }
    Ok(())
}

fn e2e(workspace: &Workspace, totals: &mut Totals) -> Result<()> {
    for step in [step::e2e_tests, clients::python, clients::interop, clients::typescript] {
        step(workspace, totals)?;
    }
    Ok(())
}
