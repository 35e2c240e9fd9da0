//! The folder of an unfinished pull, which becomes the model's folder in one rename.

use std::fs;
use std::path::{Path, PathBuf};

use crate::StoreError;
use crate::manifest::{FileRecord, Manifest};
use crate::part_file::{Expected, check, inspect};

/// Holds what an unfinished pull has so far.
#[derive(Debug)]
pub(crate) struct Staging {
    /// `<root>/partial/<name>`.
    folder: PathBuf,
    /// Stands for the exact version: bytes of another version are never continued.
    version: String,
}

impl Staging {
    /// Opens the staging folder of a version of a model, dropping what other versions left.
    pub(crate) fn open(folder: PathBuf, version: &str) -> Result<Self, StoreError> {
        let staging = Self { folder, version: version.to_owned() };
        let files = staging.files();
        fs::create_dir_all(&files).map_err(|source| StoreError::io(&files, source))?;
        let at = |source| StoreError::io(&staging.folder, source);
        for entry in fs::read_dir(&staging.folder).map_err(at)? {
            let path = entry.map_err(at)?.path();
            if path != files {
                remove(&path)?;
            }
        }
        Ok(staging)
    }

    /// Gives where a verified file waits.
    pub(crate) fn file(&self, path: &str) -> PathBuf {
        self.files().join(path)
    }

    /// Gives where a file grows.
    pub(crate) fn part(&self, path: &str) -> PathBuf {
        self.files().join(format!("{path}.part"))
    }

    /// Gives an empty folder for whatever a source needs on the way.
    pub(crate) fn scratch(&self) -> Result<PathBuf, StoreError> {
        // A pip that outlived its killed parent may still write to the parent's folder.
        let scratch = self.folder.join(format!("scratch-{}", std::process::id()));
        remove(&scratch)?;
        fs::create_dir_all(&scratch).map_err(|source| StoreError::io(&scratch, source))?;
        Ok(scratch)
    }

    /// Gives the record of a file that an earlier pull left complete and right.
    pub(crate) fn complete(&self, path: &str, expected: Expected<'_>) -> Result<Option<FileRecord>, StoreError> {
        let found = inspect(&self.file(path), path)?;
        Ok(found.filter(|record| check(record, expected).is_ok()))
    }

    /// Writes the manifest and moves everything to its place.
    pub(crate) fn publish(self, model_folder: &Path, manifest: &Manifest) -> Result<(), StoreError> {
        let files = self.files();
        manifest.write(&files)?;
        // Without a manifest the target is a damaged model, or nothing.
        remove(model_folder)?;
        let parent = model_folder.parent().expect("invariant: a model's folder lies in `models`");
        fs::create_dir_all(parent).map_err(|source| StoreError::io(parent, source))?;
        fs::rename(&files, model_folder).map_err(|source| StoreError::io(model_folder, source))?;
        // The rename itself reaches the disk with its folder; not every system can sync one, and the bytes are safe anyway.
        let _ = fs::File::open(parent).and_then(|folder| folder.sync_all());
        remove(&self.folder)
    }

    fn files(&self) -> PathBuf {
        self.folder.join(&self.version)
    }
}

/// Removes a file or a folder with all it has, if there is one.
pub(crate) fn remove(path: &Path) -> Result<(), StoreError> {
    let result = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(StoreError::io(path, error)),
        _ => Ok(()),
    }
}
