//! Where a store keeps its files and whom it asks: plain values, read from the environment by one function.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use crate::StoreError;

/// Holds the settings of a [`Store`](crate::Store).
#[derive(Clone)]
pub struct StoreConfig {
    /// Folder of the cache.
    pub root: PathBuf,
    /// Base URL of the hub; `None` is the public one.
    pub hub_endpoint: Option<String>,
    /// Access token of the hub.
    pub hub_token: Option<String>,
    /// Command that runs pip, with its leading arguments.
    pub pip: Vec<OsString>,
}

impl StoreConfig {
    /// Reads the settings from the environment; `root` wins over `BESPOKE_CACHE`, `XDG_CACHE_HOME` and the home folder.
    ///
    /// **Errors** `NoCacheFolder` when none of them is set.
    pub fn from_env(root: Option<PathBuf>) -> Result<Self, StoreError> {
        let root = root
            .or_else(|| variable("BESPOKE_CACHE").map(PathBuf::from))
            .or_else(|| variable("XDG_CACHE_HOME").map(|base| PathBuf::from(base).join("bespoke")))
            .or_else(|| std::env::home_dir().map(|home| home.join(".cache").join("bespoke")))
            .ok_or(StoreError::NoCacheFolder)?;
        let text = |name| variable(name).and_then(|value| value.into_string().ok());
        let python = if cfg!(windows) { "python" } else { "python3" };
        Ok(Self {
            root,
            hub_endpoint: text("HF_ENDPOINT").map(|url| url.trim_end_matches('/').to_owned()),
            hub_token: text("HF_TOKEN"),
            pip: vec![python.into(), "-m".into(), "pip".into()],
        })
    }
}

impl fmt::Debug for StoreConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreConfig")
            .field("root", &self.root)
            .field("hub_endpoint", &self.hub_endpoint)
            .field("hub_token", &self.hub_token.as_ref().map(|_| "redacted"))
            .field("pip", &self.pip)
            .finish()
    }
}

/// Reads an environment variable, taking an empty one for absent.
fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_redacts_the_token() {
        let mut config = StoreConfig::from_env(Some("/c".into())).unwrap();
        config.hub_token = Some("hf_secret".to_owned());
        let shown = format!("{config:?}");
        assert!(shown.contains("redacted") && !shown.contains("hf_secret"), "{shown}");
        assert_eq!(config.root, PathBuf::from("/c"));
    }
}
