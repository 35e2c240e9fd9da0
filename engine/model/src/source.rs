//! Finds out what kind of model a path holds and opens it; the one place that tells GGUF from Hugging Face folders.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::ModelError;
use crate::config::{ModelConfig, config_from_folder, config_from_gguf};
use crate::gguf::{Gguf, optional};
use crate::safetensors_folder::{INDEX_FILE, SINGLE_FILE, SafetensorsFolder};
use crate::tensor::{Tensor, WeightFile};

/// How much of the tensor data at each end of a file goes into the digest, in bytes.
const DIGEST_SPAN: usize = 64 * 1024;

/// An opened model: its files are mapped and their headers checked, its weights not yet taken.
#[derive(Debug)]
pub struct ModelSource {
    /// The file or folder, after a folder with one GGUF file has been resolved to that file.
    path: PathBuf,
    files: ModelFiles,
}

/// The two kinds of model files.
#[derive(Debug)]
pub(crate) enum ModelFiles {
    HuggingFace(SafetensorsFolder),
    Gguf(Gguf),
}

impl ModelSource {
    /// Opens a `.gguf` file, a Hugging Face folder, or a folder that holds exactly one `.gguf` file.
    ///
    /// **Errors**: `NotAModel`, and all that reading a header can meet.
    pub fn open(path: &Path) -> Result<ModelSource, ModelError> {
        let info = std::fs::metadata(path).map_err(|source| ModelError::Io { file: path.to_path_buf(), source })?;
        let path = match info.is_dir() {
            true => resolve_folder(path)?,
            false => path.to_path_buf(),
        };
        let files = match path.is_dir() {
            true => ModelFiles::HuggingFace(SafetensorsFolder::open(&path)?),
            false => ModelFiles::Gguf(Gguf::open(&path)?),
        };
        Ok(ModelSource { path, files })
    }

    /// Returns the file or folder that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the GGUF file, if the model is one.
    pub fn gguf(&self) -> Option<&Gguf> {
        match &self.files {
            ModelFiles::Gguf(gguf) => Some(gguf),
            ModelFiles::HuggingFace(_) => None,
        }
    }

    /// Reads and checks the configuration.
    ///
    /// **Errors**: `Config`, `UnsupportedArchitecture`, and for GGUF `MetadataMissing` and `MetadataType`.
    pub fn config(&self) -> Result<ModelConfig, ModelError> {
        match &self.files {
            ModelFiles::HuggingFace(_) => config_from_folder(&self.path),
            ModelFiles::Gguf(gguf) => config_from_gguf(gguf),
        }
    }

    /// Returns the name the model gives itself, else that of its folder or file.
    pub fn name(&self) -> String {
        let declared = self.gguf().and_then(|gguf| optional(gguf.metadata().string("general.name")).ok().flatten());
        match declared {
            Some(name) if !name.trim().is_empty() => name.trim().to_owned(),
            _ => {
                let stem = if self.path.is_dir() { self.path.file_name() } else { self.path.file_stem() };
                stem.unwrap_or(self.path.as_os_str()).to_string_lossy().into_owned()
            }
        }
    }

    /// Computes the model digest, in lower-case hexadecimal.
    ///
    /// It is the SHA-256 of `config.json` (Hugging Face only) and then, for each weight file in the order of their names: its
    /// size, its header (metadata, tensor names, shapes and formats), and the first and the last 64 KiB of its tensor data.
    /// Hashing all of a large model would take longer than loading it; a change that spares both ends of every file, such
    /// as training a middle layer alone, goes unnoticed.
    ///
    /// **Errors**: `Io` when `config.json` cannot be read.
    pub fn digest(&self) -> Result<String, ModelError> {
        let mut hasher = Sha256::new();
        match &self.files {
            ModelFiles::HuggingFace(folder) => {
                let file = self.path.join("config.json");
                let config = std::fs::read(&file).map_err(|source| ModelError::Io { file, source })?;
                hash_sized(&mut hasher, &config);
                folder.weight_files().iter().for_each(|weights| hash_weights(&mut hasher, weights));
            }
            ModelFiles::Gguf(gguf) => hash_weights(&mut hasher, &gguf.weight_file()),
        }
        Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Gives back the memory of the weights that were read so far, for when they have been packed: what is read again comes from the
    /// system's cache of files.
    pub fn release(&self) {
        match &self.files {
            ModelFiles::HuggingFace(folder) => folder.release(),
            ModelFiles::Gguf(gguf) => gguf.release(),
        }
    }

    pub(crate) fn files(&self) -> &ModelFiles {
        &self.files
    }

    pub(crate) fn tensor(&self, name: &str) -> Result<Tensor, ModelError> {
        match &self.files {
            ModelFiles::HuggingFace(folder) => folder.tensor(name),
            ModelFiles::Gguf(gguf) => gguf.tensor(name),
        }
    }
}

/// Returns the folder itself if it has safetensors, else its only GGUF file.
fn resolve_folder(folder: &Path) -> Result<PathBuf, ModelError> {
    if folder.join(SINGLE_FILE).exists() || folder.join(INDEX_FILE).exists() {
        return Ok(folder.to_path_buf());
    }
    let io = |source| ModelError::Io { file: folder.to_path_buf(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
            found.push(path);
        }
    }
    let not_a_model = |reason: String| ModelError::NotAModel { path: folder.to_path_buf(), reason };
    match (found.pop(), found.len()) {
        (Some(file), 0) => Ok(file),
        (None, _) => Err(not_a_model(format!("it has no `{SINGLE_FILE}`, `{INDEX_FILE}` or `.gguf` file"))),
        (Some(_), others) => Err(not_a_model(format!("it has {} `.gguf` files, name one of them", others + 1))),
    }
}

/// The size goes first, so that two neighbours cannot trade bytes.
fn hash_sized(hasher: &mut Sha256, bytes: &[u8]) {
    hasher.update((bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

fn hash_weights(hasher: &mut Sha256, weights: &WeightFile) {
    hasher.update((weights.bytes.len() as u64).to_le_bytes());
    let (header, data) = weights.bytes.split_at(weights.data_start);
    hash_sized(hasher, header);
    hash_sized(hasher, &data[..data.len().min(DIGEST_SPAN)]);
    hash_sized(hasher, &data[data.len().saturating_sub(DIGEST_SPAN)..]);
}
