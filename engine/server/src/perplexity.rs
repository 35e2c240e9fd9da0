//! `perplexity`: how well a model predicts a text, counted as llama.cpp's llama-perplexity does.
//!
//! The text's tokens are cut into chunks of one context. Each chunk is read from an empty cache, its first token replaced by
//! BOS where the tokenizer puts one before a text, and only the tokens of its second half are scored, so that each has at
//! least half a context before it.

use std::{
    io::{IsTerminal, Write},
    num::NonZeroUsize,
    path::PathBuf,
};

use anyhow::{Context, ensure};
use bespoke_model::{ModelSource, Tokenizer};
use bespoke_store::{Store, TerminalProgress};
use clap::Args;
use serde_json::json;

use crate::{
    Config, KvDTypeName,
    bench::{LaneSizes, Lanes, threads_or_cores},
};

/// Places of one step whose logits are computed: enough to read the output matrix rarely, few enough for its memory.
const STEP_LOGITS: usize = 64;
/// A chunk scores from its middle to its last token but one, so it has at least these tokens.
const CONTEXT_MIN: usize = 4;

/// Arguments of `perplexity`.
#[derive(Args, Debug)]
pub struct Perplexity {
    /// Model: a path, a name that `models` lists, or a hub id. Fetched on first use.
    pub model: String,
    /// The text, a UTF-8 file of at least one chunk.
    #[arg(long, value_name = "FILE")]
    pub text: PathBuf,
    /// Length of a chunk, in tokens, at least 4.
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    pub context: usize,
    /// Threads that compute, at least 1. Default: the number of cores.
    #[arg(long, visible_alias = "num-threads", env = "BESPOKE_NUM_THREADS", value_name = "N")]
    pub threads: Option<NonZeroUsize>,
    /// Format of keys and values in the KV cache.
    #[arg(long, env = "BESPOKE_KV_DTYPE", value_name = "FORMAT", default_value = "auto")]
    pub kv_dtype: KvDTypeName,
    /// Print one JSON object instead of a line.
    #[arg(long)]
    pub json: bool,
}

/// Computes the perplexity of a text and prints it.
///
/// **Errors**: a model or a text that cannot be had, a text shorter than one chunk, a chunk longer than the model's context.
pub fn perplexity(arguments: &Perplexity) -> anyhow::Result<()> {
    let context = arguments.context;
    ensure!(context >= CONTEXT_MIN, "--context is {context}, must be at least {CONTEXT_MIN}");
    let file = arguments.text.display();
    let text = std::fs::read_to_string(&arguments.text).with_context(|| format!("cannot read {file}"))?;
    let path = Store::open(None)?.pull(&arguments.model, &TerminalProgress::new())?;
    let source = ModelSource::open(&path)?;
    let text = Text::new(&tokenizer(&source)?, &text)?;
    let num_chunks = text.tokens.len() / context;
    ensure!(num_chunks > 0, "{file} has {} tokens, fewer than one chunk of {context}", text.tokens.len());
    let step_tokens_max = Config::default().step_tokens_max;
    let kv_dtype = arguments.kv_dtype.into();
    let sizes =
        LaneSizes { num_lanes: 1, tokens_max: context, step_tokens_max, step_logits_max: STEP_LOGITS, kv_dtype };
    let mut lanes = Lanes::new(&source, threads_or_cores(arguments.threads), sizes)?;
    let mut losses = Losses::default();
    for (index, chunk) in text.chunks(context).enumerate() {
        losses.score(&mut lanes, &chunk)?;
        show_progress(index + 1, num_chunks, &losses);
    }
    let model = lanes.model();
    let (perplexity, error) = (losses.perplexity(), losses.standard_error());
    let mut out = std::io::stdout().lock();
    if arguments.json {
        let object = json!({
            "model": model.name(),
            "digest": model.digest(),
            "dtype": model.dtype().to_string(),
            "kv_dtype": lanes.kv_dtype().to_string(),
            "isa": model.isa(),
            "version": env!("CARGO_PKG_VERSION"),
            "context": context,
            "num_chunks": num_chunks,
            "num_scored": losses.count,
            "perplexity": perplexity,
            "standard_error": error,
        });
        writeln!(out, "{object}")?;
    } else {
        let (name, dtype, isa, scored) = (model.name(), model.dtype(), model.isa(), losses.count);
        writeln!(out, "perplexity {perplexity:.4} +/- {error:.4} ({name}, {dtype}, {isa}; {scored} tokens scored)")?;
    }
    Ok(())
}

