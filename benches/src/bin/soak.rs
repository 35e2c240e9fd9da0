//! `soak`: random requests for a long time, and a look at what they leave behind; see `soak.rs` of the crate.

use std::io::Write;

use bespoke_benches::SoakOptions;
use clap::Parser;

/// Runs a server with random requests, cancels and priorities, and fails where it keeps what nobody asks for any more.
#[derive(Parser)]
#[command(name = "soak", version)]
struct Arguments {
    #[command(flatten)]
    options: SoakOptions,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(bespoke_benches::soak(&arguments.options))?;
    writeln!(std::io::stdout().lock(), "{}", serde_json::to_string(&report)?)?;
    Ok(())
}
