//! Whole pulls against a hub and a pip of our own: no network, no Python.

mod fake_hub;
mod fake_pip;
mod hub;
mod package;

use std::path::Path;
use std::sync::Mutex;

use sha2::{Digest, Sha256};

use crate::{Progress, Store, StoreConfig};

/// Records what a pull reports.
#[derive(Default)]
struct Recorder {
    notes: Mutex<Vec<String>>,
    total: Mutex<u64>,
    last: Mutex<u64>,
}

impl Recorder {
    fn notes(&self) -> String {
        self.notes.lock().unwrap().join("\n")
    }
}

impl Progress for Recorder {
    fn start(&self, _name: &str, bytes_total: u64) {
        *self.total.lock().unwrap() = bytes_total;
    }
    fn advance_to(&self, bytes: u64) {
        *self.last.lock().unwrap() = bytes;
    }
    fn note(&self, message: &str) {
        self.notes.lock().unwrap().push(message.to_owned());
    }
    fn finish(&self) {
        assert_eq!(*self.last.lock().unwrap(), *self.total.lock().unwrap());
    }
}

/// A store whose hub and pip are not there unless a test sets them.
fn config(root: &Path) -> StoreConfig {
    StoreConfig {
        root: root.to_owned(),
        // Nothing listens on the discard port, so a connection is refused at once.
        hub_endpoint: Some("http://127.0.0.1:9".to_owned()),
        hub_token: None,
        pip: vec!["/absent/python3".into()],
    }
}

fn store(root: &Path) -> Store {
    Store::new(config(root))
}

fn sha256(bytes: &[u8]) -> String {
    crate::part_file::hex(Sha256::new_with_prefix(bytes))
}

/// Bytes that differ everywhere, so that a wrong seam shows.
fn noise(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..len).map(|_| next()).collect()
}

#[test]
fn a_path_needs_neither_cache_nor_network() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("m.gguf");
    let name = file.to_str().unwrap();
    let error = store(root.path()).resolve(name).unwrap_err();
    assert!(error.to_string().contains("does not exist"), "{error}");
    std::fs::write(&file, b"x").unwrap();
    assert_eq!(store(root.path()).resolve(name).unwrap(), Some(file.clone()));
    assert_eq!(store(root.path()).pull(name, &Recorder::default()).unwrap(), file);
}

#[test]
fn an_empty_cache_lists_nothing_and_removes_nothing() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    assert_eq!(store.list().unwrap(), []);
    assert_eq!(store.resolve("smollm2-135m-instruct").unwrap(), None);
    for name in ["smollm2-135m-instruct", "org/name", "../../etc", ""] {
        assert!(matches!(store.remove(name), Err(crate::StoreError::NotCached { .. })), "{name}");
    }
}
