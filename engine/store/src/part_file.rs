//! A file that is still being fetched: it can continue after a break, and knows its checksum when it ends.

use std::fs::{File, rename};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::manifest::FileRecord;
use crate::{CHUNK_BYTES, StoreError};

/// Grows a file and its checksum together.
pub(crate) struct PartFile {
    path: PathBuf,
    file: File,
    hasher: Sha256,
    bytes: u64,
}

/// States what a file must be; what the source does not tell is `None`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected<'a> {
    pub(crate) bytes: Option<u64>,
    /// In lower-case hex.
    pub(crate) sha256: Option<&'a str>,
}

impl PartFile {
    /// Opens the file, keeps its first `bytes_kept` bytes (or what there is, if less) and cuts the rest.
    pub(crate) fn resume(path: &Path, bytes_kept: u64) -> Result<Self, StoreError> {
        let at = |source| StoreError::io(path, source);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|source| StoreError::io(folder, source))?;
        }
        let mut file = File::options().create(true).truncate(false).read(true).write(true).open(path).map_err(at)?;
        let bytes = bytes_kept.min(file.metadata().map_err(at)?.len());
        file.set_len(bytes).map_err(at)?;
        let mut hasher = Sha256::new();
        hash_into(&mut hasher, &mut file, bytes).map_err(at)?;
        Ok(Self { path: path.to_owned(), file, hasher, bytes })
    }

    /// Gives the size so far, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Appends bytes.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.file.write_all(bytes).map_err(|source| StoreError::io(&self.path, source))?;
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Drops what there is and starts again.
    pub(crate) fn restart(&mut self) -> Result<(), StoreError> {
        let at = |source| StoreError::io(&self.path, source);
        self.file.set_len(0).map_err(at)?;
        self.file.seek(SeekFrom::Start(0)).map_err(at)?;
        self.hasher = Sha256::new();
        self.bytes = 0;
        Ok(())
    }

    /// Checks the bytes, writes them through to the disk and gives the file its final name.
    ///
    /// **Errors** `SizeMismatch` or `ChecksumMismatch`, the file being removed.
    pub(crate) fn seal(self, destination: &Path, name: &str, expected: Expected<'_>) -> Result<FileRecord, StoreError> {
        let record = FileRecord { path: name.to_owned(), bytes: self.bytes, sha256: hex(self.hasher) };
        if let Err(error) = check(&record, expected) {
            drop(self.file);
            std::fs::remove_file(&self.path).map_err(|source| StoreError::io(&self.path, source))?;
            return Err(error);
        }
        self.file.sync_all().map_err(|source| StoreError::io(&self.path, source))?;
        rename(&self.path, destination).map_err(|source| StoreError::io(destination, source))?;
        Ok(record)
    }
}

/// Reads a whole file and states what it is; `None` where there is none.
pub(crate) fn inspect(path: &Path, name: &str) -> Result<Option<FileRecord>, StoreError> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(StoreError::io(path, source)),
    };
    let mut hasher = Sha256::new();
    let bytes = hash_into(&mut hasher, &mut file, u64::MAX).map_err(|source| StoreError::io(path, source))?;
    Ok(Some(FileRecord { path: name.to_owned(), bytes, sha256: hex(hasher) }))
}

/// Compares a file with what it must be.
pub(crate) fn check(found: &FileRecord, expected: Expected<'_>) -> Result<(), StoreError> {
    if let Some(bytes) = expected.bytes.filter(|&bytes| bytes != found.bytes) {
        return Err(StoreError::SizeMismatch { file: found.path.clone(), expected: bytes, found: found.bytes });
    }
    if let Some(sha256) = expected.sha256.filter(|&sha256| sha256 != found.sha256) {
        return Err(StoreError::ChecksumMismatch {
            file: found.path.clone(),
            expected: sha256.to_owned(),
            found: found.sha256.clone(),
        });
    }
    Ok(())
}

/// Feeds up to `bytes` bytes of a reader to a checksum, and gives how many there were.
pub(crate) fn hash_into(hasher: &mut Sha256, reader: &mut impl Read, bytes: u64) -> std::io::Result<u64> {
    let mut reader = reader.take(bytes);
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut num_bytes = 0;
    loop {
        match reader.read(&mut chunk)? {
            0 => return Ok(num_bytes),
            len => {
                hasher.update(&chunk[..len]);
                num_bytes += len as u64;
            }
        }
    }
}

/// Ends a checksum, in lower-case hex.
pub(crate) fn hex(hasher: Sha256) -> String {
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn resumed_equals_uninterrupted() {
        let folder = tempfile::tempdir().unwrap();
        let (path, end) = (folder.path().join("x.part"), folder.path().join("x"));
        let mut part = PartFile::resume(&path, u64::MAX).unwrap();
        part.append(b"abXX").unwrap();
        drop(part);
        let mut part = PartFile::resume(&path, 2).unwrap();
        assert_eq!(part.bytes(), 2);
        part.append(b"c").unwrap();
        let record = part.seal(&end, "x", Expected { bytes: Some(3), sha256: Some(ABC) }).unwrap();
        assert_eq!(record.sha256, ABC);
        assert_eq!(std::fs::read(&end).unwrap(), b"abc");
        assert_eq!(inspect(&end, "x").unwrap(), Some(record));
    }

    #[test]
    fn bad_bytes_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let (path, end) = (folder.path().join("x.part"), folder.path().join("x"));
        for expected in [Expected { bytes: Some(4), sha256: None }, Expected { bytes: None, sha256: Some(ABC) }] {
            let mut part = PartFile::resume(&path, 0).unwrap();
            part.append(b"abd").unwrap();
            let error = part.seal(&end, "x", expected).unwrap_err();
            assert!(matches!(error, StoreError::SizeMismatch { .. } | StoreError::ChecksumMismatch { .. }), "{error}");
            assert!(!path.exists() && !end.exists());
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_an_error_of_its_own() {
        let path = Path::new("/dev/full");
        let file = File::options().write(true).open(path).unwrap();
        let mut part = PartFile { path: path.to_owned(), file, hasher: Sha256::new(), bytes: 0 };
        assert!(matches!(part.append(b"x"), Err(StoreError::DiskFull { .. })));
    }
}
