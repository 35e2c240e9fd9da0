//! How a pull tells what it does: a trait for the caller to fill, and the terminal's bar.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tracing::info;

const BAR: &str = "{msg} [{wide_bar}] {bytes}/{total_bytes} {binary_bytes_per_sec} ({eta})";

/// Receives the progress of one pull.
pub trait Progress: Send + Sync {
    /// A pull of `bytes_total` bytes begins; 0 means that the size is not known.
    fn start(&self, name: &str, bytes_total: u64);
    /// So many bytes of the total are there. It may fall back when a source turns out bad.
    fn advance_to(&self, bytes: u64);
    /// Something that the user should know: a wait, or a change of source.
    fn note(&self, message: &str);
    /// All files are verified and in place.
    fn finish(&self);
}

/// Draws a bar on standard error where that is a terminal, and else logs a line for each tenth.
#[derive(Debug)]
pub struct TerminalProgress {
    /// `None` where standard error is not a terminal.
    bar: Option<ProgressBar>,
    bytes_total: AtomicU64,
    tenths_logged: AtomicU64,
}

impl TerminalProgress {
    /// Looks at standard error and picks the bar or the log lines.
    pub fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template(BAR).expect("invariant: a test parses the template");
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden());
            bar.set_style(style);
            bar
        });
        Self { bar, bytes_total: AtomicU64::new(0), tenths_logged: AtomicU64::new(0) }
    }
}

impl Default for TerminalProgress {
    fn default() -> Self {
        Self::new()
    }
}

impl Progress for TerminalProgress {
    fn start(&self, name: &str, bytes_total: u64) {
        self.bytes_total.store(bytes_total, Ordering::Relaxed);
        self.tenths_logged.store(0, Ordering::Relaxed);
        match &self.bar {
            Some(bar) => {
                // The bar is hidden until here, so that a pull that finds its model in the cache draws nothing.
                bar.set_draw_target(ProgressDrawTarget::stderr());
                bar.set_length(bytes_total);
                bar.set_message(name.to_owned());
            }
            None => info!(model = name, bytes_total, "pulling a model"),
        }
    }

    fn advance_to(&self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(bytes);
            return;
        }
        let bytes_total = self.bytes_total.load(Ordering::Relaxed);
        let tenths = (bytes * 10).checked_div(bytes_total).unwrap_or(0);
        if tenths > self.tenths_logged.fetch_max(tenths, Ordering::Relaxed) {
            info!(bytes, bytes_total, "pulling a model");
        }
    }

    fn note(&self, message: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{message}")),
            None => info!("{message}"),
        }
    }

    fn finish(&self) {
        match &self.bar {
            Some(bar) => bar.finish(),
            None => info!("the model is in the cache"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_instead_of_drawing_without_a_terminal() {
        let progress = TerminalProgress { bar: None, ..TerminalProgress::new() };
        progress.advance_to(5);
        progress.start("m", 100);
        progress.advance_to(55);
        assert_eq!(progress.tenths_logged.load(Ordering::Relaxed), 5);
        progress.note("a note");
        progress.finish();
    }

    #[test]
    fn the_bar_template_parses() {
        assert!(ProgressStyle::with_template(BAR).is_ok());
    }
}
