//! `bespoke-trainer`: train an adapter, merge it, look at the data.

mod cli;

use anyhow::Context;
use clap::{Parser, Subcommand};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// Trains language models to tailor their answers to a persona: LoRA SFT and DPO, then merged weights.
///
/// A run: `preview` the rows, `sft`, then `dpo` from the merged model of the first, then `bespoke-engine serve --model RUN/merged`.
#[derive(Parser)]
#[command(name = "bespoke-trainer", version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// What is logged, such as `info` or `warn,bespoke_trainer=debug`.
    #[arg(long, global = true, env = "BESPOKE_LOG", default_value = "info")]
    log_filter: String,
}

#[derive(Subcommand)]
enum Command {
    /// Supervised fine-tuning: the model learns the answers of the rows.
    ///
    /// Settings come from flags, then the TOML recipe of --config, then the paper's defaults. The first Ctrl-C saves a checkpoint
    /// and exits with status 130 (--resume goes on bit for bit); a second one exits at once.
    Sft(Box<cli::TrainArguments>),
    /// Direct preference optimisation: the model learns to prefer the chosen answers; the reference is the base, adapter off.
    ///
    /// Settings, signals and --resume as for `sft`. The paper starts from the merged SFT model: --model RUN/merged.
    Dpo(Box<cli::TrainArguments>),
    /// Add an adapter to its base and write a complete Hugging Face folder, and a GGUF file if wanted.
    Merge(cli::MergeArguments),
    /// Show rows as they are trained on: the trained text between marks, lengths, what is cut off or cannot be used and why.
    Preview(Box<cli::PreviewArguments>),
}

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<ExitCode> {
    use bespoke_trainer::Method;
    let arguments = Arguments::parse();
    // The tokenizer's own traces quote the text.
    let filter = EnvFilter::try_new(format!("{},tokenizers=off", arguments.log_filter))
        .with_context(|| format!("--log-filter `{}` is wrong", arguments.log_filter))?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match arguments.command {
        Command::Sft(arguments) => cli::train(Method::Sft, &arguments),
        Command::Dpo(arguments) => cli::train(Method::Dpo, &arguments),
        Command::Merge(arguments) => cli::merge(&arguments),
        Command::Preview(arguments) => cli::preview(&arguments),
    }
}
