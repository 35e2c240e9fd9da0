//! What the end-to-end tests share: the program, an engine in this process, small data files.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use bespoke_engine::{Embedder, Engine};
use bespoke_server::{Config, Server};
use bespoke_testkit::{TinyEncoder, TinyModel, TinyModelDir};
use serde_json::{Value, json};

/// The program under test, without keys of this machine.
pub(crate) fn program(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bespoke-evaluator"));
    let keys = [
        "OPEN_AI_TOKEN",
        "OPENAI_API_KEY",
        "ANTHROPIC_TOKEN",
        "ANTHROPIC_API_KEY",
        "COHERE_TOKEN",
        "COHERE_API_KEY",
        "CO_API_KEY",
        "HF_READ_TOKEN",
        "HF_WRITE_TOKEN",
        "HF_TOKEN",
        "BESPOKE_ENGINE",
    ];
    keys.iter().for_each(|key| {
        command.env_remove(key);
    });
    command.current_dir(dir).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs the program to its end.
pub(crate) fn run(dir: &Path, arguments: &[&str]) -> Output {
    program(dir).args(arguments).output().unwrap()
}

/// Runs the program and returns what it prints; it must succeed.
#[track_caller]
pub(crate) fn succeeds(dir: &Path, arguments: &[&str]) -> String {
    let output = run(dir, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs the program and returns its error; it must fail.
#[track_caller]
pub(crate) fn fails(dir: &Path, arguments: &[&str]) -> String {
    let output = run(dir, arguments);
    assert!(!output.status.success(), "{arguments:?} succeeds: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).unwrap()
}

/// Writes a data file of preference pairs with personas and returns its name.
pub(crate) fn write_pairs(dir: &Path, num_rows: usize) -> String {
    let rows = (0..num_rows).map(|number| {
        json!({"prompt": format!("How do I do thing {number}?"), "chosen": format!("First take {number} steps, then rest."),
            "rejected": format!("No idea about {number}."), "chosen_persona_gold": "The user is thorough and prefers steps.",
            "rejected_persona_gold": "The user is terse.", "chosen_persona_retr": "", "rejected_persona_retr": ""})
        .to_string()
    });
    std::fs::write(dir.join("pairs.jsonl"), rows.collect::<Vec<_>>().join("\n") + "\n").unwrap();
    "pairs.jsonl".to_owned()
}

/// Reads the rows of a run folder.
pub(crate) fn rows(dir: &Path, run: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(dir.join(run).join("rows.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Reads a JSON file.
pub(crate) fn read_json(path: PathBuf) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// An engine in this process; it serves until the test ends.
pub(crate) struct RunningEngine {
    pub(crate) url: String,
    pub(crate) engine: Engine,
    _runtime: tokio::runtime::Runtime,
    _model: TinyModelDir,
}

impl RunningEngine {
    pub(crate) fn start() -> Self {
        let model = TinyModel { context_length: 4096, ..TinyModel::default() }.write_hf().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let engine = Engine::builder().model(model.path()).num_threads(1).build().unwrap();
        let served = engine.clone();
        let url = runtime.block_on(async {
            let config = Config { listen: "127.0.0.1:0".parse().unwrap(), ..Config::default() };
            let listener = tokio::net::TcpListener::bind(config.listen).await.unwrap();
            let encoder = TinyEncoder::default().write().unwrap();
            let embedder = Embedder::load(encoder.path(), 1, 8).unwrap();
            let server = Server::new(served, config, listener).unwrap().with_embedder(Some(embedder));
            let url = format!("http://{}", server.address());
            tokio::spawn(server.run(std::future::pending()));
            url
        });
        Self { url, engine, _runtime: runtime, _model: model }
    }
}
