//! The options of the HTTP address.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::bail;
use axum::http::HeaderValue;
use clap::Args;
use serde::Deserialize;

/// The options of the HTTP address, as typed or written.
#[derive(Args, Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpOptions {
    /// Address for HTTP: OpenAI's API, gRPC-Web and the playground. Default: none.
    #[arg(long, env = "BESPOKE_HTTP_ADDRESS", value_name = "ADDRESS:PORT")]
    pub http_address: Option<SocketAddr>,
    /// File to write the bound HTTP address to once the server listens. Default: none.
    #[arg(long, env = "BESPOKE_HTTP_PORT_FILE", value_name = "FILE")]
    pub http_port_file: Option<PathBuf>,
    /// Origins whose pages may call the HTTP address, such as `https://chat.example`, or `*` for any. Default: none.
    #[arg(long, env = "BESPOKE_CORS_ORIGINS", value_name = "ORIGINS", value_delimiter = ',')]
    pub cors_origins: Option<Vec<String>>,
    /// Serve a playground at the HTTP address. Default: false.
    #[arg(long, env = "BESPOKE_UI", num_args = 0..=1, default_missing_value = "true")]
    pub ui: Option<bool>,
}

/// The resolved options of the HTTP address.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Http {
    /// Where to listen.
    pub address: Option<SocketAddr>,
    /// Where to write the bound address.
    pub port_file: Option<PathBuf>,
    /// The origins whose pages may call.
    pub cors_origins: Vec<HeaderValue>,
    /// Whether the playground is served.
    pub ui: bool,
}

impl HttpOptions {
    /// Takes each option from here, or where it is not given, from `other`.
    pub(super) fn or(self, other: Self) -> Self {
        Self {
            http_address: self.http_address.or(other.http_address),
            http_port_file: self.http_port_file.or(other.http_port_file),
            cors_origins: self.cors_origins.or(other.cors_origins),
            ui: self.ui.or(other.ui),
        }
    }

    /// Checks the options.
    ///
    /// **Errors**: an origin that is none, a playground without an address.
    pub(super) fn checked(self) -> anyhow::Result<Http> {
        let ui = self.ui.unwrap_or(false);
        if ui && self.http_address.is_none() {
            bail!("ui needs http_address");
        }
        Ok(Http {
            address: self.http_address,
            port_file: self.http_port_file,
            cors_origins: self
                .cors_origins
                .unwrap_or_default()
                .iter()
                .map(|text| origin(text))
                .collect::<Result<_, _>>()?,
            ui,
        })
    }
}

/// Reads an origin as a browser sends it: scheme, host and perhaps port, without a path.
fn origin(text: &str) -> anyhow::Result<HeaderValue> {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let holds = text == "*" || host.is_some_and(|host| !host.is_empty() && !host.contains('/'));
    match HeaderValue::from_str(text) {
        Ok(value) if holds => Ok(value),
        _ => bail!("cors_origins has `{text}`, must be * or of the form https://host:port without a path"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_checked() {
        for text in ["*", "https://chat.example", "http://localhost:3000"] {
            assert_eq!(origin(text).unwrap(), text);
        }
        for text in ["", "chat.example", "https://", "https://chat.example/", "https://a\n"] {
            assert!(origin(text).unwrap_err().to_string().contains("cors_origins"), "{text}");
        }
    }

    #[test]
    fn a_playground_needs_an_address() {
        assert!(HttpOptions { ui: Some(true), ..HttpOptions::default() }.checked().is_err());
        assert_eq!(HttpOptions::default().checked().unwrap(), Http::default());
    }
}
