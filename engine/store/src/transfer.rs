//! One file from the hub to the staging folder: continues a broken transfer, tries again, checks the end.

use std::io::Read;
use std::thread::sleep;
use std::time::Duration;

use ureq::Body;
use ureq::http::Response;

use crate::hub::{Hub, HubFile, Listing, status_error, unreachable};
use crate::manifest::FileRecord;
use crate::part_file::{Expected, PartFile};
use crate::staging::Staging;
use crate::{CHUNK_BYTES, Progress, StoreError};

/// How often in a row an attempt may bring nothing.
const NUM_FRUITLESS_ATTEMPTS_MAX: u32 = 3;
/// Pause before the first further attempt; it doubles with each fruitless one.
const PAUSE: Duration = Duration::from_millis(500);

/// What a transfer needs to know beside the file.
pub(crate) struct Transfer<'a> {
    pub(crate) hub: &'a Hub,
    pub(crate) listing: &'a Listing,
    pub(crate) staging: &'a Staging,
    pub(crate) progress: &'a dyn Progress,
    /// Bytes of the pull that were there before this file.
    pub(crate) bytes_before: u64,
}

impl Transfer<'_> {
    /// Fetches one file, or finds it already there, and checks it.
    pub(crate) fn fetch(&self, file: &HubFile) -> Result<FileRecord, StoreError> {
        let expected = Expected { bytes: file.bytes, sha256: file.sha256.as_deref() };
        if let Some(record) = self.staging.complete(&file.path, expected)? {
            self.progress.advance_to(self.bytes_before + record.bytes);
            return Ok(record);
        }
        let mut part = PartFile::resume(&self.staging.part(&file.path), u64::MAX)?;
        let mut num_fruitless = 0;
        loop {
            let bytes_at_start = part.bytes();
            let failure = match self.attempt(file, &mut part)? {
                Ok(()) => break,
                Err(failure) => failure,
            };
            num_fruitless = if part.bytes() > bytes_at_start { 0 } else { num_fruitless + 1 };
            if num_fruitless >= NUM_FRUITLESS_ATTEMPTS_MAX {
                return Err(match part.bytes() {
                    0 => failure,
                    bytes => StoreError::Interrupted {
                        repo: self.listing.reference.repo.clone(),
                        file: file.path.clone(),
                        bytes,
                        reason: failure.to_string(),
                    },
                });
            }
            sleep(PAUSE * 2_u32.pow(num_fruitless));
        }
        part.seal(&self.staging.file(&file.path), &file.path, expected)
    }

    /// Asks once for what is still missing. The outer error is final, the inner one is worth another attempt.
    fn attempt(&self, file: &HubFile, part: &mut PartFile) -> Result<Result<(), StoreError>, StoreError> {
        match file.bytes {
            Some(bytes) if part.bytes() == bytes => return Ok(Ok(())),
            Some(bytes) if part.bytes() > bytes => part.restart()?,
            _ => {}
        }
        let mut request = self.hub.agent.get(self.listing.url(file));
        if let Some(authorization) = self.hub.authorization() {
            request = request.header("Authorization", authorization);
        }
        if part.bytes() > 0 {
            request = request.header("Range", format!("bytes={}-", part.bytes()));
        }
        let response = match request.call() {
            Ok(response) => response,
            Err(error) => return Ok(Err(unreachable(&self.listing.reference.repo, &error))),
        };
        match response.status().as_u16() {
            206 if range_start(&response) == Some(part.bytes()) => {}
            200 => part.restart()?,
            // The range lies beyond the end, or is not the one that was asked for: what is here cannot be continued.
            206 | 416 => {
                part.restart()?;
                return Ok(Err(status_error(&self.listing.reference, &file.path, response.status().as_u16())));
            }
            status @ (408 | 429 | 500..) => return Ok(Err(status_error(&self.listing.reference, &file.path, status))),
            status => return Err(status_error(&self.listing.reference, &file.path, status)),
        }
        self.receive(response, file, part)
    }

    /// Appends the body of an answer.
    fn receive(
        &self,
        response: Response<Body>,
        file: &HubFile,
        part: &mut PartFile,
    ) -> Result<Result<(), StoreError>, StoreError> {
        let limit = file.bytes.map_or(u64::MAX, |bytes| bytes - part.bytes());
        let mut body = response.into_body().into_reader().take(limit);
        let mut chunk = vec![0; CHUNK_BYTES];
        let broken = |bytes: u64, reason: String| StoreError::Interrupted {
            repo: self.listing.reference.repo.clone(),
            file: file.path.clone(),
            bytes,
            reason,
        };
        loop {
            match body.read(&mut chunk) {
                Ok(0) => break,
                Ok(len) => part.append(&chunk[..len])?,
                Err(error) => return Ok(Err(broken(part.bytes(), error.to_string()))),
            }
            self.progress.advance_to(self.bytes_before + part.bytes());
        }
        match file.bytes {
            Some(bytes) if part.bytes() < bytes => Ok(Err(broken(part.bytes(), "the connection ended".to_owned()))),
            _ => Ok(Ok(())),
        }
    }
}

/// Reads where the body of a partial answer begins: `Content-Range: bytes 5-9/10`.
fn range_start(response: &Response<Body>) -> Option<u64> {
    let range = response.headers().get("content-range")?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split_once('-')?.0.trim().parse().ok()
}
