//! The whole way on a real engine with a tiny model: from pairs to a report.

use serde_json::json;

use crate::support::{RunningEngine, fails, read_json, rows, succeeds, write_pairs};

#[test]
fn from_pairs_to_a_report() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let engine = RunningEngine::start();
    let pairs = write_pairs(dir, 6);
    let url = engine.url.as_str();
    let model = ["--base-url", url, "--max-new-tokens", "12"];
    let stage = |arguments: &[&str]| succeeds(dir, &[arguments, &model].concat());

    stage(&["infer", "--data", &pairs, "--limit", "4", "--out", "i"]);
    let inferred = rows(dir, "i");
    let keys: Vec<&str> = inferred.iter().map(|row| row["key"].as_str().unwrap()).collect();
    assert_eq!(
        keys,
        ["0/chosen", "0/rejected", "1/chosen", "1/rejected", "2/chosen", "2/rejected", "3/chosen", "3/rejected"]
    );
    assert!(inferred.iter().all(|row| row["persona"].as_str().unwrap().starts_with("The user")));

    succeeds(dir, &["augment", "--data", &pairs, "--infer", "i", "--out", "augmented.jsonl"]);
    let augmented = std::fs::read_to_string(dir.join("augmented.jsonl")).unwrap();
    let first: serde_json::Value = serde_json::from_str(augmented.lines().next().unwrap()).unwrap();
    assert_eq!((augmented.lines().count(), &first["chosen_persona_gold"]), (4, &inferred[0]["persona"]));

    let retrieve =
        ["retrieve", "--data", &pairs, "--train", "augmented.jsonl", "--out", "retrieved.jsonl", "--base-url", url];
    assert!(succeeds(dir, &retrieve).contains("6 rows in retrieved.jsonl"));
    let retrieved = std::fs::read_to_string(dir.join("retrieved.jsonl")).unwrap();
    let first: serde_json::Value = serde_json::from_str(retrieved.lines().next().unwrap()).unwrap();
    assert_eq!(first["chosen_persona_retr"], inferred[0]["persona"], "a row is most like itself");

    succeeds(dir, &["saliency", "--infer", "i", "--cutoff", "1"]);
    answers_are_generated(dir, &stage, &pairs);

    for verdict in ["logprob", "short", "feedback"] {
        stage(&["judge", "--a", "g/with", "--b", "g/without", "--verdict", verdict, "--out", verdict]);
        assert_eq!(rows(dir, verdict).len(), 2 * 2 * 4);
    }
    verdicts_are_counted(dir);
    stage(&["judge", "--a", "g/with", "--verdict", "short", "--out", "absolute"]);
    stage(&["accuracy", "--infer", "i", "--verdict", "logprob", "--out", "accuracy"]);
    stage(&["prefs", "--infer", "i", "--verdict", "logprob", "--out", "prefs"]);

    succeeds(dir, &["report", "--runs", ".", "--out", "report.html"]);
    let page = std::fs::read_to_string(dir.join("report.html")).unwrap();
    for part in ["g&#x2f;with", "How do I do thing 3?", "<svg", "Accuracy of inferred personas", "Win rates"] {
        assert!(page.contains(part), "{part}");
    }
    assert!(!page.contains("src=") && !page.contains("@import"), "the page needs nothing else");
    for file in [
        "win-rates.svg",
        "win-rates.pdf",
        "win-rates.png",
        "win-rates.csv",
        "accuracy.svg",
        "preferences.pdf",
        "report.json",
    ] {
        assert!(dir.join("report").join(file).is_file(), "{file}");
    }
}

#[test]
fn without_the_prefix_cache_nothing_is_shared_and_the_answers_are_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let engine = RunningEngine::start();
    let pairs = write_pairs(dir, 3);
    let infer = |out: &str, more: &[&str]| {
        let model = ["infer", "--data", &pairs, "--base-url", &engine.url, "--max-new-tokens", "12", "--out", out];
        succeeds(dir, &[&model, more].concat());
        let answers = rows(dir, out).into_iter().map(|row| row["persona"].clone());
        (answers.collect::<Vec<_>>(), engine.engine.totals().cached_tokens)
    };
    let (uncached, num_cached) = infer("uncached", &["--no-prefix-cache"]);
    assert_eq!(num_cached, 0);
    let (cached, num_cached) = infer("cached", &[]);
    assert_eq!(cached, uncached);
    assert!(num_cached > 0, "the prompts begin alike");
    let error = fails(dir, &["infer", "--data", &pairs, "--provider", "openai", "--model", "m", "--no-prefix-cache"]);
    assert!(error.contains("--no-prefix-cache") && error.contains("--provider engine"), "{error}");
}

