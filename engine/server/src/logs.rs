//! Structured logs on standard error. Prompts, personas and answers are in none of them.

use std::io::IsTerminal;

use anyhow::Context;
use tracing_subscriber::EnvFilter;

use crate::LogFormat;

/// Starts to log.
///
/// **Errors**: directives that are wrong.
pub fn start_logs(format: LogFormat, filter: &str) -> anyhow::Result<()> {
    // The tokenizer's own traces quote the text.
    let filter = EnvFilter::try_new(format!("{filter},tokenizers=off"))
        .with_context(|| format!("log_filter `{filter}` is wrong"))?;
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let logs = logs.with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Pretty => logs.init(),
        LogFormat::Json => logs.json().flatten_event(true).init(),
    }
    Ok(())
}
