//! Structured logs on standard error. Prompts, personas and answers are in none of them.
//!
//! A thread of its own writes them: a disk that is full or a pipe that nobody reads must not stop the engine's thread or a
//! request. What finds no room in the queue is lost, and how much that was is told.

use std::{
    io::{self, IsTerminal, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use tracing_subscriber::EnvFilter;

use crate::LogFormat;

/// The lines that may wait to be written.
const LINES_MAX: usize = 8192;
/// How long the end of the program waits for lines that are still to be written.
const FLUSH_TIME: Duration = Duration::from_millis(500);
/// How often it looks.
const FLUSH_LOOK: Duration = Duration::from_millis(1);

/// The logs of the program; dropping it writes what waits.
#[must_use = "dropping it writes what waits"]
pub struct Logs(Arc<AtomicU64>);

/// Starts to log.
///
/// **Errors**: directives that are wrong, a system without a thread to spare.
pub fn start_logs(format: LogFormat, filter: &str) -> anyhow::Result<Logs> {
    // The tokenizer's own traces quote the text. mistral.rs says much at every start; what comes later in the list wins.
    let directives = format!("mistralrs_core=error,mistralrs_quant=error,{filter},tokenizers=off");
    let filter = EnvFilter::try_new(directives).with_context(|| format!("log_filter `{filter}` is wrong"))?;
    let (lines, num_waiting) = lines(io::stderr())?;
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(move || lines.clone());
    // An error of the log cannot be logged, and standard error may be what is broken.
    let logs = logs.log_internal_errors(false).with_ansi(io::stderr().is_terminal());
    match format {
        LogFormat::Pretty => logs.init(),
        LogFormat::Json => logs.json().flatten_event(true).init(),
    }
    Ok(Logs(num_waiting))
}

impl Drop for Logs {
    fn drop(&mut self) {
        let deadline = Instant::now() + FLUSH_TIME;
        while self.0.load(Ordering::SeqCst) > 0 && Instant::now() < deadline {
            std::thread::sleep(FLUSH_LOOK);
        }
    }
}

/// Takes lines without ever waiting. Each write is one line.
#[derive(Clone)]
struct Lines {
    sender: SyncSender<Vec<u8>>,
    num_waiting: Arc<AtomicU64>,
    num_lost: Arc<AtomicU64>,
}

/// Starts the thread that writes lines; returns where they go in and how many wait.
fn lines(out: impl Write + Send + 'static) -> anyhow::Result<(Lines, Arc<AtomicU64>)> {
    let (sender, receiver) = sync_channel(LINES_MAX);
    let lines = Lines { sender, num_waiting: Arc::default(), num_lost: Arc::default() };
    let (num_waiting, num_lost) = (lines.num_waiting.clone(), lines.num_lost.clone());
    std::thread::Builder::new()
        .name("log".to_owned())
        .spawn(move || write_all(out, &receiver, &num_waiting, &num_lost))
        .context("cannot start the thread of the log")?;
    let num_waiting = lines.num_waiting.clone();
    Ok((lines, num_waiting))
}

fn write_all(mut out: impl Write, lines: &Receiver<Vec<u8>>, num_waiting: &AtomicU64, num_lost: &AtomicU64) {
    while let Ok(line) = lines.recv() {
        // What cannot be written is lost; there is nowhere to say so.
        let _ = out.write_all(&line);
        num_waiting.fetch_sub(1, Ordering::SeqCst);
        let lost = num_lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let _ = writeln!(out, "{lost} lines of the log were lost here");
        }
    }
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.num_waiting.fetch_add(1, Ordering::SeqCst);
        if self.sender.try_send(line.to_vec()).is_err() {
            self.num_waiting.fetch_sub(1, Ordering::SeqCst);
            self.num_lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, mpsc};

    use super::*;

    /// Writes nothing until it is told to.
    struct Stuck(mpsc::Receiver<()>, Arc<Mutex<Vec<u8>>>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            self.1.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_finds_no_room_is_lost_and_counted() {
        let (go, stuck) = mpsc::sync_channel(0);
        let written = Arc::new(Mutex::new(Vec::new()));
        let (mut lines, num_waiting) = lines(Stuck(stuck, written.clone())).unwrap();
        for line in 0..LINES_MAX + 100 {
            lines.write_all(format!("{line}\n").as_bytes()).unwrap();
        }
        drop(go);
        drop(Logs(num_waiting));
        let written = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        assert!(written.contains("8000\n") && !written.contains("8291\n"));
        assert!(written.contains("lines of the log were lost here"));
    }
}
