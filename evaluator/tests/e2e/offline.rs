//! Commands that call no model, on real rows where this machine has them, and what they say about wrong input.

use bespoke_testkit::shared_dir;
use serde_json::json;

use crate::support::{fails, succeeds, write_pairs};

/// The shared data, or a note that the test is skipped.
fn data() -> Option<std::path::PathBuf> {
    let data = shared_dir().map(|shared| shared.join("data")).filter(|data| data.is_dir());
    if data.is_none() {
        eprintln!("skipped: no shared data on this machine");
    }
    data
}

#[test]
fn recorded_verdicts_are_counted_again() {
    let dir = tempfile::tempdir().unwrap();
    let pair =
        |id: &str, human: &str| json!({"id": id, "prompt": "p", "response_a": "a", "response_b": "b", "human": human});
    let verdict = |id: &str, ab: &str, ba: &str| json!({"id": id, "judge": "j", "winner_ab": ab, "winner_ba": ba});
    let lines = |rows: &[serde_json::Value]| rows.iter().map(|row| row.to_string() + "\n").collect::<String>();
    std::fs::write(dir.path().join("pairs.jsonl"), lines(&[pair("s-1", "A"), pair("s-2", "B"), pair("s-3", "A")]))
        .unwrap();
    let verdicts =
        [verdict("s-1", "A", "A"), verdict("s-2", "A", "B"), verdict("s-3", "A", "A"), verdict("t-1", "A", "A")];
    std::fs::write(dir.path().join("verdicts.jsonl"), lines(&verdicts)).unwrap();
    let said =
        succeeds(dir.path(), &["agreement", "--data", "pairs.jsonl", "--recorded", "verdicts.jsonl", "--out", "r"]);
    assert!(said.contains("j s: n 3, accuracy 83.3 %") && said.contains("orders agree 66.7 %"), "{said}");
}

#[test]
fn recorded_verdicts_of_llmbar() {
    let Some(data) = data() else { return };
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| data.join("judge").join(name).display().to_string();
    let said = succeeds(
        dir.path(),
        &[
            "agreement",
            "--data",
            &file("llmbar-natural.jsonl"),
            "--also",
            &file("llmbar-adv-neighbor.jsonl"),
            "--also",
            &file("llmbar-mt-bench.jsonl"),
            "--recorded",
            &file("llmbar-recorded-verdicts.jsonl"),
        ],
    );
    assert!(said.contains("GPT-4/Vanilla_NoRules natural: n 56"), "{said}");
}

#[test]
fn retrieval_on_real_rows() {
    let Some(data) = data() else { return };
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| data.join("persona-tailoring/BeaverTails").join(name).display().to_string();
    let said = succeeds(
        dir.path(),
        &[
            "retrieve",
            "--method",
            "tf-idf",
            "--data",
            &file("test.jsonl"),
            "--train",
            &file("sft_train.jsonl"),
            "--train",
            &file("dpo_train.jsonl"),
            "--out",
            "out.jsonl",
        ],
    );
    assert!(said.contains("499 rows"), "{said}");
    let rows = std::fs::read_to_string(dir.path().join("out.jsonl")).unwrap();
    assert!(rows.lines().all(|row| !row.contains("\"chosen_persona_retr\":\"\"")));
}

#[test]
fn errors_name_file_line_and_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::write(dir.join("bad.jsonl"), "{\"prompt\": \"p\"}\n{\"prompt\": 3}\n").unwrap();
    let error = fails(dir, &["infer", "--data", "bad.jsonl", "--out", "x"]);
    assert!(error.contains("bad.jsonl:2"), "{error}");
    let pairs = write_pairs(dir, 2);
    let error = fails(dir, &["infer", "--data", &pairs, "--out", "x", "--base-url", "http://127.0.0.1:9"]);
    assert!(error.contains("no engine answers") && error.contains("bespoke-engine serve"), "{error}");
    let error = fails(dir, &["generate", "--data", &pairs, "--model-type", "sft", "--inference-type", "retr-chosen"]);
    assert!(error.contains("`chosen_persona_retr` is empty") && error.contains("retrieve"), "{error}");
    let error = fails(dir, &["judge", "--a", "absent", "--b", "absent"]);
    assert!(error.contains("absent has no run"), "{error}");
    let error = fails(dir, &["report", "--runs", "."]);
    assert!(error.contains("no run folders"), "{error}");
    let error = fails(dir, &["infer", "--data", &pairs, "--partition", "3/2"]);
    assert!(error.contains("1/2, 3/4 or 8/8"), "{error}");
    std::fs::write(dir.join("p.toml"), "out = 'x'\n[[stage]]\nname = 'a'\ncommand = 'infer'\nserver = 's'\n").unwrap();
    assert!(fails(dir, &["pipeline", "p.toml"]).contains("there is no server `s`"));
}
