//! Test totals, read from what the runners print: the last line of `cargo xtask ci` sums them.

use std::fmt;

/// A program that runs tests and how its closing lines are read.
#[derive(Clone, Copy)]
pub(crate) enum Runner {
    /// One `Summary [ 1.2s] 5 tests run: 5 passed, 0 skipped` at the end.
    Nextest,
    /// One `test result: ok. 5 passed; 0 failed; ...` per target.
    Libtest,
    /// One `=== 5 passed, 1 skipped in 0.12s ===` at the end.
    Pytest,
    /// Lines `# pass 5`, `# fail 0`, `# cancelled 0` and others at the end, in TAP.
    Node,
}

/// Tests that passed and tests that did not.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    num_passed: u64,
    num_failed: u64,
}

impl Totals {
    /// Adds what `output` says in the words of `runner`; output without a closing line adds nothing.
    pub(crate) fn add(&mut self, runner: Runner, output: &str) {
        if matches!(runner, Runner::Node) {
            return self.add_node(output);
        }
        let mut closing_lines = output.lines().map(str::trim).filter_map(|line| closing_counts(runner, line));
        let counted: Vec<&str> = match runner {
            Runner::Libtest => closing_lines.collect(),
            // The runner's own line is the last: an earlier one is the captured output of a failed test.
            _ => closing_lines.next_back().into_iter().collect(),
        };
        for line in counted {
            self.add_counts(line);
        }
    }

    /// Adds the last count of each kind: an earlier one is the output of a test.
    fn add_node(&mut self, output: &str) {
        let last = |kind: &str| {
            let count =
                |line: &str| line.strip_prefix("# ")?.strip_prefix(kind)?.strip_prefix(' ')?.parse::<u64>().ok();
            output.lines().rev().find_map(count).unwrap_or(0)
        };
        self.num_passed += last("pass");
        // A test whose suite cannot be set up is `cancelled`.
        self.num_failed += last("fail") + last("cancelled");
    }

    fn add_counts(&mut self, counts: &str) {
        let words: Vec<&str> = counts.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
        for pair in words.windows(2) {
            let Ok(count) = pair[0].parse::<u64>() else { continue };
            match pair[1] {
                "passed" => self.num_passed += count,
                // nextest says `timed out` and `exec failed`, pytest `error`, of tests that are not among `failed`.
                "failed" | "timed" | "exec" | "error" | "errors" => self.num_failed += count,
                _ => {}
            }
        }
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.num_passed, self.num_failed)
    }
}

/// The part of `line` that holds the counts, where it is a closing line of `runner`.
fn closing_counts(runner: Runner, line: &str) -> Option<&str> {
    match runner {
        Runner::Nextest => line.strip_prefix("Summary [")?.split_once("run:").map(|(_, counts)| counts),
        Runner::Libtest => line.strip_prefix("test result:"),
        Runner::Pytest => {
            let (counts, time) = line.trim_matches('=').trim().rsplit_once(" in ")?;
            time.starts_with(|c: char| c.is_ascii_digit()).then_some(counts)
        }
        Runner::Node => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals_of(runner: Runner, output: &str) -> (u64, u64) {
        let mut totals = Totals::default();
        totals.add(runner, output);
        (totals.num_passed, totals.num_failed)
    }

    #[test]
    fn nextest_summary() {
        let green = "     Summary [   0.012s] 5 tests run: 5 passed (1 slow, 1 leaky), 2 skipped\n";
        assert_eq!(totals_of(Runner::Nextest, green), (5, 0));
        let red = "     Summary [   9.1s] 7/9 tests run: 3 passed, 2 failed, 1 timed out, 1 exec failed, 0 skipped\n";
        assert_eq!(totals_of(Runner::Nextest, red), (3, 4));
    }

    #[test]
    fn nextest_ignores_what_a_failed_test_printed() {
        let output = "    test result: FAILED. 0 passed; 1 failed\n  Summary [ 1s] 2 tests run: 1 passed, 1 failed\n";
        assert_eq!(totals_of(Runner::Nextest, output), (1, 1));
    }

    #[test]
    fn libtest_sums_its_targets() {
        let output = "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s\n\
                      test result: FAILED. 1 passed; 2 failed; 0 ignored\n";
        assert_eq!(totals_of(Runner::Libtest, output), (4, 2));
    }

    #[test]
    fn pytest_summary_long_and_quiet() {
        assert_eq!(totals_of(Runner::Pytest, "=== 1 failed, 3 passed, 1 skipped in 0.12s ===\n"), (3, 1));
        assert_eq!(totals_of(Runner::Pytest, "4 passed, 2 errors in 1.5s\n"), (4, 2));
        assert_eq!(totals_of(Runner::Pytest, "=== 2 passed in 63.0s (0:01:03) ===\n"), (2, 0));
    }

    #[test]
    fn node_counts_what_failed_and_what_could_not_run() {
        let output = "# pass 99\n    # fail 7\n1..9\n# tests 25\n# suites 3\n# pass 6\n# fail 1\n# cancelled 19\n\
                      # skipped 0\n# todo 0\n# duration_ms 15946.0\n";
        assert_eq!(totals_of(Runner::Node, output), (6, 20));
        assert_eq!(totals_of(Runner::Node, "npm error Missing script\n"), (0, 0));
    }

    #[test]
    fn output_without_a_closing_line_adds_nothing() {
        assert_eq!(totals_of(Runner::Nextest, "error: could not compile `x`\n"), (0, 0));
    }

    #[test]
    fn the_line_is_the_one_that_ci_readers_recognise() {
        assert_eq!(Totals { num_passed: 12, num_failed: 1 }.to_string(), "12 passed, 1 failed");
    }
}
