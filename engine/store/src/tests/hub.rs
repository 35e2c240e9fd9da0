//! Pulls from the hub.

use std::fs;

use super::fake_hub::{Behaviour, COMMIT, FakeHub};
use super::{Recorder, config, noise, sha256};
use crate::{Store, StoreError};

const LEN: usize = 300_000;

fn gguf() -> Vec<(String, Vec<u8>)> {
    vec![("m.gguf".to_owned(), noise(LEN, 1)), ("README.md".to_owned(), b"text".to_vec())]
}

struct Case {
    root: tempfile::TempDir,
    hub: FakeHub,
    store: Store,
}

fn case(behaviour: Behaviour) -> Case {
    let root = tempfile::tempdir().unwrap();
    let hub_token = behaviour.token.clone();
    let hub = FakeHub::start(behaviour);
    let store =
        Store::new(crate::StoreConfig { hub_endpoint: Some(hub.endpoint.clone()), hub_token, ..config(root.path()) });
    Case { root, hub, store }
}

#[test]
fn one_file_is_fetched_once_listed_and_removed() {
    let Case { root, hub, store } = case(Behaviour { files: gguf(), ..Behaviour::default() });
    let progress = Recorder::default();
    let path = store.pull("org/name:m.gguf", &progress).unwrap();
    assert_eq!(fs::read(&path).unwrap(), noise(LEN, 1));
    assert_eq!(*progress.last.lock().unwrap(), LEN as u64);
    let num_requests = hub.log().len();
    assert_eq!(store.pull("org/name:m.gguf", &Recorder::default()).unwrap(), path);
    assert_eq!(store.resolve("org/name:m.gguf").unwrap().as_ref(), Some(&path));
    assert_eq!(hub.log().len(), num_requests, "a cached model needs no request");

    let models = store.list().unwrap();
    let [model] = models.as_slice() else { panic!("{models:?}") };
    assert_eq!((model.bytes, &model.path), (LEN as u64, &path));
    assert_eq!(model.source, format!("hub org/name@{COMMIT}"));
    let manifest = fs::read_to_string(path.with_file_name("manifest.json")).unwrap();
    assert!(manifest.contains(&sha256(&noise(LEN, 1))), "{manifest}");

    assert_eq!(store.resolve(&model.name).unwrap().as_ref(), Some(&path), "a listed name is a reference");
    store.remove(&model.name).unwrap();
    assert!(!path.exists() && store.list().unwrap().is_empty());
    assert_eq!(fs::read_dir(root.path().join("partial")).unwrap().count(), 0);
}

#[test]
fn the_only_gguf_of_a_repository_needs_no_name() {
    let Case { store, .. } = case(Behaviour { files: gguf(), ..Behaviour::default() });
    let path = store.pull("org/name", &Recorder::default()).unwrap();
    assert!(path.ends_with("m.gguf"), "{path:?}");
}

