//! Kill -9 at random points: the final files are those of an undisturbed run.

use std::{path::Path, time::Duration};

use crate::{
    fake_service::{FakeService, Reply, openai},
    support::{program, succeeds, write_pairs},
};

const NUM_ROWS: usize = 40;
const NUM_KILLS: usize = 10;

fn service() -> FakeService {
    FakeService::start(|_, received| {
        let number: u64 = received.prompt().bytes().map(u64::from).sum();
        // Answers come out of order.
        let delay = Duration::from_millis(20 + number % 60);
        Reply { delay, ..Reply::json(&openai(&format!("The user is number {number}."))) }
    })
}

#[test]
fn a_run_that_is_killed_ten_times_ends_as_if_it_were_not() {
    let dir = tempfile::tempdir().unwrap();
    let pairs = write_pairs(dir.path(), NUM_ROWS);
    let service = service();
    let arguments = |out: &'static str| -> Vec<String> {
        let words = [
            "infer",
            "--data",
            &pairs,
            "--out",
            out,
            "--provider",
            "openai",
            "--model",
            "m",
            "--concurrency",
            "4",
            "--base-url",
            &service.url,
        ];
        words.iter().map(|&word| word.to_owned()).collect()
    };
    let whole = arguments("whole");
    succeeds(dir.path(), &whole.iter().map(String::as_str).collect::<Vec<_>>());
    let mut random = fastrand::Rng::with_seed(5);
    let mut num_cut_short = 0;
    for _ in 0..NUM_KILLS {
        let mut child = program(dir.path()).args(arguments("killed")).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(random.u64(20..200)));
        // On Unix this is SIGKILL.
        child.kill().unwrap();
        num_cut_short += usize::from(!child.wait().unwrap().success());
    }
    assert!(num_cut_short >= 5, "most of the kills must come before the end, not {num_cut_short}");
    let killed = arguments("killed");
    succeeds(dir.path(), &killed.iter().map(String::as_str).collect::<Vec<_>>());
    let read = |run: &str, file: &str| std::fs::read_to_string(dir.path().join(run).join(file)).unwrap();
    for file in ["rows.jsonl", "summary.json"] {
        assert_eq!(read("killed", file), read("whole", file), "{file}");
    }
    no_leftovers(&dir.path().join("killed"));
}

#[track_caller]
fn no_leftovers(run: &Path) {
    let mut names: Vec<String> =
        std::fs::read_dir(run).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    // A kill while a manifest is written leaves its part file, which nothing reads.
    names.retain(|name| !name.starts_with(".tmp"));
    names.sort();
    assert_eq!(names, [".lock", "manifest.json", "rows.jsonl", "summary.json"]);
}
