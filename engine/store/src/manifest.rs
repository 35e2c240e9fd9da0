//! The file that says what a cached model consists of; a folder has it only when all of it is there.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::StoreError;
use crate::reference::is_clean_path;

/// Name of the manifest in a model's folder.
pub(crate) const MANIFEST: &str = "manifest.json";

/// States what a cached model is and where it came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    pub(crate) name: String,
    /// Where the bytes came from, in words for a person.
    pub(crate) source: String,
    pub(crate) files: Vec<FileRecord>,
}

/// States one verified file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileRecord {
    /// Path below the model's folder, with `/`.
    pub(crate) path: String,
    pub(crate) bytes: u64,
    /// In lower-case hex.
    pub(crate) sha256: String,
}

impl Manifest {
    /// Reads the manifest of a model's folder; `None` where there is none.
    ///
    /// **Errors** `ManifestMalformed` where there is one that cannot be right.
    pub(crate) fn read(folder: &Path) -> Result<Option<Self>, StoreError> {
        let path = folder.join(MANIFEST);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(source) => return Err(StoreError::io(&path, source)),
        };
        let malformed = |reason: String| StoreError::ManifestMalformed { path: path.clone(), reason };
        let manifest: Self = serde_json::from_slice(&bytes).map_err(|error| malformed(error.to_string()))?;
        if manifest.files.is_empty() {
            return Err(malformed("it lists no file".to_owned()));
        }
        match manifest.files.iter().find(|file| !is_clean_path(&file.path)) {
            Some(file) => Err(malformed(format!("`{}` is no path below the folder", file.path))),
            None => Ok(Some(manifest)),
        }
    }

    /// Writes the manifest, through to the disk.
    pub(crate) fn write(&self, folder: &Path) -> Result<(), StoreError> {
        let path = folder.join(MANIFEST);
        let text = serde_json::to_string_pretty(self).expect("invariant: a manifest is plain text and numbers");
        let write = || -> std::io::Result<()> {
            let mut file = fs::File::create(&path)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()
        };
        write().map_err(|source| StoreError::io(&path, source))
    }

    /// Gives the first listed file that is absent or has another size than listed.
    pub(crate) fn damaged(&self, folder: &Path) -> Option<&FileRecord> {
        self.files.iter().find(|file| !fs::metadata(folder.join(&file.path)).is_ok_and(|m| m.len() == file.bytes))
    }

    /// Gives what a model loader opens: the file of a one-file model, else the folder.
    pub(crate) fn model_path(&self, folder: &Path) -> PathBuf {
        match self.files.as_slice() {
            [file] => folder.join(&file.path),
            _ => folder.to_owned(),
        }
    }

    /// Gives the size of all files, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_malformed_and_escaping_manifests_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Manifest::read(folder.path()).unwrap().is_none());
        let escaping = r#"{"name":"m","source":"s","files":[{"path":"../x","bytes":1,"sha256":""}]}"#;
        let empty = r#"{"name":"m","source":"s","files":[]}"#;
        for bad in ["", "{", "[]", empty, escaping] {
            fs::write(folder.path().join(MANIFEST), bad).unwrap();
            let error = Manifest::read(folder.path()).unwrap_err();
            assert!(matches!(error, StoreError::ManifestMalformed { .. }), "{bad}: {error}");
        }
    }
}
