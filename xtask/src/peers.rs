//! `cargo xtask bench-peers`: us, llama.cpp and, where asked for, mistralrs in turn on the same model file, prompts and threads; medians and ratios.
//!
//! Each run measures the bare model of both (`speed`), then serves both with the same load (`served`); what one run of the
//! machine slows down, it slows down for both. The numbers of all runs are gathered in `comparison`.

mod comparison;
mod contention;
mod served;
mod speed;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::{Value, json};

use crate::child;
use crate::workspace::Workspace;
use comparison::Comparison;
use contention::{Contention, OTHERS_PERCENT_MAX};

const PROGRAMS: [&str; 3] = ["llama-bench", "llama-batched-bench", "llama-server"];

const HOW_TO_BUILD: &str = "\
llama.cpp comes with the source distribution of the Python package llama-cpp-python. To build the programs:
    pip download --no-deps --no-build-isolation --no-binary :all: llama-cpp-python
    tar xf llama_cpp_python-*.tar.gz
    cmake -S llama_cpp_python-*/vendor/llama.cpp -B llama-build -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \\
        -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF
    cmake --build llama-build --target llama-bench llama-batched-bench llama-server llama-perplexity
    cargo xtask bench-peers --llama-bin llama-build/bin --model FILE.gguf";

/// Arguments of `bench-peers`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Folder with llama-bench, llama-batched-bench and llama-server.
    #[arg(long, value_name = "FOLDER")]
    llama_bin: Option<PathBuf>,
    /// The GGUF file that both run.
    #[arg(long, value_name = "FILE")]
    model: PathBuf,
    /// Python interpreter that has the package mistralrs, to measure that too: one sequence, without serving.
    #[arg(long, value_name = "FILE")]
    mistralrs_python: Option<PathBuf>,
    /// Threads that compute, for all.
    #[arg(long, value_name = "N", default_value_t = 2)]
    threads: usize,
    /// How often all are measured in turn; the medians count.
    #[arg(long, value_name = "N", default_value_t = 5)]
    runs: usize,
    /// Numbers of sequences that write together.
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "1,16,32")]
    batch: Vec<usize>,
    /// Numbers of clients of the served load; none leaves it out.
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "1,16,32", num_args = 0..)]
    clients: Vec<usize>,
    /// Requests that each client sends.
    #[arg(long, value_name = "N", default_value_t = 8)]
    requests_per_client: usize,
    /// File for all numbers as JSON.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// What both programs are run with.
struct Setup {
    model: PathBuf,
    threads: usize,
    batch: Vec<usize>,
    /// Our programs: `bespoke-engine` and `load`.
    ours: PathBuf,
    /// Those of llama.cpp.
    theirs: PathBuf,
    mistralrs_python: Option<PathBuf>,
}

/// Builds our programs, measures both and prints a Markdown table.
///
/// # Errors
/// The programs of llama.cpp are missing, ours do not build, or one of them fails.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    let Some(theirs) = &arguments.llama_bin else {
        bail!("--llama-bin is missing.\n{HOW_TO_BUILD}");
    };
    for program in PROGRAMS {
        ensure!(theirs.join(program).is_file(), "`{}` has no `{program}`.\n{HOW_TO_BUILD}", theirs.display());
    }
    ensure!(arguments.model.is_file(), "`{}` is not a file", arguments.model.display());
    ensure!(arguments.threads > 0 && arguments.runs > 0, "threads and runs must be at least 1");
    let build = ["build", "--release", "-p", "bespoke-server", "-p", "bespoke-benches", "--bins"];
    child::run(Command::new("cargo").args(build).current_dir(&workspace.root))?;
    let setup = Setup {
        model: arguments.model.clone(),
        threads: arguments.threads,
        batch: arguments.batch.clone(),
        ours: workspace.target.join("release"),
        theirs: theirs.clone(),
        mistralrs_python: arguments.mistralrs_python.clone(),
    };
    let mut comparison = Comparison::default();
    let mut others_percent = 0.0f64;
    for run in 1..=arguments.runs {
        let contention = Contention::begin()?;
        speed::measure(&setup, &mut comparison)?;
        for &clients in &arguments.clients {
            served::measure(&setup, clients, arguments.requests_per_client, &mut comparison)?;
        }
        let percent = contention.others_percent()?;
        println!("==> run {run} of {}: other processes took {percent:.1} % of the machine", arguments.runs);
        others_percent = others_percent.max(percent);
    }
    let mut about = about(&workspace.root, arguments)?;
    about["others_percent_max"] = json!(others_percent);
    println!("\n{}\n\n{}", describe(&about), comparison.table());
    if let Some(file) = &arguments.out {
        let all = json!({"about": about, "measures": comparison.to_json()});
        std::fs::write(file, format!("{all:#}\n")).with_context(|| format!("write `{}`", file.display()))?;
    }
    Ok(())
}

