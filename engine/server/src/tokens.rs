//! Bearer tokens: who a caller is, and how much each may ask for.
//!
//! The file holds hashes only. A token is 256 random bits, so its plain SHA-256 tells nothing, and looking it up in a table
//! gives an attacker no timing to learn from: what is compared is a hash that he cannot choose.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::{allowance::Allowance, sha256::sha256_hex, watched::Watched};

/// The longest name of a token, in bytes.
const NAME_BYTES_MAX: usize = 64;
/// How soon a caller with too many requests at once may try again.
const BUSY_RETRY: Duration = Duration::from_secs(1);

/// The file of tokens.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokensFile {
    /// The tokens by the names under which they are logged and counted.
    pub(crate) tokens: BTreeMap<String, TokenEntry>,
}

/// One token in the file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenEntry {
    /// The SHA-256 of the token, in lower-case hex.
    pub(crate) sha256: String,
    /// The most requests at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) requests_max: Option<u32>,
    /// The most tokens of prompts and answers in a minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tokens_per_minute: Option<u32>,
}

/// The tokens that the server knows, by hash.
#[derive(Default)]
pub(crate) struct Tokens(HashMap<String, Arc<Identity>>);

/// A caller that has been recognised.
#[derive(Debug)]
pub(crate) struct Identity {
    name: String,
    entry: TokenEntry,
    num_open: AtomicU32,
    allowance: Option<Mutex<Allowance>>,
}

/// One request of a caller that is open, until it is dropped.
#[derive(Debug)]
pub(crate) struct OpenRequest(Arc<Identity>);

/// Why a caller has to wait.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OverLimit {
    /// Too many requests are open.
    #[error("the token has {limit} requests open already")]
    Requests {
        /// The most that may be.
        limit: u32,
    },
    /// The tokens of the last minute are used up.
    #[error("the token has used its {limit} tokens a minute")]
    Tokens {
        /// The tokens of a minute.
        limit: u32,
        /// When there will be some again.
        retry_after: Duration,
    },
}

impl OverLimit {
    /// Returns when trying again makes sense.
    pub(crate) fn retry_after(&self) -> Duration {
        match self {
            Self::Requests { .. } => BUSY_RETRY,
            Self::Tokens { retry_after, .. } => *retry_after,
        }
    }
}

impl Tokens {
    /// Reads the file and follows it. Who is in it before and after keeps what it has used.
    ///
    /// **Errors**: a file that cannot be read, a hash or a name that is none.
    pub(crate) fn load(path: &Path) -> anyhow::Result<Watched<Arc<Self>>> {
        let file = path.to_owned();
        let last = Mutex::new(Arc::new(Self::default()));
        Watched::load(vec![path.to_owned()], move || {
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            *last = Arc::new(Self::read(&file, &last)?);
            Ok(last.clone())
        })
    }

    fn read(path: &Path, last: &Self) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text, last).with_context(|| format!("{} is not a file of tokens", path.display()))
    }

    fn parse(text: &str, last: &Self) -> anyhow::Result<Self> {
        let file: TokensFile = toml::from_str(text)?;
        let now = Instant::now();
        let mut tokens = HashMap::new();
        for (name, entry) in file.tokens {
            check_name(&name)?;
            let hex = |digit: u8| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit);
            if entry.sha256.len() != 64 || !entry.sha256.bytes().all(hex) {
                bail!("tokens.{name}.sha256 is no SHA-256 in lower-case hex");
            }
            if entry.requests_max == Some(0) || entry.tokens_per_minute == Some(0) {
                bail!("tokens.{name} has a limit of 0; take it out of the file instead");
            }
            let kept = last.0.get(&entry.sha256).filter(|kept| kept.name == name && kept.entry == entry);
            let identity = kept.cloned().unwrap_or_else(|| Arc::new(Identity::new(name.clone(), entry.clone(), now)));
            if tokens.insert(entry.sha256, identity).is_some() {
                bail!("tokens.{name} has the hash of another");
            }
        }
        Ok(Self(tokens))
    }

    /// Returns whose token it is.
    pub(crate) fn find(&self, token: &str) -> Option<&Arc<Identity>> {
        self.0.get(&sha256_hex(token.as_bytes()))
    }
}

/// Checks a name of a token: it stands in logs and metrics.
///
/// **Errors**: a name that is empty, too long or has other characters than letters, digits, `-`, `_` and `.`.
pub(crate) fn check_name(name: &str) -> anyhow::Result<()> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if !(1..=NAME_BYTES_MAX).contains(&name.len()) || !name.bytes().all(plain) {
        bail!("the name `{name}` must have 1 to {NAME_BYTES_MAX} letters, digits, `-`, `_` or `.`");
    }
    Ok(())
}

