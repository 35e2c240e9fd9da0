//! External services by their recorded protocols, with their faults: nothing is lost and nothing is doubled.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    fake_service::{FakeService, Received, Reply, openai},
    support::{fails, program, read_json, rows, run, succeeds, write_pairs},
};

/// How often each prompt has been asked, so that a fault comes once for each.
#[derive(Default)]
struct Times(Mutex<BTreeMap<String, usize>>);

impl Times {
    fn count(&self, received: &Received) -> usize {
        let mut times = self.0.lock().unwrap();
        let count = times.entry(received.prompt().to_owned()).or_default();
        *count += 1;
        *count
    }
}

/// An answer that depends on the prompt alone.
fn persona(received: &Received) -> String {
    format!("The user is number {}.", received.prompt().bytes().map(u64::from).sum::<u64>())
}

fn infer<'a>(pairs: &'a str, provider: &'a str, url: &'a str) -> Vec<&'a str> {
    vec!["infer", "--data", pairs, "--out", "run", "--provider", provider, "--model", "m", "--base-url", url]
}

#[track_caller]
fn assert_whole(dir: &std::path::Path, num_rows: usize) {
    let rows = rows(dir, "run");
    let keys: Vec<&str> = rows.iter().map(|row| row["key"].as_str().unwrap()).collect();
    let wanted: Vec<String> = (0..num_rows).flat_map(|n| [format!("{n}/chosen"), format!("{n}/rejected")]).collect();
    assert_eq!(keys, wanted);
    assert!(rows.iter().all(|row| row["persona"].as_str().unwrap().starts_with("The user is number")));
}

#[test]
fn every_fault_once_for_each_request_of_openai() {
    let dir = tempfile::tempdir().unwrap();
    let pairs = write_pairs(dir.path(), 6);
    let times = Times::default();
    let service = FakeService::start(move |number, received| {
        let answer = openai(&persona(received));
        if times.count(received) > 1 {
            return Reply::json(&answer);
        }
        match number % 6 {
            0 => Reply {
                headers: vec![("retry-after", "0.05".to_owned())],
                ..Reply::status(429, &json!({"error": {"message": "slow down"}}))
            },
            1 => Reply::status(500, &json!({"error": {"message": "oops"}})),
            2 => Reply { body: "{\"choices\": [".to_owned(), ..Reply::json(&answer) },
            3 => Reply { cut: Some(10), ..Reply::json(&answer) },
            4 => Reply::json(&json!({"choices": []})),
            _ => Reply { delay: Duration::from_millis(300), ..Reply::json(&answer) },
        }
    });
    succeeds(dir.path(), &[infer(&pairs, "openai", &service.url), vec!["--concurrency", "12"]].concat());
    assert_whole(dir.path(), 6);
    // Ten of twelve had a fault and were asked twice.
    assert_eq!(service.log().len(), 12 + 10);
    assert!(service.log().iter().all(|received| received.path == "/chat/completions"));
}

