//! `overload`: a server at its capacity and beyond; see `overload.rs` of the crate.

use std::io::Write;

use bespoke_benches::OverloadOptions;
use clap::Parser;

/// Asks a server for more than it can give and reports whether those it takes in feel it, and how it refuses the rest.
#[derive(Parser)]
#[command(name = "overload", version)]
struct Arguments {
    #[command(flatten)]
    options: OverloadOptions,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(bespoke_benches::overload(&arguments.options))?;
    writeln!(std::io::stdout().lock(), "{}", serde_json::to_string_pretty(&report)?)?;
    Ok(())
}
