//! Keys of services, from the environment or a `.env` file; never printed.

use std::collections::HashMap;

/// The names of each key: those of the reference first, then the vendors' own.
pub(crate) const OPENAI: [&str; 2] = ["OPEN_AI_TOKEN", "OPENAI_API_KEY"];
pub(crate) const ANTHROPIC: [&str; 2] = ["ANTHROPIC_TOKEN", "ANTHROPIC_API_KEY"];
pub(crate) const COHERE: [&str; 3] = ["COHERE_TOKEN", "COHERE_API_KEY", "CO_API_KEY"];
pub(crate) const HUB_READ: [&str; 3] = ["HF_READ_TOKEN", "HF_WRITE_TOKEN", "HF_TOKEN"];
pub(crate) const HUB_WRITE: [&str; 2] = ["HF_WRITE_TOKEN", "HF_TOKEN"];

/// A key.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl Secret {
    /// Returns the key for the header that carries it.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    /// Returns the value of an `authorization` header.
    pub(crate) fn bearer(&self) -> Self {
        Self(format!("Bearer {}", self.0))
    }

    /// Wraps a header's value that need not be secret.
    pub(crate) fn of(value: &str) -> Self {
        Self(value.to_owned())
    }
}

/// Hides the key.
impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(hidden)")
    }
}

/// All keys that were found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Keys(HashMap<String, Secret>);

impl Keys {
    /// Reads the environment, and a `.env` file of this folder or one above it; the environment goes first.
    ///
    /// **Errors**: a `.env` file with a line that is not `NAME=value`.
    pub(crate) fn load() -> anyhow::Result<Self> {
        let mut found = HashMap::new();
        match dotenvy::dotenv_iter() {
            Ok(entries) => {
                for entry in entries {
                    // The error of a bad line would quote it, key and all.
                    let (name, value) =
                        entry.map_err(|_| anyhow::anyhow!("`.env` has a line that is not NAME=value"))?;
                    found.insert(name, value);
                }
            }
            Err(error) if error.not_found() => {}
            Err(_) => anyhow::bail!("`.env` cannot be read"),
        }
        let names = [&OPENAI[..], &ANTHROPIC, &COHERE, &HUB_READ, &HUB_WRITE].concat();
        found.extend(names.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?))));
        let known =
            found.into_iter().filter(|(name, value)| names.contains(&name.as_str()) && !value.trim().is_empty());
        Ok(Self(known.map(|(name, value)| (name, Secret(value.trim().to_owned()))).collect()))
    }

    /// Returns the key under the first of the names that has one.
    pub(crate) fn first(&self, names: &[&str]) -> Option<Secret> {
        names.iter().find_map(|name| self.0.get(*name)).cloned()
    }

    #[cfg(test)]
    pub(crate) fn of(name: &str, value: &str) -> Self {
        Self(HashMap::from([(name.to_owned(), Secret(value.to_owned()))]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_never_shown() {
        let keys = Keys::of("OPENAI_API_KEY", "sk-very-secret");
        assert!(!format!("{keys:?}").contains("very"));
        assert_eq!(keys.first(&OPENAI).unwrap().expose(), "sk-very-secret");
        assert_eq!(keys.first(&COHERE), None);
    }
}
