//! What the hub has: the listing of a repository at a revision, and which of its files make a model.

use std::io::Read;
use std::time::Duration;

use hf_hub::api::sync::{Api, ApiBuilder, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use serde::Deserialize;
use ureq::Agent;
use ureq::config::RedirectAuthHeaders;

use crate::reference::{HubReference, is_clean_path};
use crate::{StoreConfig, StoreError};

/// A closed network is recognised after this time, so that another source is tried soon.
const TIMEOUT_CONNECT: Duration = Duration::from_secs(5);
/// A connection that gives no byte for so long is taken for dead.
const TIMEOUT_READ: Duration = Duration::from_secs(30);
/// No listing is longer; the largest repositories have some hundred thousand files.
const LISTING_BYTES_MAX: u64 = 64 << 20;
/// The files beside the weights that a folder model may have.
const FOLDER_FILES: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
];

/// Talks to the hub.
pub(crate) struct Hub {
    api: Api,
    /// For the bytes: `hf-hub` has neither timeouts nor a check of what it continues.
    pub(crate) agent: Agent,
    token: Option<String>,
}

/// One repository at one commit.
pub(crate) struct Listing {
    pub(crate) reference: HubReference,
    /// The commit that the revision is now.
    pub(crate) commit: String,
    pub(crate) files: Vec<HubFile>,
    repo: ApiRepo,
}

/// One file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HubFile {
    pub(crate) path: String,
    pub(crate) bytes: Option<u64>,
    /// The hub knows it of large files only.
    pub(crate) sha256: Option<String>,
}

#[derive(Deserialize)]
struct Answer {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
}

impl Hub {
    /// Sets up the client; nothing is sent yet.
    pub(crate) fn new(config: &StoreConfig) -> Result<Self, StoreError> {
        // The cache of `hf-hub` is not used, and its default panics where there is no home folder.
        let mut builder = ApiBuilder::from_cache(Cache::new(config.root.join("hub"))).with_progress(false);
        if let Some(endpoint) = &config.hub_endpoint {
            builder = builder.with_endpoint(endpoint.clone());
        }
        let api = builder.with_token(config.hub_token.clone()).build().map_err(|error| StoreError::HubUnreachable {
            repo: "any repository".to_owned(),
            reason: error.to_string(),
        })?;
        let agent = Agent::config_builder()
            .timeout_resolve(Some(TIMEOUT_CONNECT))
            .timeout_connect(Some(TIMEOUT_CONNECT))
            .timeout_per_read(Some(TIMEOUT_READ))
            .http_status_as_error(false)
            // Large files live on other hosts, which must not see the token.
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            // Sizes and ranges count the file's own bytes.
            .accept_encoding("identity")
            .build()
            .into();
        Ok(Self { api, agent, token: config.hub_token.clone() })
    }

    /// Asks for the files of a repository.
    pub(crate) fn list(&self, reference: &HubReference) -> Result<Listing, StoreError> {
        let at = |revision: &str| {
            self.api.repo(Repo::with_revision(reference.repo.clone(), RepoType::Model, revision.to_owned()))
        };
        let request = at(&reference.revision)
            .info_request()
            .query("blobs", "true")
            .config()
            .timeout_resolve(Some(TIMEOUT_CONNECT))
            .timeout_connect(Some(TIMEOUT_CONNECT))
            .timeout_per_read(Some(TIMEOUT_READ))
            .http_status_as_error(false)
            .build();
        let response = request.call().map_err(|error| unreachable(&reference.repo, &error))?;
        match response.status().as_u16() {
            200 => {}
            404 => {
                return Err(StoreError::HubRepoMissing {
                    repo: reference.repo.clone(),
                    revision: reference.revision.clone(),
                });
            }
            status => return Err(status_error(reference, "listing", status)),
        }
        let body = response.into_body().into_reader().take(LISTING_BYTES_MAX);
        let malformed = |reason: String| StoreError::HubMalformed { repo: reference.repo.clone(), reason };
        let answer: Answer = serde_json::from_reader(body).map_err(|error| malformed(error.to_string()))?;
        if !is_clean_path(&answer.sha) || answer.sha.contains('/') {
            return Err(malformed(format!("`{}` is no commit", answer.sha)));
        }
        // From here on the commit is meant, so that all files are of one version even while the branch moves.
        let repo = at(&answer.sha);
        // A name that we could not store safely is a file that we do not see.
        let files =
            answer.siblings.into_iter().filter(|file| is_clean_path(&file.rfilename)).map(HubFile::from).collect();
        Ok(Listing { reference: reference.clone(), commit: answer.sha, files, repo })
    }

    /// Gives the value of the header that opens private repositories.
    pub(crate) fn authorization(&self) -> Option<String> {
        self.token.as_ref().map(|token| format!("Bearer {token}"))
    }
}

impl From<Sibling> for HubFile {
    fn from(file: Sibling) -> Self {
        let sha256 = file.lfs.and_then(|lfs| lfs.sha256).map(|sha256| sha256.to_ascii_lowercase());
        Self { path: file.rfilename, bytes: file.size, sha256 }
    }
}

impl Listing {
    /// Gives the address of a file at the listed commit.
    pub(crate) fn url(&self, file: &HubFile) -> String {
        self.repo.url(&file.path)
    }

    /// Finds a file by its path.
    pub(crate) fn file(&self, path: &str) -> Result<&HubFile, StoreError> {
        self.files.iter().find(|file| file.path == path).ok_or_else(|| StoreError::HubFileMissing {
            repo: self.reference.repo.clone(),
            revision: self.reference.revision.clone(),
            file: path.to_owned(),
        })
    }

    /// Picks the files that make the model: the named one, else a safetensors folder, else the only GGUF file.
    pub(crate) fn model_files(&self) -> Result<Vec<HubFile>, StoreError> {
        if let Some(path) = &self.reference.file {
            return Ok(vec![self.file(path)?.clone()]);
        }
        let is_weight = |file: &HubFile| file.path.ends_with(".safetensors") && !file.path.contains('/');
        let has_config = self.files.iter().any(|file| file.path == "config.json");
        if has_config && self.files.iter().any(is_weight) {
            let wanted = |file: &&HubFile| is_weight(file) || FOLDER_FILES.contains(&file.path.as_str());
            return Ok(self.files.iter().filter(wanted).cloned().collect());
        }
        let gguf: Vec<_> = self.files.iter().filter(|file| file.path.ends_with(".gguf")).collect();
        match gguf.as_slice() {
            [file] => Ok(vec![(*file).clone()]),
            _ => Err(StoreError::HubNoSingleModel { repo: self.reference.repo.clone(), num_gguf: gguf.len() }),
        }
    }
}

/// Tells that a request got no answer.
pub(crate) fn unreachable(repo: &str, error: &ureq::Error) -> StoreError {
    StoreError::HubUnreachable { repo: repo.to_owned(), reason: error.to_string() }
}

/// Tells what a status other than success means.
pub(crate) fn status_error(reference: &HubReference, item: &str, status: u16) -> StoreError {
    let repo = reference.repo.clone();
    match status {
        401 | 403 => StoreError::HubDenied { repo },
        404 => StoreError::HubFileMissing { repo, revision: reference.revision.clone(), file: item.to_owned() },
        _ => StoreError::HubStatus { repo, item: item.to_owned(), status },
    }
}
