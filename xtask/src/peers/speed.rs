//! The bare models: `bespoke-engine bench` against llama-bench, llama-batched-bench and the Python package mistralrs.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::comparison::{Better, Comparison, Side};
use super::{Setup, output};

/// The prompt and the answer of llama-bench's `pp512` and `tg128`.
const PROMPT: usize = 512;
const GENERATE: usize = 128;
/// The prompt of a batched sequence, which is not timed; `bespoke-engine bench` has the same.
const DECODE_PROMPT: usize = 16;
/// Cache of a batched sequence: llama.cpp rounds each to a multiple of this.
const SEQUENCE_CONTEXT: usize = 256;

/// Measures mistralrs, one sequence.
const MISTRALRS: &str = include_str!("mistralrs_speed.py");

/// Measures all once.
pub(super) fn measure(setup: &Setup, comparison: &mut Comparison) -> Result<()> {
    let prefill = format!("prefill {PROMPT}, tokens/s");
    let decode = |batch: u64| format!("decode {GENERATE}, batch {batch}, tokens/s");
    let mut add = |name: &str, side, speed: f64| comparison.add(name, Better::Higher, side, speed);

    let measured: Value = serde_json::from_str(&ours(setup)?).context("parse `bespoke-engine bench`")?;
    add(&prefill, Side::Ours, number(&measured["prefill_tokens_per_s"])?);
    for entry in measured["decode"].as_array().context("`bespoke-engine bench` has no `decode`")? {
        add(&decode(entry["batch"].as_u64().unwrap_or(0)), Side::Ours, number(&entry["tokens_per_s"])?);
    }
    let (prompt_speed, decode_speed) = parse_bench(&llama_bench(setup)?)?;
    add(&prefill, Side::Theirs, prompt_speed);
    // One sequence is llama-bench's own case.
    if setup.batch.contains(&1) {
        add(&decode(1), Side::Theirs, decode_speed);
    }
    if setup.batch.iter().any(|&batch| batch != 1) {
        for (batch, speed) in parse_batched(&llama_batched_bench(setup)?)? {
            add(&decode(batch), Side::Theirs, speed);
        }
    }
    if let Some(python) = &setup.mistralrs_python {
        let (prompt_speed, decode_speed) = parse_mistralrs(&mistralrs(setup, python)?)?;
        add(&prefill, Side::Mistralrs, prompt_speed);
        add(&decode(1), Side::Mistralrs, decode_speed);
    }
    Ok(())
}

fn ours(setup: &Setup) -> Result<String> {
    let mut command = Command::new(setup.ours.join("bespoke-engine"));
    command.arg("bench").arg("--model").arg(&setup.model).args(["--threads", &setup.threads.to_string()]);
    command.args(["--prompt", &PROMPT.to_string(), "--generate", &GENERATE.to_string()]);
    output(command.args(["--batch", &join(&setup.batch), "--repeat", "3", "--json"]))
}

fn llama_bench(setup: &Setup) -> Result<String> {
    let mut command = Command::new(setup.theirs.join("llama-bench"));
    command.arg("-m").arg(&setup.model).args(["-t", &setup.threads.to_string()]);
    output(command.args(["-p", &PROMPT.to_string(), "-n", &GENERATE.to_string(), "-r", "3", "-o", "json"]))
}

fn llama_batched_bench(setup: &Setup) -> Result<String> {
    let others: Vec<usize> = setup.batch.iter().copied().filter(|&batch| batch != 1).collect();
    let context = others.iter().max().map_or(0, |batch| batch * SEQUENCE_CONTEXT);
    let mut command = Command::new(setup.theirs.join("llama-batched-bench"));
    command.arg("-m").arg(&setup.model).args(["-t", &setup.threads.to_string(), "-c", &context.to_string()]);
    command.args(["-npp", &DECODE_PROMPT.to_string(), "-ntg", &GENERATE.to_string(), "-npl", &join(&others)]);
    output(command.args(["--output-format", "jsonl"]))
}

fn mistralrs(setup: &Setup, python: &Path) -> Result<String> {
    let mut command = Command::new(python);
    command.env("RAYON_NUM_THREADS", setup.threads.to_string()).args(["-c", MISTRALRS]).arg(&setup.model);
    output(command.args([PROMPT.to_string(), GENERATE.to_string()]))
}

/// Reads the speeds from the last line of the script; what comes before is the package's log.
fn parse_mistralrs(text: &str) -> Result<(f64, f64)> {
    let last = text.lines().last().context("mistralrs printed nothing")?;
    let speeds: Value = serde_json::from_str(last).context("parse the speeds of mistralrs")?;
    Ok((number(&speeds["prefill_tokens_per_s"])?, number(&speeds["decode_tokens_per_s"])?))
}

/// Reads the speeds of prompt and answer from `llama-bench -o json`.
fn parse_bench(text: &str) -> Result<(f64, f64)> {
    let start = text.find('[').context("`llama-bench` printed no JSON")?;
    let tests: Vec<Value> = serde_json::from_str(&text[start..]).context("parse `llama-bench`")?;
    let speed = |key: &str| {
        let test = tests.iter().find(|test| test[key].as_u64().is_some_and(|tokens| tokens > 0));
        number(&test.with_context(|| format!("`llama-bench` has no test with `{key}`"))?["avg_ts"])
    };
    Ok((speed("n_prompt")?, speed("n_gen")?))
}

/// Reads batch sizes and speeds from `llama-batched-bench --output-format jsonl`, whose log may stand between the lines.
fn parse_batched(text: &str) -> Result<Vec<(u64, f64)>> {
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line.trim()).ok());
    let speeds: Vec<_> =
        lines.filter_map(|line| Some((line.get("pl")?.as_u64()?, line.get("speed_tg")?.as_f64()?))).collect();
    ensure!(!speeds.is_empty(), "`llama-batched-bench` printed no result");
    Ok(speeds)
}

fn number(value: &Value) -> Result<f64> {
    value.as_f64().with_context(|| format!("`{value}` is not a number"))
}

fn join(numbers: &[usize]) -> String {
    numbers.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama_bench_is_read() {
        let text =
            r#"[{"n_prompt": 512, "n_gen": 0, "avg_ts": 1400.5}, {"n_prompt": 0, "n_gen": 128, "avg_ts": 210.0}]"#;
        assert_eq!(parse_bench(text).unwrap(), (1400.5, 210.0));
        assert!(parse_bench("[]").unwrap_err().to_string().contains("n_prompt"));
        assert!(parse_bench("error").is_err());
    }

    #[test]
    fn llama_batched_bench_is_read() {
        let text = "log\n{\"pl\": 16, \"speed_pp\": 1.0, \"speed_tg\": 297.25}\n\n{\"pl\": 32, \"speed_tg\": 299.5}\n{\"x\": 1}\n";
        assert_eq!(parse_batched(text).unwrap(), [(16, 297.25), (32, 299.5)]);
        assert!(parse_batched("log only").is_err());
    }

    #[test]
    fn mistralrs_is_read() {
        let text = "log\n{\"prefill_tokens_per_s\": 85.5, \"decode_tokens_per_s\": 49.0}\n";
        assert_eq!(parse_mistralrs(text).unwrap(), (85.5, 49.0));
        assert!(parse_mistralrs("log only").is_err());
    }
}