#[test]
fn retry_after_is_honoured() {
    let dir = tempfile::tempdir().unwrap();
    let pairs = write_pairs(dir.path(), 1);
    let service = FakeService::start(|number, received| match number {
        0 => Reply { headers: vec![("retry-after", "2".to_owned())], ..Reply::status(429, &json!({})) },
        _ => Reply::json(&openai(&persona(received))),
    });
    let begun = Instant::now();
    succeeds(dir.path(), &[infer(&pairs, "openai", &service.url), vec!["--direction", "chosen"]].concat());
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[test]
fn a_slow_body_is_given_up_and_asked_for_again() {
    let dir = tempfile::tempdir().unwrap();
    let pairs = write_pairs(dir.path(), 1);
    let service = FakeService::start(|number, received| Reply {
        delay: if number == 0 { Duration::from_secs(20) } else { Duration::ZERO },
        ..Reply::json(&openai(&persona(received)))
    });
    let begun = Instant::now();
    succeeds(
        dir.path(),
        &[infer(&pairs, "openai", &service.url), vec!["--timeout-s", "0.5", "--concurrency", "1"]].concat(),
    );
    assert_whole(dir.path(), 1);
    assert!(begun.elapsed() < Duration::from_secs(15));
}

#[test]
fn anthropic_and_cohere_speak_their_own_protocols() {
    for (provider, key, path, header) in [
        ("anthropic", "ANTHROPIC_TOKEN", "/v1/messages", "x-api-key: secret-key"),
        ("cohere", "COHERE_TOKEN", "/v2/chat", "authorization: bearer secret-key"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let pairs = write_pairs(dir.path(), 3);
        let service = FakeService::start(move |number, received| {
            let text = persona(received);
            if number == 0 {
                return Reply::status(
                    if provider == "anthropic" { 529 } else { 503 },
                    &json!({"message": "overloaded"}),
                );
            }
            Reply::json(&if provider == "anthropic" {
                json!({"content": [{"type": "text", "text": text}], "stop_reason": "end_turn",
                    "usage": {"input_tokens": 50, "output_tokens": 7}})
            } else {
                json!({"finish_reason": "COMPLETE", "message": {"role": "assistant", "content": [{"type": "text", "text": text}]},
                    "usage": {"tokens": {"input_tokens": 50.0, "output_tokens": 7.0}}})
            })
        });
        let output =
            program(dir.path()).args(infer(&pairs, provider, &service.url)).env(key, "secret-key").output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{error}");
        assert!(!error.contains("secret-key"));
        assert_whole(dir.path(), 3);
        let log = service.log();
        assert_eq!(log.len(), 7);
        assert!(log.iter().all(|received| received.path == path));
        assert!(
            log.iter().all(|received| received.headers.iter().any(|have| have.to_lowercase() == header)),
            "{log:?}"
        );
        assert_eq!(read_json(dir.path().join("run/manifest.json"))["usage"]["prompt_tokens"], json!(300));
    }
}

#[test]
fn refusals_are_rows_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let pairs = write_pairs(dir.path(), 3);
    let service = FakeService::start(|_, received| match received.prompt().contains("thing 1?") {
        true => Reply::status(400, &json!({"error": {"message": "against the policy"}})),
        false => Reply::json(&openai(&persona(received))),
    });
    let output = run(dir.path(), &infer(&pairs, "openai", &service.url));
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("2 rows were refused"));
    let rows = rows(dir.path(), "run");
    let refused: Vec<&Value> = rows.iter().filter(|row| row["finish"] == "refused").collect();
    assert_eq!((rows.len(), refused.len()), (6, 2));
    assert!(
        refused
            .iter()
            .all(|row| row["persona"] == "" && row["refusal"].as_str().unwrap().contains("against the policy"))
    );
}

#[test]
fn refusals_of_all_first_requests_leave_no_rows() {
    static IS_MENDED: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
    let dir = tempfile::tempdir().unwrap();
    let pairs = write_pairs(dir.path(), 5);
    let service = FakeService::start(|_, received| match IS_MENDED.load(Ordering::SeqCst) {
        false => Reply::status(400, &json!({"error": {"message": "no such model"}})),
        true => Reply::json(&openai(&persona(received))),
    });
    let error = fails(dir.path(), &infer(&pairs, "openai", &service.url));
    assert!(error.contains("every request so far is refused") && error.contains("no such model"), "{error}");
    assert!(rows(dir.path(), "run").is_empty());
    IS_MENDED.store(true, Ordering::SeqCst);
    succeeds(dir.path(), &infer(&pairs, "openai", &service.url));
    assert_whole(dir.path(), 5);
    // Another direction is another run, and is told so at once.
    let error = fails(dir.path(), &[infer(&pairs, "openai", &service.url), vec!["--direction", "chosen"]].concat());
    assert!(error.contains("other direction"), "{error}");
}