impl Identity {
    fn new(name: String, entry: TokenEntry, now: Instant) -> Self {
        let allowance = entry.tokens_per_minute.map(|limit| Mutex::new(Allowance::new(limit, now)));
        Self { name, entry, num_open: AtomicU32::new(0), allowance }
    }

    /// Returns a caller without a token and without limits.
    pub(crate) fn unlimited(name: String) -> Arc<Self> {
        let entry = TokenEntry { sha256: String::new(), requests_max: None, tokens_per_minute: None };
        Arc::new(Self::new(name, entry, Instant::now()))
    }

    /// Returns the name for logs and metrics.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Opens a request.
    ///
    /// **Errors**: a limit that is reached.
    pub(crate) fn open(self: &Arc<Self>, now: Instant) -> Result<OpenRequest, OverLimit> {
        if let (Some(allowance), Some(limit)) = (&self.allowance, self.entry.tokens_per_minute) {
            let allowance = allowance.lock().unwrap_or_else(PoisonError::into_inner);
            allowance.check(now).map_err(|retry_after| OverLimit::Tokens { limit, retry_after })?;
        }
        let limit = self.entry.requests_max.unwrap_or(u32::MAX);
        let take = |open: u32| (open < limit).then_some(open + 1);
        match self.num_open.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take) {
            Ok(_) => Ok(OpenRequest(self.clone())),
            Err(_) => Err(OverLimit::Requests { limit }),
        }
    }

    /// Notes tokens that have been read or written for the caller.
    pub(crate) fn spend(&self, num_tokens: u64, now: Instant) {
        if let Some(allowance) = &self.allowance {
            allowance.lock().unwrap_or_else(PoisonError::into_inner).spend(num_tokens, now);
        }
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.0.num_open.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(token: &str, rest: &str) -> String {
        format!("sha256 = \"{}\"\n{rest}\n", sha256_hex(token.as_bytes()))
    }

    fn parse(text: &str) -> anyhow::Result<Tokens> {
        Tokens::parse(text, &Tokens::default())
    }

    #[test]
    fn a_token_is_found_by_what_it_is() {
        let tokens = parse(&format!("[tokens.alice]\n{}", entry("secret", ""))).unwrap();
        assert_eq!(tokens.find("secret").unwrap().name(), "alice");
        for other in ["", "Secret", "secret ", &sha256_hex(b"secret")] {
            assert!(tokens.find(other).is_none(), "{other}");
        }
    }

    #[test]
    fn requests_at_once_are_limited() {
        let tokens = parse(&format!("[tokens.a]\n{}", entry("t", "requests_max = 2"))).unwrap();
        let identity = tokens.find("t").unwrap();
        let now = Instant::now();
        let held = (identity.open(now).unwrap(), identity.open(now).unwrap());
        assert_eq!(identity.open(now).unwrap_err(), OverLimit::Requests { limit: 2 });
        drop(held.0);
        assert!(identity.open(now).is_ok());
    }

    #[test]
    fn what_is_spent_outlives_a_change_of_the_file() {
        let text = format!("[tokens.a]\n{}", entry("t", "tokens_per_minute = 60"));
        let first = parse(&text).unwrap();
        let now = Instant::now();
        first.find("t").unwrap().spend(90, now);
        let more = text.clone() + &format!("[tokens.b]\n{}", entry("u", ""));
        let second = Tokens::parse(&more, &first).unwrap();
        let over = second.find("t").unwrap().open(now).unwrap_err();
        assert!(matches!(over, OverLimit::Tokens { limit: 60, .. }));
        assert!(over.retry_after() > Duration::from_secs(20));
        assert!(second.find("u").unwrap().open(now).is_ok());
        let changed = Tokens::parse(&text.replace("60", "61"), &second).unwrap();
        assert!(changed.find("t").unwrap().open(Instant::now()).is_ok(), "a new limit starts anew");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |text: &str| format!("{:#}", parse(text).err().unwrap());
        assert!(error("[tokens.a]\nsha256 = \"00\"").contains("tokens.a.sha256"));
        assert!(error(&format!("[tokens.a]\n{}", entry("t", "limit = 1"))).contains("limit"));
        assert!(error(&format!("[tokens.a]\n{}", entry("t", "requests_max = 0"))).contains("tokens.a"));
        assert!(error(&format!("[tokens.'a b']\n{}", entry("t", ""))).contains("`a b`"));
        let twice = format!("[tokens.a]\n{0}[tokens.b]\n{0}", entry("t", ""));
        assert!(error(&twice).contains("tokens.b"));
    }
}
