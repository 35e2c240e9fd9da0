//! A pipeline as a process, with an engine that it starts and stops itself.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use bespoke_testkit::TinyModel;

use crate::support::{fails, program, rows, run, write_pairs};

/// The engine's program, which stands beside the program under test where the workspace was built.
fn engine() -> Option<PathBuf> {
    let engine = Path::new(env!("CARGO_BIN_EXE_bespoke-evaluator")).with_file_name("bespoke-engine");
    if !engine.is_file() {
        eprintln!("skipped: bespoke-engine is not built");
        return None;
    }
    Some(engine)
}

fn write_config(dir: &Path, engine: &Path, model: &Path) {
    let pairs = write_pairs(dir, 12);
    let generate = |name: &str, inference: &str| {
        format!(
            "[[stage]]\nname = '{name}'\ncommand = 'generate'\nserver = 'tiny'\n[stage.options]\ndata = '{pairs}'\n\
             model-type = 'sft'\ninference-type = '{inference}'\nmax-new-tokens = 16\nconcurrency = 2\n"
        )
    };
    let config = format!(
        "out = 'runs'\nengine = '{}'\n[[server]]\nname = 'tiny'\nmodel = '{}'\noptions = ['--num-threads', '1']\n{}{}\
         [[stage]]\nname = 'judge'\ncommand = 'judge'\nserver = 'tiny'\n[stage.options]\na = '@with'\nb = '@without'\n\
         verdict = 'logprob'\n\
         [[stage]]\nname = 'count'\ncommand = 'win-rate'\n[stage.options]\njudge = ['@judge']\n\
         [[stage]]\nname = 'report'\ncommand = 'report'\n[stage.options]\nruns = 'runs'\nout = 'report.html'\n",
        engine.display(),
        model.display(),
        generate("with", "gold-chosen"),
        generate("without", "none"),
    );
    std::fs::write(dir.join("p.toml"), config).unwrap();
}

#[track_caller]
fn is_gone(process_id: u32) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while Path::new(&format!("/proc/{process_id}")).exists() {
        assert!(Instant::now() < deadline, "engine {process_id} still runs");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn one_command_runs_all_and_a_killed_one_goes_on() {
    let Some(engine) = engine() else { return };
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let model = TinyModel { context_length: 4096, ..TinyModel::default() }.write_hf().unwrap();
    write_config(dir, &engine, model.path());
    // Killed as soon as its engine answers: the engine is left behind, and the next session uses and stops it.
    let mut child = program(dir).args(["pipeline", "p.toml"]).spawn().unwrap();
    let address = dir.join("runs/servers/tiny.address");
    let deadline = Instant::now() + Duration::from_secs(30);
    while !address.is_file() {
        assert!(Instant::now() < deadline, "the engine does not start");
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let noted = std::fs::read_to_string(dir.join("runs/servers/tiny.pid")).unwrap();
    let process_id: u32 = noted.split(' ').next().unwrap().parse().unwrap();
    let output = run(dir, &["pipeline", "p.toml"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    is_gone(process_id);
    assert_eq!(rows(dir, "runs/judge").len(), 2 * 2 * 12);
    assert!(dir.join("report.html").is_file() && !address.exists());
    // A second run has nothing to do and starts no engine.
    let output = run(dir, &["pipeline", "p.toml"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success()
            && said.contains("judge is done")
            && said.contains("count is done")
            && !said.contains("server tiny"),
        "{said}"
    );
}

#[test]
fn a_second_session_of_a_pipeline_is_kept_out() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_config(dir, Path::new("absent"), Path::new("absent"));
    std::fs::create_dir(dir.join("runs")).unwrap();
    let lock = std::fs::File::create(dir.join("runs/.lock")).unwrap();
    lock.lock().unwrap();
    let error = fails(dir, &["pipeline", "p.toml"]);
    assert!(error.contains("runs is in use by another pipeline"), "{error}");
    drop(lock);
    // Now it gets as far as its engine, which is not there, and leaves nothing that looks like one.
    let error = fails(dir, &["pipeline", "p.toml"]);
    assert!(error.contains("cannot start absent") && error.contains("server `tiny`"), "{error}");
    assert!(!dir.join("runs/servers/tiny.address").exists() && !dir.join("runs/servers/tiny.pid").exists());
}

#[test]
fn what_a_dead_engine_left_behind_is_replaced() {
    let Some(engine) = engine() else { return };
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let model = TinyModel { context_length: 4096, ..TinyModel::default() }.write_hf().unwrap();
    write_config(dir, &engine, model.path());
    // Nobody listens there, and the process is this test, which must outlive it.
    let servers = dir.join("runs/servers");
    std::fs::create_dir_all(&servers).unwrap();
    std::fs::write(servers.join("tiny.address"), "127.0.0.1:1").unwrap();
    std::fs::write(servers.join("tiny.pid"), format!("{} {} ", std::process::id(), model.path().display())).unwrap();
    let output = run(dir, &["pipeline", "p.toml"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!servers.join("tiny.address").exists() && !servers.join("tiny.pid").exists());
}