#[test]
fn a_folder_model_gets_its_files_and_no_others() {
    let wanted = [
        "config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ];
    let unwanted = ["README.md", "pytorch_model.bin", "onnx/model.safetensors", "../escape.safetensors"];
    let file = |(seed, name): (usize, &&str)| ((*name).to_owned(), noise(1000 + seed, seed as u32));
    let files = wanted.iter().chain(&unwanted).enumerate().map(file).collect();
    let Case { store, .. } = case(Behaviour { files, ..Behaviour::default() });
    let folder = store.pull("org/name", &Recorder::default()).unwrap();
    let mut found: Vec<_> =
        fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    found.sort();
    let mut expected: Vec<_> = wanted.into_iter().chain(["manifest.json"]).collect();
    expected.sort_unstable();
    assert_eq!(found, expected);
    assert_eq!(fs::read(folder.join("config.json")).unwrap(), noise(1000, 0));
}

#[test]
fn a_broken_transfer_continues_where_it_stopped() {
    let Case { hub, store, .. } =
        case(Behaviour { files: gguf(), cuts: [100_000, 50_000].into(), redirects: true, ..Behaviour::default() });
    let path = store.pull("org/name:m.gguf", &Recorder::default()).unwrap();
    assert_eq!(fs::read(path).unwrap(), noise(LEN, 1));
    let log = hub.log();
    assert_eq!(log.last().unwrap(), "/cdn/m.gguf from 150000", "{log:?}");
}

#[test]
fn a_later_pull_continues_what_an_earlier_one_left() {
    let Case { hub, store, .. } =
        case(Behaviour { files: gguf(), cuts: [100_000, 0, 0, 0].into(), ..Behaviour::default() });
    let error = store.pull("org/name:m.gguf", &Recorder::default()).unwrap_err();
    assert!(matches!(&error, StoreError::Interrupted { bytes: 100_000, .. }), "{error}");
    assert!(store.list().unwrap().is_empty() && store.resolve("org/name:m.gguf").unwrap().is_none());
    store.pull("org/name:m.gguf", &Recorder::default()).unwrap();
    assert!(hub.log().last().unwrap().ends_with("from 100000"), "{:?}", hub.log());
}

#[test]
fn a_server_without_ranges_starts_again() {
    let Case { store, .. } =
        case(Behaviour { files: gguf(), cuts: [100_000].into(), ignores_ranges: true, ..Behaviour::default() });
    let path = store.pull("org/name:m.gguf", &Recorder::default()).unwrap();
    assert_eq!(fs::read(path).unwrap(), noise(LEN, 1));
}

#[test]
fn a_wrong_checksum_is_an_error_and_the_bad_file_is_removed() {
    let Case { root, store, .. } = case(Behaviour { files: gguf(), lies: true, ..Behaviour::default() });
    let error = store.pull("org/name:m.gguf", &Recorder::default()).unwrap_err();
    let StoreError::ChecksumMismatch { file, expected, found } = &error else { panic!("{error}") };
    assert_eq!((file.as_str(), expected, found), ("m.gguf", &sha256(b"other bytes"), &sha256(&noise(LEN, 1))));
    let left = root.path().join("partial/org--name--m.gguf").join(COMMIT);
    assert_eq!(fs::read_dir(left).unwrap().count(), 0);
    assert!(store.list().unwrap().is_empty());
}

#[test]
fn what_is_not_there_is_named() {
    let Case { store, .. } = case(Behaviour { files: gguf(), ..Behaviour::default() });
    let pull = |reference: &str| store.pull(reference, &Recorder::default()).unwrap_err();
    let error = pull("org/name:absent.gguf").to_string();
    assert!(error.contains("org/name") && error.contains("absent.gguf"), "{error}");
    let error = pull("org/absent");
    assert!(matches!(&error, StoreError::HubRepoMissing { repo, .. } if repo == "org/absent"), "{error}");
    let error = pull("org/name@v2").to_string();
    assert!(error.contains("v2"), "{error}");
}

#[test]
fn a_repository_of_several_models_asks_which() {
    let files = ["a.gguf", "b.gguf"].map(|name| (name.to_owned(), noise(10, 1))).into();
    let Case { store, .. } = case(Behaviour { files, ..Behaviour::default() });
    let error = store.pull("org/name", &Recorder::default()).unwrap_err();
    assert!(matches!(&error, StoreError::HubNoSingleModel { num_gguf: 2, .. }), "{error}");
}

#[test]
fn the_token_opens_and_is_never_shown() {
    let Case { root, hub, store } =
        case(Behaviour { files: gguf(), token: Some("hf_secret".to_owned()), ..Behaviour::default() });
    assert!(!format!("{store:?}").contains("hf_secret"));
    store.pull("org/name:m.gguf", &Recorder::default()).unwrap();
    let without = Store::new(crate::StoreConfig {
        hub_endpoint: Some(hub.endpoint.clone()),
        ..config(&root.path().join("other"))
    });
    let error = without.pull("org/name:m.gguf", &Recorder::default()).unwrap_err();
    assert!(matches!(&error, StoreError::HubDenied { .. }) && error.to_string().contains("HF_TOKEN"), "{error}");
}

#[test]
fn no_network_is_a_clear_error() {
    let root = tempfile::tempdir().unwrap();
    let error = super::store(root.path()).pull("org/name", &Recorder::default()).unwrap_err();
    assert!(matches!(&error, StoreError::HubUnreachable { .. }), "{error}");
    assert!(error.to_string().contains("pass the path"), "{error}");
}

#[test]
fn a_damaged_model_counts_as_missing_and_is_pulled_again() {
    let Case { store, .. } = case(Behaviour { files: gguf(), ..Behaviour::default() });
    let path = store.pull("org/name:m.gguf", &Recorder::default()).unwrap();
    fs::write(&path, b"short").unwrap();
    assert_eq!(store.resolve("org/name:m.gguf").unwrap(), None);
    assert!(store.list().unwrap().is_empty());
    store.pull("org/name:m.gguf", &Recorder::default()).unwrap();
    assert_eq!(fs::read(&path).unwrap(), noise(LEN, 1));
}
