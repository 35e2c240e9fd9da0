//! Maps a file into memory: the one place of this crate that needs `unsafe`.

use std::fs::File;
use std::path::Path;

use bytes::Bytes;
use memmap2::Mmap;

use crate::ModelError;

/// Maps a file read-only; slices of the result share the map and keep it alive.
///
/// The file must not be changed while it is mapped: a model file is replaced by a rename, never rewritten.
pub(crate) fn map_file(file: &Path) -> Result<Bytes, ModelError> {
    let io = |source| ModelError::Io { file: file.to_path_buf(), source };
    let handle = File::open(file).map_err(io)?;
    if handle.metadata().map_err(io)?.len() == 0 {
        return Ok(Bytes::new());
    }
    Ok(Bytes::from_owner(map_handle(&handle).map_err(io)?))
}

#[expect(unsafe_code, reason = "a memory map is the only way to load a model without copying it")]
fn map_handle(handle: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is private and read-only; that nobody truncates or rewrites a model file in use is the documented
    // contract of `map_file`, which no check at run time can establish.
    unsafe { Mmap::map(handle) }
}