#[track_caller]
fn answers_are_generated(dir: &std::path::Path, stage: &dyn Fn(&[&str]) -> String, pairs: &str) {
    for (out, inference) in [("g/with", "gold-chosen"), ("g/without", "none")] {
        stage(&[
            "generate",
            "--data",
            "augmented.jsonl",
            "--model-type",
            "sft",
            "--inference-type",
            inference,
            "--out",
            out,
        ]);
    }
    let answers = rows(dir, "g/with");
    assert!(answers.iter().all(|row| row["completion_tokens"].as_u64() >= Some(10)), "{answers:?}");
    stage(&[
        "generate",
        "--data",
        pairs,
        "--dataset",
        "BeaverTails",
        "--model-type",
        "fewshot",
        "--fewshot",
        pairs,
        "--inference-type",
        "system",
        "--out",
        "g/few",
    ]);
}

#[track_caller]
fn verdicts_are_counted(dir: &std::path::Path) {
    let table = succeeds(dir, &["win-rate", "--judge", "logprob", "--judge", "short"]);
    assert!(table.contains("quality:") && table.contains("personalization:") && table.contains("Delta-PQ"), "{table}");
    succeeds(dir, &["win-rate", "--judge", "logprob", "--decide", "mean", "--out", "mean.json"]);
    let by_mean = read_json(dir.join("mean.json"));
    assert_eq!(by_mean["decided_by"], "mean");
    assert_eq!(by_mean["judges"][0]["rubrics"]["quality"]["counts"]["unparsable"], 0);
    let error = fails(dir, &["win-rate", "--judge", "short", "--decide", "mean"]);
    assert!(error.contains("--decide mean") && error.contains("--verdict logprob"), "{error}");
    let summary = read_json(dir.join("logprob/summary.json"));
    let counts = &summary["judges"][0]["rubrics"]["quality"]["counts"];
    let judged: u64 = ["wins", "ties", "losses", "unparsable"].iter().map(|name| counts[name].as_u64().unwrap()).sum();
    assert_eq!((judged, &counts["unparsable"]), (4, &json!(0)), "a verdict from log-probabilities is always there");
    // A tiny random model writes no verdicts: they are counted apart and no side gets them.
    assert_eq!(summary["judges"][1]["rubrics"]["quality"]["counts"]["unparsable"], json!(4));
}

#[test]
fn a_finished_run_is_kept_extended_and_guarded() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let engine = RunningEngine::start();
    let pairs = write_pairs(dir, 5);
    let base = ["infer", "--data", &pairs, "--out", "i", "--base-url", &engine.url, "--max-new-tokens", "8"];
    let with = |more: &[&'static str]| base.iter().copied().chain(more.iter().copied()).collect::<Vec<&str>>();
    succeeds(dir, &with(&["--limit", "2"]));
    let first = std::fs::read_to_string(dir.join("i/rows.jsonl")).unwrap();
    succeeds(dir, &with(&["--limit", "2"]));
    assert_eq!(std::fs::read_to_string(dir.join("i/rows.jsonl")).unwrap(), first);
    succeeds(dir, &with(&["--limit", "4"]));
    let extended = std::fs::read_to_string(dir.join("i/rows.jsonl")).unwrap();
    assert!(extended.starts_with(&first) && extended.lines().count() == 8);
    let error = fails(dir, &with(&["--seed", "1"]));
    assert!(error.contains("other seed") && error.contains("--force"), "{error}");
    succeeds(dir, &with(&["--seed", "1", "--limit", "1", "--force"]));
    assert_eq!(rows(dir, "i").len(), 2);
    let manifest = read_json(dir.join("i/manifest.json"));
    assert_eq!((&manifest["complete"], &manifest["identity"]["seed"]), (&json!(true), &json!(1)));
    assert!(
        manifest["identity"]["model"]["model_digest"].is_string()
            && manifest["usage"]["prompt_tokens"].as_u64() > Some(0)
    );
}

#[test]
fn the_doctor_finds_the_engine_or_says_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let engine = RunningEngine::start();
    let said = succeeds(dir.path(), &["doctor", "--engine", &engine.url]);
    assert!(said.contains("answers in") && said.contains("openai: not asked"), "{said}");
    let output = crate::support::run(dir.path(), &["doctor", "--engine", "http://127.0.0.1:9", "--openai-model", "m"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        !output.status.success() && said.contains("engine: no answer") && said.contains("OPENAI_API_KEY"),
        "{said}"
    );
}
