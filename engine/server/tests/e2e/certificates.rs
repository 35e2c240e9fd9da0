//! Certificates for tests, made on the spot.

use std::path::{Path, PathBuf};

use bespoke_server::TlsFiles;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};

/// An authority that signs certificates.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, both as PEM.
pub(crate) struct Certificate {
    pub(crate) pem: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// Signs a certificate for this machine.
    pub(crate) fn sign(&self) -> Certificate {
        self.sign_until(2100)
    }

    /// Signs a certificate that expires at the beginning of a year.
    pub(crate) fn sign_until(&self, year: i32) -> Certificate {
        let mut params = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().unwrap();
        Certificate { pem: params.signed_by(&key, &self.0).unwrap().pem(), key: key.serialize_pem() }
    }
}

impl Certificate {
    /// Writes the files of a server.
    pub(crate) fn write(&self, folder: &Path) -> TlsFiles {
        let (certificate, key): (PathBuf, PathBuf) = (folder.join("server.pem"), folder.join("server.key"));
        std::fs::write(&certificate, &self.pem).unwrap();
        std::fs::write(&key, &self.key).unwrap();
        TlsFiles { certificate, key, client_ca: None }
    }
}
