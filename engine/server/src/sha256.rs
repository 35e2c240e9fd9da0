//! SHA-256 in hex, the form in which tokens and certificates are written down.

use sha2::{Digest, Sha256};

/// Returns the SHA-256 of bytes in lower-case hex.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().fold(String::with_capacity(64), |hex, byte| hex + &format!("{byte:02x}"))
}
