//! TLS: the server's certificate, the authority of its clients' certificates, and reading both again when they change.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, bail};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio::{net::TcpStream, sync::watch};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::{sha256::sha256_hex, watched::Watched};

/// What HTTP may be spoken over TLS, the preferred one first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The files of TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate and those between it and its authority, as PEM.
    pub certificate: PathBuf,
    /// The private key, as PEM.
    pub key: PathBuf,
    /// The authorities whose certificates clients must show, as PEM; without it clients need none.
    pub client_ca: Option<PathBuf>,
}

/// Speaks TLS by the newest files that were right. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Tls(watch::Receiver<Arc<ServerConfig>>);

impl Tls {
    /// Reads the files.
    ///
    /// **Errors**: the file that is wrong.
    pub(crate) fn load(files: &TlsFiles) -> anyhow::Result<(Self, Watched<Arc<ServerConfig>>)> {
        let paths = [Some(&files.certificate), Some(&files.key), files.client_ca.as_ref()];
        let files = files.clone();
        let watched = Watched::load(paths.into_iter().flatten().cloned().collect(), move || server_config(&files))?;
        Ok((Self(watched.subscribe()), watched))
    }

    /// Shakes hands; returns the SHA-256 of the client's certificate too, where one was asked for.
    ///
    /// **Errors**: a client that does not speak TLS, or whose certificate is missing or wrong.
    pub(crate) async fn accept(&self, stream: TcpStream) -> std::io::Result<(TlsStream<TcpStream>, Option<Arc<str>>)> {
        let config = self.0.borrow().clone();
        let stream = TlsAcceptor::from(config).accept(stream).await?;
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let certificate = certificate.map(|certificate| Arc::from(sha256_hex(certificate)));
        Ok((stream, certificate))
    }
}

fn server_config(files: &TlsFiles) -> anyhow::Result<Arc<ServerConfig>> {
    let certificates = certificates(&files.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|error| anyhow::anyhow!("{error}"))
        .with_context(|| format!("{} holds no private key", files.key.display()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in self::certificates(path)? {
                let added = roots.add(certificate);
                added.with_context(|| format!("{} holds a wrong certificate", path.display()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.with_context(|| format!("{} is wrong", path.display()))?)
        }
    };
    let config = builder.with_single_cert(certificates, key);
    let mut config = config.with_context(|| {
        let (certificate, key) = (files.certificate.display(), files.key.display());
        format!("{certificate} and {key} are wrong or do not fit each other")
    })?;
    config.alpn_protocols = PROTOCOLS.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = read.map_err(|error| anyhow::anyhow!("{error}"));
    let certificates = certificates.with_context(|| format!("cannot read certificates from {}", path.display()))?;
    if certificates.is_empty() {
        bail!("{} holds no certificate", path.display());
    }
    Ok(certificates)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(folder: &Path) -> TlsFiles {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(folder.join("a.pem"), made.cert.pem()).unwrap();
        std::fs::write(folder.join("a.key"), made.signing_key.serialize_pem()).unwrap();
        TlsFiles { certificate: folder.join("a.pem"), key: folder.join("a.key"), client_ca: None }
    }

    #[test]
    fn a_wrong_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let good = files(folder.path());
        assert!(server_config(&good).is_ok());
        let error = |files: TlsFiles| format!("{:#}", server_config(&files).unwrap_err());
        assert!(error(TlsFiles { certificate: "absent.pem".into(), ..good.clone() }).contains("absent.pem"));
        assert!(
            error(TlsFiles { key: good.certificate.clone(), ..good.clone() }).contains("a.pem holds no private key")
        );
        assert!(
            error(TlsFiles { certificate: good.key.clone(), ..good.clone() }).contains("a.key holds no certificate")
        );
        assert!(error(TlsFiles { client_ca: Some(good.key.clone()), ..good.clone() }).contains("a.key"));
        let other = tempfile::tempdir().unwrap();
        let other = files(other.path());
        assert!(error(TlsFiles { key: other.key, ..good }).contains("do not fit"));
    }
}
