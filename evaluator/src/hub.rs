//! The model hub: puts a file into a data set repository, as one commit.
//!
//! The way of a file: the repository is made where there is none (private), the hub is asked whether it keeps such a file in
//! the commit or by its SHA-256 (Git LFS), the bytes are sent if they are of the second kind and not there already, and the
//! commit names the file. **Source**: the hub's HTTP API as `huggingface_hub` speaks it, and the Git LFS batch API.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};

use crate::{
    case::hex_digest,
    provider::{HUB_WRITE, Keys, Secret},
};

/// The public hub.
const ENDPOINT: &str = concat!("https", "://huggingface.co");
/// The branch that is written to.
const BRANCH: &str = "main";
/// The hub looks at the beginning of a file to see whether it is text.
const SAMPLE_BYTES: usize = 512;
/// How long one request may take.
const TIMEOUT: Duration = Duration::from_secs(600);
const ANSWER_BYTES_MAX: u64 = 4 * 1024 * 1024;
const LFS: &str = "application/vnd.git-lfs+json";

/// A data set repository that can be written to.
pub(crate) struct HubRepo {
    agent: ureq::Agent,
    endpoint: String,
    token: Secret,
    /// `owner/name`.
    id: String,
}

impl HubRepo {
    /// Names a repository; the token is taken from the environment or `.env`, the hub's address from `HF_ENDPOINT`.
    ///
    /// **Errors**: an id of another form, no token.
    pub(crate) fn open(id: &str) -> Result<Self> {
        let is_part = |part: &str| {
            !part.is_empty()
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
                && !part.contains("..")
        };
        let is_id = id.split_once('/').is_some_and(|(owner, name)| is_part(owner) && is_part(name));
        ensure!(is_id, "`--push-to-hub {id}`: a data set is named owner/name");
        let token = Keys::load()?.first(&HUB_WRITE);
        let token = token
            .with_context(|| format!("no token: set {} in the environment or in `.env`", HUB_WRITE.join(" or ")))?;
        let endpoint = std::env::var("HF_ENDPOINT").ok().filter(|endpoint| !endpoint.is_empty());
        let endpoint = endpoint.unwrap_or_else(|| ENDPOINT.to_owned()).trim_end_matches('/').to_owned();
        let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(TIMEOUT)).build();
        Ok(Self { agent: config.into(), endpoint, token, id: id.to_owned() })
    }

    /// Commits a file and returns the address of the data set.
    ///
    /// **Errors**: what the hub refuses, with its words.
    pub(crate) fn push(&self, path: &str, bytes: &[u8], summary: &str) -> Result<String> {
        self.create()?;
        let by_digest = self.is_kept_by_digest(path, bytes)?;
        let entry = if by_digest {
            let oid = hex_digest(bytes);
            self.upload(&oid, bytes)?;
            json!({"key": "lfsFile", "value": {"path": path, "algo": "sha256", "oid": oid, "size": bytes.len()}})
        } else {
            json!({"key": "file", "value": {"path": path, "encoding": "base64", "content": BASE64.encode(bytes)}})
        };
        let header = json!({"key": "header", "value": {"summary": summary, "description": ""}});
        let url = format!("{}/api/datasets/{}/commit/{BRANCH}", self.endpoint, self.id);
        self.send(&url, "application/x-ndjson", format!("{header}\n{entry}\n").as_bytes())?;
        Ok(format!("{}/datasets/{}", self.endpoint, self.id))
    }

    /// Makes the repository, private; one that is there already is as good.
    fn create(&self) -> Result<()> {
        let (owner, name) = self.id.split_once('/').context("invariant: the id was checked")?;
        let url = format!("{}/api/repos/create", self.endpoint);
        let body = json!({"type": "dataset", "organization": owner, "name": name, "private": true});
        match self.post(&url, "application/json", body.to_string().as_bytes(), true)? {
            (200..=299 | 409, _) => Ok(()),
            // An owner that is the user and not an organization is refused by name, but its data set may be there.
            (400 | 403, _) if self.exists()? => Ok(()),
            (status, text) => bail!("{url} answers {status}: {}", text.trim()),
        }
    }

    fn exists(&self) -> Result<bool> {
        let url = format!("{}/api/datasets/{}", self.endpoint, self.id);
        let request = self.agent.get(&url).header("authorization", self.token.bearer().expose());
        Ok(request.call().with_context(|| url.clone())?.status().is_success())
    }

    fn is_kept_by_digest(&self, path: &str, bytes: &[u8]) -> Result<bool> {
        let sample = BASE64.encode(&bytes[..bytes.len().min(SAMPLE_BYTES)]);
        let url = format!("{}/api/datasets/{}/preupload/{BRANCH}", self.endpoint, self.id);
        let body = json!({"files": [{"path": path, "sample": sample, "size": bytes.len()}]});
        let answer = self.send(&url, "application/json", body.to_string().as_bytes())?;
        Ok(answer["files"][0]["uploadMode"] == "lfs")
    }

    /// Sends the bytes of a file that is kept by its digest, unless they are there.
    fn upload(&self, oid: &str, bytes: &[u8]) -> Result<()> {
        let url = format!("{}/datasets/{}.git/info/lfs/objects/batch", self.endpoint, self.id);
        let object = json!({"oid": oid, "size": bytes.len()});
        let body = json!({"operation": "upload", "transfers": ["basic"], "objects": [object], "hash_algo": "sha256"});
        let answer = self.send(&url, LFS, body.to_string().as_bytes())?;
        let object = &answer["objects"][0];
        if let Some(message) = object["error"]["message"].as_str() {
            bail!("{url}: {message}");
        }
        let Some(action) = object["actions"].get("upload") else { return Ok(()) };
        ensure!(
            action["header"].get("chunk_size").is_none(),
            "the hub wants the file in parts, which is not supported: it is too large"
        );
        let target = action["href"].as_str().with_context(|| format!("{url} names no place for the file"))?;
        let mut request = self.agent.put(target);
        for (name, value) in action["header"].as_object().into_iter().flatten() {
            request = request.header(name, value.as_str().unwrap_or_default());
        }
        // The address is signed and holds a secret of its own, so errors do not repeat it.
        let response = request.send(bytes).context("sending the file to the hub's storage")?;
        ensure!(response.status().is_success(), "the hub's storage answers {}", response.status());
        if let Some(verify) = object["actions"]["verify"]["href"].as_str() {
            self.send(verify, LFS, json!({"oid": oid, "size": bytes.len()}).to_string().as_bytes())?;
        }
        Ok(())
    }

    /// Posts and takes success alone.
    fn send(&self, url: &str, kind: &str, body: &[u8]) -> Result<Value> {
        // Only the hub itself gets the token.
        let (status, text) = self.post(url, kind, body, url.starts_with(&format!("{}/", self.endpoint)))?;
        ensure!((200..300).contains(&status), "{url} answers {status}: {}", text.trim());
        if text.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).with_context(|| format!("{url} sent what is not JSON"))
    }

    fn post(&self, url: &str, kind: &str, body: &[u8], with_token: bool) -> Result<(u16, String)> {
        let mut request = self.agent.post(url).header("content-type", kind);
        if kind == LFS {
            request = request.header("accept", kind);
        }
        if with_token {
            request = request.header("authorization", self.token.bearer().expose());
        }
        let mut response = request.send(body).with_context(|| url.to_owned())?;
        let text = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string();
        Ok((response.status().as_u16(), text.with_context(|| url.to_owned())?))
    }
}
