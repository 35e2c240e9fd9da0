//! TensorBoard event files: length, checksum, event, checksum.
//!
//! **Source**: TensorFlow `core/lib/io/record_writer.h` and `core/util/event.proto`; checksums are CRC-32C (RFC 3720, B.4).

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::TrainError;

/// An open event file.
pub(crate) struct Events {
    path: PathBuf,
    file: File,
}

impl Events {
    /// Begins a file; TensorBoard shows all of a folder as one run.
    pub(crate) fn create(output: &Path) -> Result<Events, TrainError> {
        let seconds = now();
        let path = output.join(format!("events.out.tfevents.{}.{}", seconds as u64, std::process::id()));
        let file = File::create(&path).map_err(TrainError::writing(&path))?;
        let mut events = Events { path, file };
        let mut event = Vec::new();
        double(&mut event, 1, seconds);
        bytes(&mut event, 3, b"brain.Event:2");
        events.record(&event)?;
        Ok(events)
    }

    /// Writes named values of a step.
    pub(crate) fn write(&mut self, step: u64, values: &[(String, f64)]) -> Result<(), TrainError> {
        let mut summary = Vec::new();
        for (name, value) in values {
            let mut entry = Vec::new();
            bytes(&mut entry, 1, name.as_bytes());
            key(&mut entry, 2, 5);
            entry.extend((*value as f32).to_le_bytes());
            bytes(&mut summary, 1, &entry);
        }
        let mut event = Vec::new();
        double(&mut event, 1, now());
        key(&mut event, 2, 0);
        varint(&mut event, step);
        bytes(&mut event, 5, &summary);
        self.record(&event)
    }

    fn record(&mut self, event: &[u8]) -> Result<(), TrainError> {
        let len = (event.len() as u64).to_le_bytes();
        let mut record = len.to_vec();
        record.extend(masked_crc(&len).to_le_bytes());
        record.extend(event);
        record.extend(masked_crc(event).to_le_bytes());
        self.file.write_all(&record).map_err(TrainError::writing(&self.path))
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// Field number and wire type.
fn key(out: &mut Vec<u8>, field: u64, wire: u64) {
    varint(out, field << 3 | wire);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn double(out: &mut Vec<u8>, field: u64, value: f64) {
    key(out, field, 1);
    out.extend(value.to_le_bytes());
}

fn bytes(out: &mut Vec<u8>, field: u64, value: &[u8]) {
    key(out, field, 2);
    varint(out, value.len() as u64);
    out.extend(value);
}

/// CRC-32C, turned and shifted so that a checksum of checksums is harmless.
fn masked_crc(data: &[u8]) -> u32 {
    const MASK: u32 = 0xA282_EAD8;
    crc32c(data).rotate_right(15).wrapping_add(MASK)
}

fn crc32c(data: &[u8]) -> u32 {
    /// The polynomial of Castagnoli, lowest bit first.
    const POLYNOMIAL: u32 = 0x82F6_3B78;
    let mut crc = !0_u32;
    for &byte in data {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (POLYNOMIAL & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_rfc() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
    }

    #[test]
    fn records_follow_each_other_whole() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = Events::create(folder.path()).unwrap();
        events.write(300, &[("train/loss".to_owned(), 1.5)]).unwrap();
        let written = std::fs::read(&events.path).unwrap();
        let (mut rest, mut num) = (written.as_slice(), 0);
        while let Some((head, after)) = rest.split_first_chunk::<8>() {
            let len = u64::from_le_bytes(*head) as usize;
            assert_eq!(after[..4], masked_crc(head).to_le_bytes());
            let event = &after[4..4 + len];
            assert_eq!(after[4 + len..8 + len], masked_crc(event).to_le_bytes());
            num += 1;
            rest = &after[8 + len..];
        }
        assert_eq!((num, rest.len()), (2, 0));
        assert!(written.windows(10).any(|bytes| bytes == b"train/loss"));
    }
}
