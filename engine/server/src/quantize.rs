//! `quantize`: a model as a GGUF file, for this program and llama.cpp.

use std::{
    io::Write,
    ops::ControlFlow,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::{Context, anyhow};
use bespoke_engine::{ModelError, Quantization};
use bespoke_model::{ModelSource, QuantizeOptions, QuantizeSummary, quantize_model};
use bespoke_store::{Store, TerminalProgress};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use signal_hook::consts::{SIGINT, SIGTERM};

const BAR: &str = "{msg} [{wide_bar}] {bytes}/{total_bytes} ({eta})";

/// Arguments of `quantize`.
#[derive(Args, Debug)]
pub struct Quantize {
    /// Model: a path, a name that `models` lists, or a hub id. Fetched if it is not cached.
    pub model: String,
    /// The GGUF file to write.
    pub output: PathBuf,
    /// What the matrices become; embeddings and output become q8_0 with every scheme but none, norms and biases stay floats.
    /// Rows that are no multiple of 256 get q5_0 for q4_k, q5_1 for q5_k and q8_0 for q6_k.
    #[arg(long, value_name = "SCHEME")]
    pub quantization: QuantizationName,
    /// Replace the output if it exists.
    #[arg(long)]
    pub force: bool,
    /// Threads that compute, at least 1. Default: the number of cores.
    #[arg(long, env = "BESPOKE_NUM_THREADS", value_name = "N")]
    pub num_threads: Option<usize>,
}

/// The schemes as a flag and a file spell them.
#[allow(non_camel_case_types, reason = "`Q4_0` and `Q4_1` are the names of the formats")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QuantizationName {
    /// As the file has them; `quantize` decodes quantized matrices to 32-bit floats.
    None,
    /// 8.5 bits per weight.
    #[value(name = "q8_0")]
    #[serde(rename = "q8_0")]
    Q8_0,
    /// 4.5 bits per weight.
    #[value(name = "q4_0")]
    #[serde(rename = "q4_0")]
    Q4_0,
    /// 5 bits per weight.
    #[value(name = "q4_1")]
    #[serde(rename = "q4_1")]
    Q4_1,
    /// 4.5 bits per weight, scales searched for.
    #[value(name = "q4_k")]
    #[serde(rename = "q4_k")]
    Q4K,
    /// 5.5 bits per weight, scales searched for.
    #[value(name = "q5_k")]
    #[serde(rename = "q5_k")]
    Q5K,
    /// 6.6 bits per weight, scales searched for.
    #[value(name = "q6_k")]
    #[serde(rename = "q6_k")]
    Q6K,
}

impl From<QuantizationName> for Quantization {
    fn from(name: QuantizationName) -> Self {
        match name {
            QuantizationName::None => Quantization::None,
            QuantizationName::Q8_0 => Quantization::Q8_0,
            QuantizationName::Q4_0 => Quantization::Q4_0,
            QuantizationName::Q4_1 => Quantization::Q4_1,
            QuantizationName::Q4K => Quantization::Q4K,
            QuantizationName::Q5K => Quantization::Q5K,
            QuantizationName::Q6K => Quantization::Q6K,
        }
    }
}

/// Writes a model as a GGUF file and says what became of it.
///
/// **Errors**: a model that cannot be had or loaded, an output that exists or cannot be written.
pub fn quantize(arguments: &Quantize) -> anyhow::Result<()> {
    let path = Store::open(None)?.pull(&arguments.model, &TerminalProgress::new())?;
    let source = ModelSource::open(&path)?;
    let cores = || thread::available_parallelism().map_or(1, Into::into);
    let options = QuantizeOptions {
        quantization: arguments.quantization.into(),
        num_threads: arguments.num_threads.unwrap_or_else(cores),
        overwrite: arguments.force,
    };
    let style = ProgressStyle::with_template(BAR).context("the template of the bar")?;
    // Draws on standard error, and nothing where that is no terminal.
    let bar = ProgressBar::new(0).with_style(style);
    let interrupted = Arc::new(AtomicBool::new(false));
    // The file in the making is removed on the way out.
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, interrupted.clone()).context("cannot listen for signals")?;
    }
    let summary = quantize_model(&source, &arguments.output, options, &mut |progress| {
        bar.set_length(progress.bytes_total);
        bar.set_position(progress.bytes);
        bar.set_message(progress.tensor.to_owned());
        if interrupted.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
    .map_err(|error| match error {
        ModelError::OutputExists { .. } if !arguments.force => anyhow!("{error}: --force replaces it"),
        other => anyhow::Error::new(other),
    })?;
    bar.finish_and_clear();
    report(arguments, &summary)
}

fn report(arguments: &Quantize, summary: &QuantizeSummary) -> anyhow::Result<()> {
    for replacement in &summary.replacements {
        let (tensor, cols) = (&replacement.tensor, replacement.cols);
        tracing::warn!(%tensor, cols, wanted = %replacement.wanted, found = %replacement.found, "rows do not fit the format");
    }
    if summary.num_requantized > 0 {
        let num_tensors = summary.num_requantized;
        tracing::warn!(num_tensors, "the source was quantized already: a second rounding costs quality");
    }
    let mut out = std::io::stdout().lock();
    for (dtype, num_tensors, bytes) in &summary.formats {
        writeln!(out, "{dtype:>5}: {num_tensors} tensors, {bytes} bytes")?;
    }
    writeln!(out, "{}: {} bytes", arguments.output.display(), summary.file_bytes)?;
    Ok(())
}
