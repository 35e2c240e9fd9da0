//! `merge`.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use bespoke_model::{ModelSource, Quantization, QuantizeOptions, quantize_model};
use bespoke_trainer::{MergedDtype, merge as merge_model, read_adapter};
use clap::{Args, ValueEnum};

use super::setup::open_model;

/// Arguments of `merge`.
#[derive(Args)]
pub(crate) struct MergeArguments {
    /// Base model: catalogue name, hub id, folder or GGUF file.
    #[arg(long)]
    model: String,
    /// PEFT adapter of that base.
    #[arg(long, value_name = "FOLDER")]
    adapter: PathBuf,
    /// Folder of the merged model.
    #[arg(long, value_name = "FOLDER")]
    output: PathBuf,
    /// What the weights are stored in.
    #[arg(long, value_enum, default_value_t)]
    dtype: MergedDtype,
    /// Also write `OUTPUT.gguf`, quantized like this.
    #[arg(long, value_enum)]
    gguf: Option<GgufFormat>,
}

/// Formats of a GGUF file.
#[allow(non_camel_case_types, reason = "`Q4_0` and its like are the names of the formats")]
#[derive(Clone, Copy, ValueEnum)]
enum GgufFormat {
    /// Floats as they are.
    #[value(name = "none")]
    None,
    #[value(name = "q8_0")]
    Q8_0,
    #[value(name = "q4_0")]
    Q4_0,
    #[value(name = "q4_1")]
    Q4_1,
    #[value(name = "q4_k")]
    Q4K,
    #[value(name = "q5_k")]
    Q5K,
    #[value(name = "q6_k")]
    Q6K,
}

/// Merges and perhaps exports.
pub(crate) fn merge(arguments: &MergeArguments) -> anyhow::Result<ExitCode> {
    let source = open_model(&arguments.model)?;
    let lora = read_adapter(&source.config()?, &arguments.adapter)?;
    merge_model(&source, &lora, arguments.dtype, &arguments.output)?;
    tracing::info!(model = %arguments.output.display(), "merged");
    let Some(format) = arguments.gguf else { return Ok(ExitCode::SUCCESS) };
    let quantization = match format {
        GgufFormat::None => Quantization::None,
        GgufFormat::Q8_0 => Quantization::Q8_0,
        GgufFormat::Q4_0 => Quantization::Q4_0,
        GgufFormat::Q4_1 => Quantization::Q4_1,
        GgufFormat::Q4K => Quantization::Q4K,
        GgufFormat::Q5K => Quantization::Q5K,
        GgufFormat::Q6K => Quantization::Q6K,
    };
    let mut file = arguments.output.clone().into_os_string();
    file.push(".gguf");
    let file = PathBuf::from(file);
    let num_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let options = QuantizeOptions { quantization, num_threads, overwrite: true };
    quantize_model(&ModelSource::open(&arguments.output)?, &file, options, &mut |_| ControlFlow::Continue(()))
        .with_context(|| format!("writing {}", file.display()))?;
    tracing::info!(file = %file.display(), "exported");
    Ok(ExitCode::SUCCESS)
}