fn tokenizer(source: &ModelSource) -> anyhow::Result<Tokenizer> {
    Ok(match source.gguf() {
        Some(gguf) => Tokenizer::from_gguf(gguf)?,
        None => Tokenizer::from_folder(source.path())?,
    })
}

fn show_progress(num_done: usize, num_chunks: usize, losses: &Losses) {
    if std::io::stderr().is_terminal() {
        let line_end = if num_done == num_chunks { "\n" } else { "" };
        // Progress that cannot be shown is not worth an error.
        let _ = write!(std::io::stderr(), "\rchunk {num_done}/{num_chunks}: {:.4}    {line_end}", losses.perplexity());
    }
}

/// A tokenized text.
struct Text {
    tokens: Vec<u32>,
    /// The token that each chunk starts with, where the tokenizer puts one before a text.
    bos: Option<u32>,
}

impl Text {
    fn new(tokenizer: &Tokenizer, text: &str) -> anyhow::Result<Self> {
        // llama.cpp takes the line end off the end of a prompt file.
        let text = text.strip_suffix('\n').unwrap_or(text);
        let tokens = tokenizer.encode_text(text, true, false)?;
        let bare = tokenizer.encode_text(text, false, false)?;
        let adds_bos = tokens.len() > bare.len() && tokens.first().copied() == tokenizer.bos();
        Ok(Self { tokens, bos: tokenizer.bos().filter(|_| adds_bos) })
    }

    fn chunks(&self, context: usize) -> impl Iterator<Item = Vec<u32>> {
        self.tokens.chunks_exact(context).map(|chunk| {
            let mut chunk = chunk.to_vec();
            chunk[0] = self.bos.unwrap_or(chunk[0]);
            chunk
        })
    }
}

/// Sums of the losses of scored tokens, natural logarithm.
#[derive(Default)]
struct Losses {
    count: usize,
    sum: f64,
    sum_of_squares: f64,
}

impl Losses {
    /// Reads a chunk into an empty sequence and adds the losses of its second half.
    fn score(&mut self, lanes: &mut Lanes, chunk: &[u32]) -> anyhow::Result<()> {
        lanes.clear();
        // The logits of a token predict the next one, so those of the last would have nothing to score.
        lanes.feed(0, &chunk[..chunk.len() - 1], chunk.len() / 2, |index, logits| {
            self.add(loss(logits, chunk[index + 1]));
        })
    }

    fn add(&mut self, loss: f64) {
        self.count += 1;
        self.sum += loss;
        self.sum_of_squares += loss * loss;
    }

    fn perplexity(&self) -> f64 {
        (self.sum / self.count as f64).exp()
    }

    /// The standard error of the perplexity, by the delta method as llama.cpp's: that of the mean loss times the perplexity.
    fn standard_error(&self) -> f64 {
        let count = self.count as f64;
        let mean = self.sum / count;
        let variance = (self.sum_of_squares / count - mean * mean).max(0.0);
        (variance / (count - 1.0).max(1.0)).sqrt() * self.perplexity()
    }
}

/// Returns the negative log-probability of a token, natural logarithm.
fn loss(logits: &[f32], token: u32) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from((logit - max).exp())).sum();
    sum.ln() - f64::from(logits[token as usize] - max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_is_a_negative_log_probability() {
        let logits = [0.0, (3.0f32).ln(), 100.0f32.ln()];
        assert!((loss(&logits, 1) - (104.0f64 / 3.0).ln()).abs() < 1e-6);
        let total: f64 = (0..3).map(|token| (-loss(&logits, token)).exp()).sum();
        assert!((total - 1.0).abs() < 1e-6);
    }

    #[test]
    fn a_uniform_guess_has_the_perplexity_of_its_choices() {
        let mut losses = Losses::default();
        (0..10).for_each(|_| losses.add(8.0f64.ln()));
        assert!((losses.perplexity() - 8.0).abs() < 1e-9);
        assert!(losses.standard_error() < 1e-6);
    }

    #[test]
    fn chunks_are_whole_and_start_with_bos_where_there_is_one() {
        let text = Text { tokens: (10..25).collect(), bos: None };
        assert_eq!(text.chunks(5).map(|chunk| chunk[0]).collect::<Vec<_>>(), [10, 15, 20]);
        let text = Text { bos: Some(1), ..text };
        assert_eq!(text.chunks(6).collect::<Vec<_>>(), [[1, 11, 12, 13, 14, 15], [1, 17, 18, 19, 20, 21]]);
    }
}
