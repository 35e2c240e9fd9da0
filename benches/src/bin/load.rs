//! `load`: drives a server with streaming requests and prints what its clients feel; see the crate's documentation.

use std::io::Write;

use bespoke_benches::LoadOptions;
use clap::Parser;

/// Measures a server under load: time to the first token, time between tokens, tokens a second.
#[derive(Parser)]
#[command(name = "load", version)]
struct Arguments {
    #[command(flatten)]
    options: LoadOptions,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    // One thread: the load generator shares the machine with the server and must take little of it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(bespoke_benches::run(&arguments.options))?;
    let mut out = std::io::stdout().lock();
    if arguments.json {
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
    } else {
        write!(out, "{report}")?;
    }
    Ok(())
}
