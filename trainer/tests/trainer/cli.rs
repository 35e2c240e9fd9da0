//! The command line as a process: training, signals, resuming, merging, errors.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use bespoke_testkit::{TinyModel, TinyModelDir};
use serde_json::Value;

/// Longest time that a test waits for a process to get somewhere.
const PATIENCE: Duration = Duration::from_secs(60);

struct Bench {
    model: TinyModelDir,
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        let bench = Bench { model: TinyModel::default().write_hf().unwrap(), folder: tempfile::tempdir().unwrap() };
        for (name, num) in [("train.jsonl", 24), ("val.jsonl", 6)] {
            let rows = (0..num).map(|i| {
                serde_json::json!({
                    "prompt": format!("What is {i} plus {}?", i * 7 % 5),
                    "chosen": format!("It is {}, as you can count on your fingers.", i + i * 7 % 5),
                    "rejected": format!("{}", i + 1),
                    "chosen_persona_gold": "The user likes a reason.",
                    "rejected_persona_gold": "The user is terse."
                })
            });
            let text: Vec<String> = rows.map(|row| row.to_string()).collect();
            std::fs::write(bench.path(name), text.join("\n")).unwrap();
        }
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, method: &str, output: &str, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bespoke-trainer"));
        command.arg(method).arg("--model").arg(self.model.path());
        command.arg("--train").arg(self.path("train.jsonl")).arg("--validation").arg(self.path("val.jsonl"));
        command.arg("--output").arg(self.path(output)).args(["--threads", "2", "--learning-rate", "0.005"]);
        command.args(more).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, method: &str, output: &str, more: &[&str]) -> Output {
        self.command(method, output, more).output().unwrap()
    }

    fn adapter(&self, output: &str) -> Vec<u8> {
        std::fs::read(self.path(output).join("adapter/adapter_model.safetensors")).unwrap()
    }

    fn json(&self, file: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.path(file)).unwrap()).unwrap()
    }

    fn records(&self, output: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path(output).join("metrics.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn assert_success(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn losses(records: &[Value], kind: &str) -> Vec<f64> {
    records.iter().filter(|r| r["kind"] == kind).map(|r| r["loss"].as_f64().unwrap()).collect()
}

#[test]
fn sft_and_dpo_leave_all_that_they_should() {
    let bench = Bench::new();
    assert_success(&bench.run("sft", "sft", &["--epochs", "2", "--batch-size", "4", "--loss", "completion"]));
    let eval = losses(&bench.records("sft"), "eval");
    assert!(eval.len() == 2 && eval[1] < eval[0], "{eval:?}");
    for name in ["recipe.toml", "plot.svg", "merged/config.json", "merged/tokenizer.json", "merged/model.safetensors"] {
        assert!(bench.path("sft").join(name).exists(), "{name}");
    }
    let manifest = bench.json("sft/manifest.json");
    assert_eq!((&manifest["method"], &manifest["result"]["steps"]), (&"sft".into(), &12.into()));
    assert_eq!(manifest["data"][0]["sha256"].as_str().unwrap().len(), 64);
    let isa = bespoke_kernels::Kernels::new(1).unwrap().isa().to_string();
    assert!(manifest["isa"].as_str().is_some_and(|found| found.starts_with(&isa)), "{}", manifest["isa"]);

    assert_success(&bench.run("dpo", "dpo", &["--epochs", "3", "--batch-size", "4", "--beta", "0.5"]));
    let eval = losses(&bench.records("dpo"), "eval");
    assert!(eval.len() == 3 && eval[2] < 2_f64.ln(), "{eval:?}");
    let records = bench.records("dpo");
    let last = records.iter().rfind(|record| record["kind"] == "eval").unwrap();
    assert!(last["preference"]["accuracy"].as_f64().unwrap() > 0.6, "{last}");
    assert!(bench.path("dpo/reference-train.safetensors").exists());
}

/// Waits until the run has written so many lines of metrics.
fn wait_for_steps(child: &mut Child, metrics: &Path, num: usize) {
    let start = Instant::now();
    while std::fs::read_to_string(metrics).map_or(0, |text| text.lines().count()) < num {
        assert!(child.try_wait().unwrap().is_none(), "the run ended early");
        assert!(start.elapsed() < PATIENCE, "no {num} steps");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn an_interrupted_run_goes_on_bit_for_bit() {
    let bench = Bench::new();
    for method in ["sft", "dpo"] {
        let (whole, parts) = (format!("{method}-whole"), format!("{method}-parts"));
        let more = ["--epochs", "12", "--batch-size", "2", "--set", "lora.dropout=0.2", "--no-merge"];
        assert_success(&bench.run(method, &whole, &more));
        let mut num_stops = 0;
        let mut resume = false;
        loop {
            let mut command = bench.command(method, &parts, &more);
            if resume {
                command.arg("--resume");
            }
            let mut child = command.spawn().unwrap();
            if num_stops < 2 {
                wait_for_steps(&mut child, &bench.path(&parts).join("metrics.jsonl"), 20 + 45 * num_stops);
                let pid = i32::try_from(child.id()).unwrap();
                Command::new("kill").args(["-INT", &pid.to_string()]).status().unwrap();
            }
            let output = child.wait_with_output().unwrap();
            if output.status.success() {
                break;
            }
            assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
            num_stops += 1;
            resume = true;
        }
        assert!(num_stops > 0, "the run was never interrupted");
        assert!(bench.adapter(&whole) == bench.adapter(&parts), "{method}: the adapters differ");
        let (a, b) = (bench.records(&whole), bench.records(&parts));
        assert_eq!(losses(&a, "train"), losses(&b, "train"), "{method}");
    }
}

#[test]
fn a_run_that_goes_on_with_another_instruction_set_warns() {
    let bench = Bench::new();
    let settings = ["--steps-max", "2", "--no-merge"];
    assert_success(&bench.run("sft", "sft", &settings));
    let resume = || {
        let output = bench.command("sft", "sft", &settings).arg("--resume").output().unwrap();
        assert_success(&output);
        String::from_utf8_lossy(&output.stderr).contains("another instruction set")
    };
    assert!(!resume());
    let path = bench.path("sft").join("manifest.json");
    let mut manifest = bench.json("sft/manifest.json");
    manifest["isa"] = "vax".into();
    std::fs::write(path, manifest.to_string()).unwrap();
    assert!(resume());
    // It says so once, and both stay.
    assert!(!resume());
    let isa = bench.json("sft/manifest.json")["isa"].as_str().unwrap().to_owned();
    assert!(isa.starts_with("vax, then "), "{isa}");
}

#[test]
fn an_adapter_is_merged_and_exported_later() {
    let bench = Bench::new();
    assert_success(&bench.run("sft", "sft", &["--steps-max", "2"]));
    let output = Command::new(env!("CARGO_BIN_EXE_bespoke-trainer"))
        .args(["merge", "--gguf", "q8_0", "--model"])
        .arg(bench.model.path())
        .arg("--adapter")
        .arg(bench.path("sft/adapter"))
        .arg("--output")
        .arg(bench.path("late"))
        .output()
        .unwrap();
    assert_success(&output);
    let weights = |folder: &str| std::fs::read(bench.path(folder).join("model.safetensors")).unwrap();
    assert!(weights("late") == weights("sft/merged"));
    assert!(bench.path("late.gguf").exists());
}

#[test]
fn mistakes_are_named_with_their_place_and_repair() {
    let bench = Bench::new();
    let stderr = |output: Output| {
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let unknown = stderr(bench.run("sft", "x", &["--set", "train.speed=3"]));
    assert!(unknown.contains("unknown field `speed`"), "{unknown}");
    let module = stderr(bench.run("sft", "x", &["--set", "lora.target_modules=[\"w_proj\"]"]));
    assert!(module.contains("`w_proj`") && module.contains("all-linear"), "{module}");
    let nothing = stderr(bench.run("sft", "x", &["--resume"]));
    assert!(nothing.contains("finds no checkpoint"), "{nothing}");
    assert_success(&bench.run("sft", "done", &["--steps-max", "1", "--no-merge"]));
    let again = stderr(bench.run("sft", "done", &[]));
    assert!(again.contains("holds a run already") && again.contains("--resume"), "{again}");
    let other = stderr(bench.run("sft", "done", &["--steps-max", "1", "--seed", "7", "--resume"]));
    assert!(other.contains("meets another run"), "{other}");
    let rounded = stderr(bench.run("sft", "done", &["--steps-max", "1", "--compute", "bf16", "--resume"]));
    assert!(rounded.contains("meets another run"), "{rounded}");
    assert_success(&bench.run("sft", "rounded", &["--steps-max", "1", "--compute", "bf16"]));
    std::fs::write(bench.path("train.jsonl"), "{\"prompt\":\"p\",\"chosen\":\"c\"}\n{\"prompt\":2}\n").unwrap();
    let rows = stderr(bench.run("sft", "y", &[]));
    assert!(rows.contains("train.jsonl:2: invalid type") && rows.contains("--skip-bad-rows"), "{rows}");
    assert!(rows.contains("train.jsonl:1: column `chosen_persona_gold`"), "{rows}");
    assert!(rows.contains("2 of 2 rows cannot be used"), "{rows}");
}

#[test]
fn the_end_is_evaluated_whatever_the_interval() {
    let bench = Bench::new();
    assert_success(&bench.run("sft", "end", &["--steps-max", "3", "--set", "train.eval_steps=2", "--no-merge"]));
    let records = bench.records("end");
    let evaluated: Vec<_> = records.iter().filter(|r| r["kind"] == "eval").map(|r| r["step"].as_u64()).collect();
    assert_eq!(evaluated, [Some(2), Some(3)]);
}

/// A rate so high that the loss overflows.
#[test]
fn a_loss_that_is_no_number_stops_with_a_good_checkpoint() {
    let bench = Bench::new();
    let more = ["--epochs", "3", "--set", "train.save_steps=1", "--set", "train.grad_norm_max=0"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_bespoke-trainer"));
    command.arg("sft").arg("--model").arg(bench.model.path()).arg("--train").arg(bench.path("train.jsonl"));
    command.arg("--output").arg(bench.path("nan")).args([
        "--learning-rate",
        "1e38",
        "--set",
        "train.schedule=constant",
    ]);
    let output = command.args(more).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("the loss is NaN") || text.contains("the gradient is"), "{text}");
    let state = bench.path("nan/checkpoints");
    assert!(std::fs::read_dir(state).unwrap().count() > 0);
}

/// The unit of `ulimit -f` in a POSIX shell.
#[cfg(unix)]
const BLOCK: u64 = 512;

/// Runs a command in which no file may grow past a size, as on a full disk: writing further fails with `EFBIG`.
#[cfg(unix)]
fn with_file_limit(command: &Command, limit_bytes: u64) -> Output {
    let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$0\" \"$@\"", limit_bytes / BLOCK);
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(script).arg(command.get_program()).args(command.get_args());
    shell.output().unwrap()
}

#[cfg(unix)]
#[test]
fn a_full_disk_stops_with_a_good_checkpoint() {
    let bench = Bench::new();
    // The optimiser's state is the largest file of a checkpoint; metrics and plot grow past it.
    let more = ["--epochs", "8", "--batch-size", "1", "--set", "lora.r=8", "--set", "lora.target_modules=[\"v_proj\"]"];
    let more = [&more[..], &["--set", "train.save_steps=1", "--no-merge"]].concat();
    assert_success(&bench.run("sft", "whole", &more));
    let newest = |output: &str| -> u64 {
        let steps = std::fs::read_dir(bench.path(output).join("checkpoints")).unwrap();
        let steps = steps.filter_map(|entry| entry.unwrap().file_name().to_str()?.strip_prefix("step-")?.parse().ok());
        steps.max().unwrap()
    };
    let size = |file: &str| std::fs::metadata(bench.path("whole").join(file)).unwrap().len();
    let checkpoint = size(&format!("checkpoints/step-{}/optimizer.safetensors", newest("whole")));
    assert!(2 * checkpoint < size("metrics.jsonl"), "{checkpoint} bytes of a checkpoint");

    let full = with_file_limit(&bench.command("sft", "full", &more), size("metrics.jsonl") / 2);
    let text = String::from_utf8(full.stderr).unwrap();
    assert_eq!(full.status.code(), Some(1), "{text}");
    assert!(text.contains("is good: make room and go on") && text.contains(": writing "), "{text}");
    let reached = newest("full");
    assert!(reached > 10, "{reached}");

    let none = with_file_limit(&bench.command("sft", "none", &more), checkpoint - 2 * BLOCK);
    let text = String::from_utf8(none.stderr).unwrap();
    assert_eq!(none.status.code(), Some(1), "{text}");
    assert!(text.contains("optimizer.safetensors"), "{text}");
    assert_eq!(std::fs::read_dir(bench.path("none/checkpoints")).unwrap().count(), 0);

    let resumed = [&more[..], &["--resume"]].concat();
    assert_success(&bench.run("sft", "full", &resumed));
    assert!(bench.adapter("full") == bench.adapter("whole"), "the adapters differ");
}

/// The adapter of a run whose merged model found no room is there, and can be merged later.
#[cfg(unix)]
#[test]
fn a_full_disk_at_the_end_leaves_the_adapter() {
    let bench = Bench::new();
    assert_success(&bench.run("sft", "whole", &["--steps-max", "2"]));
    let model = std::fs::metadata(bench.path("whole/merged/model.safetensors")).unwrap().len();
    let full = with_file_limit(&bench.command("sft", "full", &["--steps-max", "2"]), model - 2 * BLOCK);
    let text = String::from_utf8(full.stderr).unwrap();
    assert_eq!(full.status.code(), Some(1), "{text}");
    assert!(text.contains("model.safetensors") && !bench.path("full/merged").exists(), "{text}");
    assert!(bench.adapter("full") == bench.adapter("whole"));
    assert_success(&bench.run("sft", "full", &["--steps-max", "2", "--resume"]));
    let weights = |folder: &str| std::fs::read(bench.path(folder).join("merged/model.safetensors")).unwrap();
    assert!(weights("full") == weights("whole"));
}

#[test]
fn preview_shows_what_is_trained_and_what_is_cut() {
    let bench = Bench::new();
    let output = bench.run("preview", "none", &["--loss", "completion", "--length-max", "60", "--num-shown", "1"]);
    assert_success(&output);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("Response:[trained> It is"), "{text}");
    assert!(text.contains("--- 24 examples") && text.contains("not usable: 0 rows"), "{text}");
    let output = bench.run("preview", "none", &["--method", "dpo", "--training-type", "all"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("  rejected, ") && text.contains("--- 48 examples"), "{text}");
}