/// Returns commit, machine and settings: a number means nothing without them.
fn about(root: &Path, arguments: &Arguments) -> Result<Value> {
    let git = |words: &[&str]| output(Command::new("git").args(words).current_dir(root));
    let dirty = if git(&["status", "--porcelain"])?.trim().is_empty() { "" } else { " with changes" };
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown CPU");
    let num_cores = std::thread::available_parallelism().map_or(1, usize::from);
    let file = arguments.model.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(json!({
        "commit": git(&["rev-parse", "--short", "HEAD"])?.trim().to_owned() + dirty,
        "cpu": cpu.trim_start_matches([' ', '\t', ':']),
        "num_cores": num_cores,
        "model": file,
        "threads": arguments.threads,
        "runs": arguments.runs,
    }))
}

fn describe(about: &Value) -> String {
    let others = about["others_percent_max"].as_f64().unwrap_or(100.0);
    let warning = match others > OTHERS_PERCENT_MAX {
        true => "\n\n**The machine was busy with other work: the ratios are not to be used.**",
        false => "",
    };
    let text = |key: &str| about[key].as_str().unwrap_or_default().to_owned();
    format!(
        "{}, {} threads, {} alternating runs, median (least to most); commit {}, {} ({} cores); \
         other processes took up to {others:.1} % of it{warning}",
        text("model"),
        about["threads"],
        about["runs"],
        text("commit"),
        text("cpu"),
        about["num_cores"]
    )
}

/// Runs a program to its end and returns what it prints; its standard error shows only where it fails.
fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("start `{name}`"))?;
    let error = String::from_utf8_lossy(&output.stderr);
    let tail: Vec<&str> = error.lines().rev().take(5).collect();
    let tail: Vec<&str> = tail.into_iter().rev().collect();
    ensure!(output.status.success(), "`{name}`: {}: {}", output.status, tail.join("\n"));
    String::from_utf8(output.stdout).with_context(|| format!("read `{name}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_llama_it_says_how_to_get_it() {
        let workspace = Workspace::locate().unwrap();
        let arguments = Arguments {
            llama_bin: None,
            model: "none.gguf".into(),
            mistralrs_python: None,
            threads: 2,
            runs: 1,
            batch: vec![1],
            clients: Vec::new(),
            requests_per_client: 1,
            out: None,
        };
        let error = run(&workspace, &arguments).unwrap_err().to_string();
        assert!(error.contains("llama-cpp-python") && error.contains("cmake --build"), "{error}");
        let arguments = Arguments { llama_bin: Some("/no/such/folder".into()), ..arguments };
        assert!(run(&workspace, &arguments).unwrap_err().to_string().contains("llama-bench"));
    }

    #[test]
    fn a_busy_machine_is_told() {
        let told = |percent: f64| describe(&json!({"others_percent_max": percent})).contains("not to be used");
        assert!(told(40.0) && !told(1.0));
    }

    #[test]
    fn a_program_that_fails_shows_its_last_words() {
        let error = output(Command::new("sh").args(["-c", "echo why >&2; exit 3"])).unwrap_err();
        assert!(error.to_string().contains("why"), "{error}");
        assert_eq!(output(Command::new("echo").arg("x")).unwrap(), "x\n");
    }
}