#[test]
fn few_requests_that_are_all_refused_are_rows() {
    let dir = tempfile::tempdir().unwrap();
    let pairs = write_pairs(dir.path(), 2);
    let service = FakeService::start(|_, _| Reply::status(400, &json!({"error": {"message": "against the policy"}})));
    let output = run(dir.path(), &infer(&pairs, "openai", &service.url));
    assert!(output.status.success() && rows(dir.path(), "run").len() == 4);
}

#[test]
fn what_will_not_pass_stops_the_run_and_keeps_what_came() {
    let dir = tempfile::tempdir().unwrap();
    let pairs = write_pairs(dir.path(), 4);
    static NUM_GOOD: AtomicUsize = AtomicUsize::new(0);
    let service = FakeService::start(|_, received| match NUM_GOOD.fetch_add(1, Ordering::SeqCst) {
        0..=2 => Reply::json(&openai(&persona(received))),
        3 => Reply::status(401, &json!({"error": {"message": "bad key"}})),
        _ => Reply::json(&openai(&persona(received))),
    });
    let arguments = [infer(&pairs, "openai", &service.url), vec!["--concurrency", "1"]].concat();
    let error = fails(dir.path(), &arguments);
    assert!(error.contains("bad key") && error.contains("check the key"), "{error}");
    assert_eq!(rows(dir.path(), "run").len(), 3);
    succeeds(dir.path(), &arguments);
    assert_whole(dir.path(), 4);
    assert_eq!(service.log().len(), 3 + 1 + 5);
    let error = fails(dir.path(), &["infer", "--data", &pairs, "--provider", "anthropic", "--model", "m"]);
    assert!(error.contains("ANTHROPIC_TOKEN or ANTHROPIC_API_KEY") && error.contains(".env"), "{error}");
}

#[test]
fn the_budget_stops_the_run_and_a_larger_one_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let pairs = write_pairs(dir.path(), 4);
    let service = FakeService::start(|_, received| Reply::json(&openai(&persona(received))));
    // Each call has 100 + 10 tokens: 0.11 dollars at 1000 dollars a million.
    let priced = |budget: &'static str| {
        let prices = vec!["--price-input", "1000", "--price-output", "1000", "--concurrency", "1", "--budget", budget];
        [infer(&pairs, "openai", &service.url), prices].concat()
    };
    let error = fails(dir.path(), &priced("0.9"));
    assert!(error.contains("the budget is used up"), "{error}");
    let came = rows(dir.path(), "run").len();
    assert!((1..8).contains(&came), "{came}");
    succeeds(dir.path(), &priced("20"));
    assert_whole(dir.path(), 4);
    assert_eq!(service.log().len(), 8);
    let cost = read_json(dir.path().join("run/manifest.json"))["usage"]["cost_usd"].as_f64().unwrap();
    assert!((cost - 0.88).abs() < 1e-9, "{cost}");
    assert!(
        fails(dir.path(), &[infer(&pairs, "openai", &service.url), vec!["--budget", "1"]].concat())
            .contains("--price-input")
    );
}

#[test]
fn equal_requests_are_sent_once_and_a_dry_run_sends_none() {
    let dir = tempfile::tempdir().unwrap();
    let row = json!({"prompt": "p", "chosen": "c", "rejected": "r"}).to_string() + "\n";
    std::fs::write(dir.path().join("same.jsonl"), row.repeat(5)).unwrap();
    let service = FakeService::start(|_, received| Reply::json(&openai(&persona(received))));
    let arguments = [infer("same.jsonl", "openai", &service.url), vec!["--dataset", "SHP"]].concat();
    let said = succeeds(dir.path(), &[arguments.clone(), vec!["--dry-run", "--price-input", "1"]].concat());
    assert!(said.contains("rows: 10, distinct requests: 2") && said.contains("cost:"), "{said}");
    assert!(service.log().is_empty() && !dir.path().join("run").exists());
    succeeds(dir.path(), &arguments);
    assert_eq!((service.log().len(), rows(dir.path(), "run").len()), (2, 10));
}
