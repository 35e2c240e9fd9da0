//! One pull of a name at a time, over threads and processes: an advisory lock on a file that is never removed.

use std::fs::{File, TryLockError, create_dir_all};
use std::path::Path;

use crate::{Progress, StoreError};

/// Holds the lock of a model's name until dropped. The system frees it when the process dies.
#[derive(Debug)]
pub(crate) struct PullLock {
    _file: File,
}

impl PullLock {
    /// Takes the lock, and waits with a message while another has it.
    pub(crate) fn wait(root: &Path, name: &str, progress: &dyn Progress) -> Result<Self, StoreError> {
        let (file, free) = try_lock(root, name)?;
        if !free {
            progress.note(&format!("waiting for another process that pulls `{name}`"));
            file.lock().map_err(|source| StoreError::io(&root.join("locks"), source))?;
        }
        Ok(Self { _file: file })
    }

    /// Takes the lock if it is free.
    ///
    /// **Errors** `Busy` when another has it.
    pub(crate) fn attempt(root: &Path, name: &str) -> Result<Self, StoreError> {
        match try_lock(root, name)? {
            (file, true) => Ok(Self { _file: file }),
            (_, false) => Err(StoreError::Busy { name: name.to_owned() }),
        }
    }
}

/// Opens the lock file and tells whether it was free, and is now ours.
fn try_lock(root: &Path, name: &str) -> Result<(File, bool), StoreError> {
    let folder = root.join("locks");
    create_dir_all(&folder).map_err(|source| StoreError::io(&folder, source))?;
    let path = folder.join(format!("{name}.lock"));
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|source| StoreError::io(&path, source))?;
    match file.try_lock() {
        Ok(()) => Ok((file, true)),
        Err(TryLockError::WouldBlock) => Ok((file, false)),
        Err(TryLockError::Error(source)) => Err(StoreError::io(&path, source)),
    }
}
