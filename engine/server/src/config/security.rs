//! Who may call: TLS, certificates of clients, tokens.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::bail;
use clap::Args;
use serde::Deserialize;

use super::seconds;
use crate::TlsFiles;

/// The table `security`.
#[derive(Args, Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SecurityOptions {
    /// Certificate of the server, PEM, with those between it and its authority. Read again when it changes. Default: no TLS.
    #[arg(long, env = "BESPOKE_TLS_CERTIFICATE", value_name = "FILE")]
    pub tls_certificate: Option<PathBuf>,
    /// Private key of the certificate, PEM. Default: none.
    #[arg(long, env = "BESPOKE_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Authorities whose certificates clients must show, PEM. Default: clients need none.
    #[arg(long, env = "BESPOKE_TLS_CLIENT_CA", value_name = "FILE")]
    pub tls_client_ca: Option<PathBuf>,
    /// File of the bearer tokens that may call, made with `bespoke-engine token`. Read again when it changes. Default: none.
    #[arg(long, env = "BESPOKE_TOKENS", value_name = "FILE")]
    pub tokens: Option<PathBuf>,
    /// Serve without tokens or certificates of clients on an address that others can reach. Default: false.
    #[arg(long, env = "BESPOKE_ALLOW_UNAUTHENTICATED", num_args = 0..=1, default_missing_value = "true")]
    pub allow_unauthenticated: Option<bool>,
    /// Seconds between looks at the files of certificates and tokens, 1 to 3600. Default: 5.
    #[arg(long, env = "BESPOKE_RELOAD_S", value_name = "SECONDS")]
    pub reload_s: Option<u64>,
}

/// Who may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Security {
    /// The files of TLS, if it is spoken.
    pub tls: Option<TlsFiles>,
    /// The file of tokens.
    pub tokens: Option<PathBuf>,
    /// Whether anybody may call from anywhere.
    pub allow_unauthenticated: bool,
    /// The time between looks at the files.
    pub reload_interval: Duration,
}

impl Default for Security {
    fn default() -> Self {
        Self { tls: None, tokens: None, allow_unauthenticated: false, reload_interval: Duration::from_secs(5) }
    }
}

impl Security {
    /// Whether callers are told apart.
    pub fn authenticates(&self) -> bool {
        self.tokens.is_some() || self.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some())
    }

    /// Refuses to serve anybody on an address that others can reach, unless that is wanted.
    ///
    /// **Errors**: what to do about it.
    pub fn check_address(&self, option: &str, address: SocketAddr) -> anyhow::Result<()> {
        if address.ip().is_loopback() || self.authenticates() || self.allow_unauthenticated {
            return Ok(());
        }
        bail!(
            "{option} is {address}, which others can reach, and anybody may call: give tokens or tls_client_ca, or say \
             allow_unauthenticated"
        );
    }
}

impl SecurityOptions {
    /// Takes each option from here, or where it is not given, from `other`.
    pub(super) fn or(self, other: Self) -> Self {
        Self {
            tls_certificate: self.tls_certificate.or(other.tls_certificate),
            tls_key: self.tls_key.or(other.tls_key),
            tls_client_ca: self.tls_client_ca.or(other.tls_client_ca),
            tokens: self.tokens.or(other.tokens),
            allow_unauthenticated: self.allow_unauthenticated.or(other.allow_unauthenticated),
            reload_s: self.reload_s.or(other.reload_s),
        }
    }

    /// Fills in the defaults and checks everything.
    pub(super) fn checked(self) -> anyhow::Result<Security> {
        let default = Security::default();
        let tls = match (self.tls_certificate, self.tls_key) {
            (Some(certificate), Some(key)) => Some(TlsFiles { certificate, key, client_ca: self.tls_client_ca }),
            (None, None) if self.tls_client_ca.is_none() => None,
            _ => bail!("tls_certificate and tls_key belong together, and tls_client_ca needs both"),
        };
        Ok(Security {
            tls,
            tokens: self.tokens,
            allow_unauthenticated: self.allow_unauthenticated.unwrap_or(default.allow_unauthenticated),
            reload_interval: seconds("reload_s", self.reload_s, default.reload_interval, 1..=3600)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anybody_may_call_from_this_machine_only_unless_that_is_wanted() {
        let check = |security: &Security, address: &str| security.check_address("listen", address.parse().unwrap());
        let none = Security::default();
        for (address, good) in [("127.0.0.1:1", true), ("[::1]:1", true), ("0.0.0.0:1", false), ("[::]:1", false)] {
            assert_eq!(check(&none, address).is_ok(), good, "{address}");
        }
        let error = check(&none, "10.0.0.1:50051").unwrap_err().to_string();
        assert!(error.contains("listen") && error.contains("tokens") && error.contains("allow_unauthenticated"));
        assert!(check(&Security { tokens: Some("t".into()), ..none.clone() }, "0.0.0.0:1").is_ok());
        assert!(check(&Security { allow_unauthenticated: true, ..none.clone() }, "0.0.0.0:1").is_ok());
        let mut files = TlsFiles { certificate: "c".into(), key: "k".into(), client_ca: None };
        assert!(check(&Security { tls: Some(files.clone()), ..none.clone() }, "0.0.0.0:1").is_err());
        files.client_ca = Some("ca".into());
        assert!(check(&Security { tls: Some(files), ..none }, "0.0.0.0:1").is_ok());
    }

    #[test]
    fn half_of_tls_is_refused() {
        let half = SecurityOptions { tls_certificate: Some("c".into()), ..SecurityOptions::default() };
        assert!(half.checked().unwrap_err().to_string().contains("tls_key"));
        let half = SecurityOptions { tls_client_ca: Some("c".into()), ..SecurityOptions::default() };
        assert!(half.checked().is_err());
    }
}
