//! `augment` into Parquet and into a data set of the hub, against a local stand-in of its commit and LFS protocols.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::{
    fake_service::{FakeService, Received, Reply},
    support::{RunningEngine, fails, program, succeeds, write_pairs},
};

/// What the stand-in keeps of what it was sent.
#[derive(Default)]
struct Kept {
    entries: Vec<Value>,
    uploads: Vec<Vec<u8>>,
}

/// Starts a hub that keeps files in the commit or by their digest.
fn hub(by_digest: bool, kept: Arc<Mutex<Kept>>) -> FakeService {
    FakeService::start_of(move |url| {
        Box::new(move |_: usize, received: &Received| {
            let mut kept = kept.lock().unwrap();
            match received.path.as_str() {
                "/api/repos/create" => Reply::status(409, &json!({"error": "it is there"})),
                "/api/datasets/me/personas/preupload/main" => {
                    Reply::json(&json!({"files": [{"path": received.body["files"][0]["path"],
                        "uploadMode": if by_digest { "lfs" } else { "regular" }}]}))
                }
                "/datasets/me/personas.git/info/lfs/objects/batch" => {
                    let upload = json!({"href": format!("{url}/storage?signature=secret"), "header": {"x-part": "1"}});
                    Reply::json(
                        &json!({"objects": [{"actions": {"upload": upload, "verify": {"href": format!("{url}/verify")}}}]}),
                    )
                }
                "/storage?signature=secret" => {
                    assert!(!received.headers.iter().any(|header| header.to_lowercase().starts_with("authorization")));
                    kept.uploads.push(received.bytes.clone());
                    Reply::json(&json!({}))
                }
                "/verify" => Reply::json(&json!({})),
                "/api/datasets/me/personas/commit/main" => {
                    assert!(
                        received
                            .headers
                            .iter()
                            .any(|header| header.to_lowercase() == "authorization: bearer hf_secret")
                    );
                    let text = String::from_utf8(received.bytes.clone()).unwrap();
                    kept.entries.extend(text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()));
                    Reply::json(&json!({"commitUrl": "x"}))
                }
                other => panic!("{other}"),
            }
        })
    })
}

#[test]
fn augmented_rows_go_to_the_hub() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let engine = RunningEngine::start();
    let pairs = write_pairs(dir, 3);
    succeeds(dir, &["infer", "--data", &pairs, "--out", "i", "--base-url", &engine.url, "--max-new-tokens", "8"]);
    for (out, by_digest) in [("rows.jsonl", false), ("rows.parquet", true)] {
        let kept: Arc<Mutex<Kept>> = Arc::default();
        let hub = hub(by_digest, kept.clone());
        let arguments = ["augment", "--data", &pairs, "--infer", "i", "--out", out, "--push-to-hub", "me/personas"];
        let without = program(dir).args(arguments).env("HF_ENDPOINT", &hub.url).output().unwrap();
        assert!(String::from_utf8_lossy(&without.stderr).contains("HF_WRITE_TOKEN"), "{without:?}");
        let pushed =
            program(dir).args(arguments).env("HF_ENDPOINT", &hub.url).env("HF_WRITE_TOKEN", "hf_secret").output();
        let pushed = pushed.unwrap();
        let said = String::from_utf8_lossy(&pushed.stderr).into_owned();
        assert!(
            pushed.status.success() && said.contains("/datasets/me/personas") && !said.contains("secret"),
            "{said}"
        );
        let written = std::fs::read(dir.join(out)).unwrap();
        let kept = kept.lock().unwrap();
        let entry = &kept.entries[1];
        assert_eq!(
            (&kept.entries[0]["key"], &entry["value"]["path"]),
            (&json!("header"), &json!(format!("data/{out}")))
        );
        if by_digest {
            assert_eq!(kept.uploads, std::slice::from_ref(&written));
            assert_eq!((&entry["key"], &entry["value"]["size"]), (&json!("lfsFile"), &json!(written.len())));
            assert_eq!(&written[..4], b"PAR1");
        } else {
            assert_eq!((&entry["key"], &entry["value"]["encoding"]), (&json!("file"), &json!("base64")));
            assert!(kept.uploads.is_empty());
        }
    }
    let error = fails(dir, &["augment", "--data", &pairs, "--infer", "i", "--out", "x", "--push-to-hub", "a/b/c"]);
    assert!(error.contains("owner/name"), "{error}");
}
