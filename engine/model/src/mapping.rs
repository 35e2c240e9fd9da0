//! Maps files into memory: the one place of this crate that needs `unsafe`.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use memmap2::Mmap;

use crate::ModelError;

/// A file in memory, read-only.
#[derive(Clone, Debug)]
pub(crate) struct FileMap {
    map: Arc<Mmap>,
}

impl FileMap {
    /// Maps a file and returns its bytes, whose slices share the map and keep it alive; there is no map of an empty file.
    ///
    /// The file must not be changed while it is mapped: a model file is replaced by a rename, never rewritten.
    pub(crate) fn open(file: &Path) -> Result<(Option<FileMap>, Bytes), ModelError> {
        let io = |source| ModelError::Io { file: file.to_path_buf(), source };
        let handle = File::open(file).map_err(io)?;
        if handle.metadata().map_err(io)?.len() == 0 {
            return Ok((None, Bytes::new()));
        }
        let map = FileMap { map: Arc::new(map_handle(&handle).map_err(io)?) };
        Ok((Some(map.clone()), Bytes::from_owner(map)))
    }

    /// Gives back the memory of what was read so far. It stays in the cache of the system, from where it comes again when it is read
    /// again. A hint: where the system does not take it, nothing changes.
    #[cfg_attr(unix, expect(unsafe_code, reason = "advice that may lose changes is unsafe to give"))]
    pub(crate) fn release(&self) {
        #[cfg(unix)]
        // SAFETY: the map is private, read-only and of a file, so that its pages have no changes to lose; read again they hold the
        // same bytes, by the contract of `FileMap::open`.
        let _ = unsafe { self.map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
    }
}

impl AsRef<[u8]> for FileMap {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

#[expect(unsafe_code, reason = "a memory map is the only way to load a model without copying it")]
fn map_handle(handle: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is private and read-only; that nobody truncates or rewrites a model file in use is the documented
    // contract of `FileMap::open`, which no check at run time can establish.
    unsafe { Mmap::map(handle) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_back_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("weights");
        let written: Vec<u8> = (0..100_000_u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&file, &written).unwrap();
        let (map, bytes) = FileMap::open(&file).unwrap();
        let slice = bytes.slice(10_000..90_000);
        assert!(bytes == written);
        map.unwrap().release();
        assert!(slice == written[10_000..90_000]);
    }

    #[test]
    fn an_empty_file_has_no_map() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("weights");
        std::fs::write(&file, []).unwrap();
        let (map, bytes) = FileMap::open(&file).unwrap();
        assert!(map.is_none() && bytes.is_empty());
    }
}
