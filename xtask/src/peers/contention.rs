//! How much of the machine other processes take during a measurement.
//!
//! The two sides do not suffer alike: llama.cpp's threads spin at their barriers and lose most of their speed when a third
//! process wants a core, ours lose less. A ratio from a busy machine flatters us, so it is marked.

use std::fs;

use anyhow::{Context, Result};

/// Above this share the ratios are not to be used; the system itself takes one or two percent.
pub(super) const OTHERS_PERCENT_MAX: f64 = 5.0;

/// The clocks at the beginning of a measurement. **Units**: ticks, the same for all of them.
pub(super) struct Contention {
    start: Ticks,
}

#[derive(Clone, Copy)]
struct Ticks {
    /// Of all cores, idle or not.
    total: u64,
    busy: u64,
    /// Of this process and of the children it has waited for.
    own: u64,
}

impl Contention {
    pub(super) fn begin() -> Result<Self> {
        Ok(Self { start: Ticks::now()? })
    }

    /// Returns the share of the machine that others have had since the beginning; all own children must have ended.
    pub(super) fn others_percent(&self) -> Result<f64> {
        Ok(self.start.others_percent(Ticks::now()?))
    }
}

impl Ticks {
    fn now() -> Result<Self> {
        let machine = fs::read_to_string("/proc/stat").context("read `/proc/stat`")?;
        let process = fs::read_to_string("/proc/self/stat").context("read `/proc/self/stat`")?;
        Self::parse(&machine, &process).context("`/proc/stat` or `/proc/self/stat` is not as expected")
    }

    /// **Source**: proc_stat(5) and proc_pid_stat(5).
    fn parse(machine: &str, process: &str) -> Option<Self> {
        let line = machine.lines().next()?.strip_prefix("cpu ")?;
        // user, nice, system, idle, iowait, irq, softirq, steal; what follows is counted in user already.
        let fields: Vec<u64> = line.split_whitespace().take(8).map(str::parse).collect::<Result<_, _>>().ok()?;
        let [_, _, _, idle, iowait, ..] = fields[..] else { return None };
        let total = fields.iter().sum();
        // The program's name may hold spaces; `state` is the first field behind it, utime to cstime the twelfth and on.
        let (_, rest) = process.rsplit_once(')')?;
        let own = rest.split_whitespace().skip(11).take(4).map(str::parse::<u64>).sum::<Result<u64, _>>().ok()?;
        Some(Self { total, busy: total - idle - iowait, own })
    }

    fn others_percent(self, end: Self) -> f64 {
        let others = (end.busy - self.busy).saturating_sub(end.own - self.own);
        100.0 * others as f64 / (end.total - self.total).max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_busy_and_not_ours_is_others() {
        let ticks = |machine: &str, own: u64| {
            let process = format!("7 (a (b) c) S 1 2 3 4 5 6 7 8 9 10 {own} 0 3 0 20 0");
            Ticks::parse(machine, &process).unwrap()
        };
        let start = ticks("cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 1", 10);
        let end = ticks("cpu  200 0 70 860 70 0 0 0 0 0\ncpu0 1", 40);
        assert_eq!((start.total, start.busy, start.own), (1000, 150, 13));
        assert_eq!(start.others_percent(end), 45.0);
        assert!(Ticks::parse("cpu  1 2", "7 (x) S").is_none());
    }

    #[test]
    fn this_machine_has_the_clocks() {
        let percent = Contention::begin().unwrap().others_percent().unwrap();
        assert!((0.0..=100.0).contains(&percent));
    }
}
