//! Child processes: run to the end, and where asked, passed on line by line and kept for the test totals.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, ensure};

/// Runs `command` with our own standard streams.
///
/// # Errors
/// It cannot be started, or does not exit with 0.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let line = command_line(command);
    println!("    {line}");
    let status = command.status().with_context(|| format!("start `{line}`"))?;
    ensure!(status.success(), "`{line}`: {status}");
    Ok(())
}

/// Runs `command`, passes its output on as it comes, and gives back all of it, with whether it exited with 0.
///
/// # Errors
/// It cannot be started, or its output cannot be read.
pub(crate) fn run_and_keep(command: &mut Command) -> Result<(String, Result<()>)> {
    let line = command_line(command);
    println!("    {line}");
    let mut child = command
        .env("CARGO_TERM_COLOR", "never")
        .env("PY_COLORS", "0")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start `{line}`"))?;
    let stdout = child.stdout.take().context("invariant: stdout is piped")?;
    let stderr = child.stderr.take().context("invariant: stderr is piped")?;
    let (kept_out, kept_err) = thread::scope(|scope| {
        let from_stderr = scope.spawn(|| tee(stderr, &mut std::io::stderr()));
        let from_stdout = tee(stdout, &mut std::io::stdout());
        (from_stdout, from_stderr.join().expect("invariant: tee does not panic"))
    });
    let status = child.wait().with_context(|| format!("wait for `{line}`"))?;
    let kept =
        kept_out.with_context(|| format!("read `{line}`"))? + &kept_err.with_context(|| format!("read `{line}`"))?;
    let outcome = if status.success() { Ok(()) } else { Err(anyhow::anyhow!("`{line}`: {status}")) };
    Ok((kept, outcome))
}

/// Whether `command` can be started and exits with 0; prints nothing.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Copies `from` to `to` line by line (a test may print bytes that are not UTF-8) and returns what went through.
fn tee(from: impl Read, to: &mut impl Write) -> std::io::Result<String> {
    let mut kept = String::new();
    let mut reader = BufReader::new(from);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        to.write_all(&line)?;
        to.flush()?;
        kept.push_str(&String::from_utf8_lossy(&line));
        line.clear();
    }
    Ok(kept)
}

fn command_line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_both_streams_and_the_exit_code() {
        let mut command = Command::new("sh");
        let (kept, outcome) = run_and_keep(command.args(["-c", "echo one; echo two >&2; exit 3"])).unwrap();
        assert_eq!(kept, "one\ntwo\n");
        assert!(outcome.unwrap_err().to_string().contains("exit status: 3"));
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run(&mut Command::new("no-such-program")).unwrap_err();
        assert!(format!("{error:#}").contains("no-such-program"));
    }
}
