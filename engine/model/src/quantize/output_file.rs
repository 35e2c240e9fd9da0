//! The file that is being written: under another name in the same folder, renamed when it is whole, removed when it is not.

use std::fs::Permissions;
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::ModelError;

/// Written at once to the system, in bytes.
const BUFFER: usize = 1 << 20;
/// What a new file may be, before the process's mask.
const MODE: u32 = 0o666;

/// A file that appears under its name only when it is finished.
#[derive(Debug)]
pub(super) struct OutputFile {
    target: PathBuf,
    overwrite: bool,
    file: BufWriter<NamedTempFile>,
}

impl OutputFile {
    /// **Errors**: `OutputExists` unless `overwrite`, `Io`.
    pub(super) fn create(target: &Path, overwrite: bool) -> Result<OutputFile, ModelError> {
        let io = |source| ModelError::Io { file: target.to_path_buf(), source };
        if target.is_dir() || !overwrite && target.symlink_metadata().is_ok() {
            return Err(ModelError::OutputExists { file: target.to_path_buf() });
        }
        let folder = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let file = tempfile::Builder::new()
            .prefix(".bespoke-")
            .suffix(".gguf.partial")
            .permissions(Permissions::from_mode(MODE))
            .tempfile_in(folder)
            .map_err(io)?;
        Ok(OutputFile { target: target.to_path_buf(), overwrite, file: BufWriter::with_capacity(BUFFER, file) })
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), ModelError> {
        self.file.write_all(bytes).map_err(|source| ModelError::Io { file: self.target.clone(), source })
    }

    /// Brings everything to the disk and gives the file its name.
    pub(super) fn finish(self) -> Result<(), ModelError> {
        let OutputFile { target, overwrite, file } = self;
        let io = |source| ModelError::Io { file: target.clone(), source };
        // The error of `into_inner` holds the writer, whose drop removes the file.
        let file = file.into_inner().map_err(|error| io(error.into_error()))?;
        file.as_file().sync_all().map_err(io)?;
        let persisted = if overwrite { file.persist(&target) } else { file.persist_noclobber(&target) };
        match persisted {
            Ok(_) => Ok(()),
            Err(error) if error.error.kind() == std::io::ErrorKind::AlreadyExists => {
                Err(ModelError::OutputExists { file: target })
            }
            Err(error) => Err(io(error.error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_appears_only_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out.gguf");
        let mut file = OutputFile::create(&target, false).unwrap();
        file.write(b"half").unwrap();
        assert!(!target.exists());
        drop(file);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let mut file = OutputFile::create(&target, false).unwrap();
        file.write(b"whole").unwrap();
        file.finish().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"whole");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(matches!(OutputFile::create(&target, false), Err(ModelError::OutputExists { .. })));
        OutputFile::create(&target, true).unwrap().finish().unwrap();
        assert!(std::fs::read(&target).unwrap().is_empty());
    }

    #[test]
    fn a_file_that_appeared_meanwhile_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out.gguf");
        let file = OutputFile::create(&target, false).unwrap();
        std::fs::write(&target, b"theirs").unwrap();
        assert!(matches!(file.finish(), Err(ModelError::OutputExists { .. })));
        assert_eq!(std::fs::read(&target).unwrap(), b"theirs");
    }

    #[test]
    fn a_folder_that_is_absent_is_named() {
        let target = Path::new("/no/such/folder/out.gguf");
        let message = OutputFile::create(target, false).unwrap_err().to_string();
        assert!(message.contains("/no/such/folder"), "{message}");
    }
}
