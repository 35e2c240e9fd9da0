//! A value made from files, made again when they change. What is wrong is logged and the last value that was right stays.

use std::{path::PathBuf, time::Duration};

use tokio::sync::watch;

use crate::sha256::sha256_hex;

/// Makes a value from the files' present content, or says which file is wrong.
type Make<T> = Box<dyn Fn() -> anyhow::Result<T> + Send>;

/// A value and the files that it is made from.
///
/// Contents are compared, not times: secrets that are mounted change by a link that turns to another folder.
pub(crate) struct Watched<T> {
    paths: Vec<PathBuf>,
    make: Make<T>,
    /// The SHA-256 of each: keys need not lie about in memory.
    contents: Vec<Option<String>>,
    sender: watch::Sender<T>,
}

impl<T: Send + Sync + 'static> Watched<T> {
    /// Makes the first value.
    ///
    /// **Errors**: the file that is wrong.
    pub(crate) fn load(
        paths: Vec<PathBuf>,
        make: impl Fn() -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<Self> {
        let contents = read(&paths);
        let sender = watch::Sender::new(make()?);
        Ok(Self { paths, make: Box::new(make), contents, sender })
    }

    /// Returns where the newest value can be had.
    pub(crate) fn subscribe(&self) -> watch::Receiver<T> {
        self.sender.subscribe()
    }

    /// Looks at the files again and again, until no one has a use for the value. Blocks for as long as reading takes.
    pub(crate) async fn follow(mut self, interval: Duration) {
        loop {
            tokio::select! {
                () = self.sender.closed() => return,
                () = tokio::time::sleep(interval) => {}
            }
            let looked = tokio::task::spawn_blocking(move || {
                self.look();
                self
            });
            match looked.await {
                Ok(watched) => self = watched,
                Err(error) => return tracing::error!(%error, "files are not followed any more"),
            }
        }
    }

    /// Makes the value again if a file has changed.
    fn look(&mut self) {
        let contents = read(&self.paths);
        if contents == self.contents {
            return;
        }
        // Noted even if it is wrong, so that it is told once.
        self.contents = contents;
        match (self.make)() {
            Ok(value) => {
                self.sender.send_replace(value);
                tracing::info!(file = %self.paths[0].display(), "read again");
            }
            Err(error) => tracing::error!(error = format!("{error:#}"), "what changed is wrong; the last stays in use"),
        }
    }
}

fn read(paths: &[PathBuf]) -> Vec<Option<String>> {
    paths.iter().map(|path| std::fs::read(path).ok().map(|content| sha256_hex(&content))).collect()
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn what_is_right_is_taken_and_what_is_wrong_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("number");
        std::fs::write(&path, "1").unwrap();
        let make = {
            let path = path.clone();
            move || std::fs::read_to_string(&path)?.parse::<u32>().context("no number")
        };
        let mut watched = Watched::load(vec![path.clone()], make).unwrap();
        let value = watched.subscribe();
        for (content, want) in [("2", 2), ("two", 2), ("3", 3)] {
            std::fs::write(&path, content).unwrap();
            watched.look();
            assert_eq!(*value.borrow(), want);
        }
        std::fs::remove_file(&path).unwrap();
        watched.look();
        assert_eq!(*value.borrow(), 3);
    }
}
