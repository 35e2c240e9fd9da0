//! `bespoke-engine`: serve a model, try a prompt, fetch, quantize and measure models.

use bespoke_server::{Bench, Config, Listing, LogFormat, Options, Perplexity, Pull, Quantize, Token, Top, Try};
use clap::{Parser, Subcommand};

/// Streams answers of a language model, tailored to a persona, over gRPC or to the terminal.
#[derive(Parser)]
#[command(name = "bespoke-engine", version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve a model over gRPC until SIGTERM or SIGINT.
    ///
    /// Options are taken from flags, then from the environment, then from the TOML file of --config, then from the defaults.
    /// The first signal drains: health turns NOT_SERVING, new requests get UNAVAILABLE, those taken in may end within the
    /// grace period. A second signal exits at once.
    Serve(Box<Options>),
    /// Answer one prompt in this process and stream the answer to the terminal.
    Try(Try),
    /// Fetch a model into the local cache and print its path.
    Pull(Pull),
    /// List the models in the local cache and those that `pull` knows by name.
    Models(Listing),
    /// Make a bearer token for --tokens and print it, once, with the lines that the file needs.
    Token(Token),
    /// Show what a running server does: queue, KV cache, tokens a second, times, errors.
    Top(Top),
    /// Measure how fast a model reads prompts and writes tokens.
    Bench(Bench),
    /// Measure how well a model predicts a text, counted as llama-perplexity does.
    Perplexity(Perplexity),
    /// Write a model as a GGUF file, quantized or not, that this program and llama.cpp load.
    Quantize(Quantize),
}

/// What the commands other than `serve` log: warnings, and a pull's progress where standard error is not a terminal.
const QUIET: &str = "warn,bespoke_store=info";

fn main() -> anyhow::Result<()> {
    let command = Arguments::parse().command;
    let config = match &command {
        Command::Serve(options) => Some(Config::resolve((**options).clone())?),
        _ => None,
    };
    let (format, filter) = config.as_ref().map_or((LogFormat::Pretty, QUIET), |it| (it.log_format, &it.log_filter));
    let _logs = bespoke_server::start_logs(format, filter)?;
    match command {
        Command::Serve(_) => config.map_or(Ok(()), bespoke_server::serve),
        Command::Try(arguments) => bespoke_server::try_prompt(&arguments),
        Command::Pull(arguments) => bespoke_server::pull(&arguments),
        Command::Models(arguments) => bespoke_server::list_models(&arguments),
        Command::Token(arguments) => bespoke_server::make_token(&arguments),
        Command::Top(arguments) => bespoke_server::top(&arguments),
        Command::Bench(arguments) => bespoke_server::bench(&arguments),
        Command::Perplexity(arguments) => bespoke_server::perplexity(&arguments),
        Command::Quantize(arguments) => bespoke_server::quantize(&arguments),
    }
}
