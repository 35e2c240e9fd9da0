//! Progress of a stage on standard error: a bar on a terminal, else a line now and then.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

const BAR: &str = "{msg} [{wide_bar}] {pos}/{len} {per_sec} eta {eta}";
/// How often a line is written where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(30);

/// The progress of one stage.
pub(crate) struct Progress {
    bar: ProgressBar,
    stage: String,
    begun: Instant,
    at_start: AtomicUsize,
    next_line_ms: AtomicU64,
}

impl Progress {
    pub(crate) fn new(stage: &str) -> Self {
        let style = ProgressStyle::with_template(BAR).expect("invariant: the template is valid");
        let bar = ProgressBar::new(0).with_style(style).with_message(stage.to_owned());
        let next_line_ms = AtomicU64::new(LINE_EVERY.as_millis() as u64);
        Self { bar, stage: stage.to_owned(), begun: Instant::now(), at_start: AtomicUsize::new(0), next_line_ms }
    }

    /// Says how many rows there are to be and how many are there.
    pub(crate) fn start(&self, num_rows: usize, num_there: usize) {
        self.bar.set_length(num_rows as u64);
        self.bar.set_position(num_there as u64);
        // The rate and the time left are those of this session.
        self.bar.reset_eta();
        self.at_start.store(num_there, Ordering::Relaxed);
        if num_there > 0 && num_there < num_rows {
            eprintln!("{}: going on, {num_there} of {num_rows} rows are there", self.stage);
        }
    }

    /// Counts one more row.
    pub(crate) fn step(&self) {
        self.bar.inc(1);
        let elapsed = self.begun.elapsed();
        if !self.bar.is_hidden() || (elapsed.as_millis() as u64) < self.next_line_ms.load(Ordering::Relaxed) {
            return;
        }
        self.next_line_ms.store((elapsed + LINE_EVERY).as_millis() as u64, Ordering::Relaxed);
        let (position, length) = (self.bar.position(), self.bar.length().unwrap_or_default());
        let done = position - self.at_start.load(Ordering::Relaxed) as u64;
        let rate = done as f64 / elapsed.as_secs_f64();
        let eta_s = (length - position) as f64 / rate.max(1e-9);
        eprintln!("{}: {position}/{length} rows, {rate:.2} rows/s, {eta_s:.0} s left", self.stage);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
