//! The order of `cargo xtask ci`: cheap and telling checks first, so that a mistake shows early.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::totals::Totals;
use crate::workspace::Workspace;
use crate::{clients, step, tidy};

type Step = fn(&Workspace, &mut Totals) -> Result<()>;

const STEPS: [(&str, Step); 12] = [
    ("fmt", |workspace, _| step::format_check(workspace)),
    ("clippy", |workspace, _| step::clippy(workspace)),
    ("tidy", |workspace, _| tidy::run(&workspace.root)),
    ("proto lint", |workspace, _| step::proto_lint(workspace)),
    ("tests", step::nextest),
    ("doctests", step::doctests),
    ("docs", |workspace, _| step::docs(workspace)),
    ("benches once", |workspace, _| step::benches_once(workspace)),
    ("python client", clients::python),
    ("unchanged clients", clients::interop),
    ("typescript client", clients::typescript),
    ("mistral", step::mistral),
];

/// Runs every step in order, stops at the first failure and prints the wall time of each step that ran.
///
/// # Errors
/// The first step that fails, by name.
pub(crate) fn run(workspace: &Workspace, totals: &mut Totals) -> Result<()> {
    let mut times = Vec::with_capacity(STEPS.len());
    let mut outcome = Ok(());
    for (name, step) in STEPS {
        println!("==> {name}");
        let start = Instant::now();
        outcome = step(workspace, totals).with_context(|| format!("ci step `{name}` failed"));
        times.push((name, start.elapsed()));
        if outcome.is_err() {
            break;
        }
    }
    println!("\n{}", time_table(&times));
    outcome
}

fn time_table(times: &[(&str, Duration)]) -> String {
    let row = |name: &str, time: Duration| format!("{name:<18}{:>9.1} s\n", time.as_secs_f64());
    let mut table: String = times.iter().map(|(name, time)| row(name, *time)).collect();
    table.push_str(&row("total", times.iter().map(|(_, time)| *time).sum()));
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_table_has_a_row_per_step_and_a_total() {
        let table = time_table(&[("fmt", Duration::from_millis(1500)), ("tidy", Duration::from_millis(500))]);
        assert_eq!(
            table,
            "fmt                     1.5 s\ntidy                    0.5 s\ntotal                   2.0 s\n"
        );
    }
}
