//! The progress of a run: a bar where standard error is a terminal, else log lines.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use bespoke_trainer::{Record, Watcher};
use indicatif::{ProgressBar, ProgressStyle};
use tracing::info;

const BAR: &str = "{prefix} [{wide_bar}] {pos}/{len} {msg} ({eta})";
/// Time between two log lines.
const LOG_EVERY: Duration = Duration::from_secs(10);
/// Share of the newest step in the values that are shown.
const NEWEST: f64 = 0.05;

/// Shows a run.
pub(crate) struct Watch {
    bar: Option<ProgressBar>,
    logged: Instant,
    loss: Option<f64>,
    tokens_per_s: f64,
}

impl Watch {
    /// Picks the bar or the log lines.
    pub(crate) fn new() -> Watch {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(0);
            bar.set_style(ProgressStyle::with_template(BAR).expect("invariant: a test parses the template"));
            bar
        });
        Watch { bar, logged: Instant::now(), loss: None, tokens_per_s: 0.0 }
    }

    /// Shows work before the first step.
    pub(crate) fn preparing(&mut self, what: &'static str, done: usize, all: usize) {
        if let Some(bar) = &self.bar {
            bar.set_prefix(what);
            bar.set_length(all as u64);
            bar.set_position(done as u64);
        } else if self.is_time() {
            info!(done, all, "{what}");
        }
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn is_time(&mut self) -> bool {
        let is_time = self.logged.elapsed() >= LOG_EVERY;
        if is_time {
            self.logged = Instant::now();
        }
        is_time
    }
}

impl Watcher for Watch {
    fn step(&mut self, record: &Record, steps: u64) {
        let means = &record.means;
        let loss = self.loss.map_or(means.loss, |loss| loss + NEWEST * (means.loss - loss));
        let share = if self.loss.is_none() { 1.0 } else { NEWEST };
        self.tokens_per_s += share * (record.tokens_per_s - self.tokens_per_s);
        self.loss = Some(loss);
        if let Some(bar) = &self.bar {
            if bar.length() != Some(steps) || bar.prefix() != "train" {
                bar.set_prefix("train");
                bar.set_length(steps);
                bar.set_position(record.step);
                bar.reset_eta();
            }
            bar.set_position(record.step);
            bar.set_message(format!("loss {loss:.4}, {:.0} tokens/s", self.tokens_per_s));
        } else if self.is_time() || record.step == steps {
            info!(step = record.step, steps, loss, tokens_per_s = self.tokens_per_s.round(), "training");
        }
    }

    fn evaluating(&mut self, done: usize, items: usize) {
        self.preparing("eval", done, items);
    }

    fn evaluated(&mut self, record: &Record, best: bool) {
        let means = &record.means;
        let accuracy = means.preference.map(|preference| preference.accuracy);
        let margin = means.preference.map(|preference| preference.margin);
        let log =
            || info!(step = record.step, epoch = record.epoch, loss = means.loss, accuracy, margin, best, "evaluated");
        match &self.bar {
            Some(bar) => bar.suspend(log),
            None => log(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_template_parses() {
        assert!(ProgressStyle::with_template(BAR).is_ok());
    }
}
