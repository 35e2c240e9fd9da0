//! `bench`: how fast the model reads prompts and writes tokens, alone and in batches, without the engine around it.
//!
//! Measured as llama-bench and llama-batched-bench do, so that the numbers stand beside theirs: the prompt is random tokens
//! into an empty cache; decoding starts behind a short prompt and takes one token of every sequence a step.

mod lanes;

use std::{
    io::Write,
    num::NonZeroUsize,
    time::{Duration, Instant},
};

use bespoke_model::ModelSource;
use bespoke_store::{Store, TerminalProgress};
use clap::Args;
use serde::Serialize;

use crate::{Config, KvDTypeName};
pub(crate) use lanes::{LaneSizes, Lanes};

/// Prompt of each sequence before its decoding is timed, in tokens: `-npp 16` of llama-batched-bench.
const DECODE_PROMPT: usize = 16;
/// Seed of the random tokens.
const SEED: u64 = 0x5EED;

/// Arguments of `bench`.
#[derive(Args, Debug)]
pub struct Bench {
    /// Model: a path, a name that `models` lists, or a hub id. Fetched on first use.
    #[arg(long, env = "BESPOKE_MODEL", default_value = bespoke_store::DEFAULT_MODEL)]
    pub model: String,
    /// Threads that compute, at least 1. Default: the number of cores.
    #[arg(long, visible_alias = "num-threads", env = "BESPOKE_NUM_THREADS", value_name = "N")]
    pub threads: Option<NonZeroUsize>,
    /// Length of the prompt, in tokens.
    #[arg(long, value_name = "TOKENS", default_value = "512")]
    pub prompt: NonZeroUsize,
    /// Tokens that each sequence writes.
    #[arg(long, value_name = "TOKENS", default_value = "128")]
    pub generate: NonZeroUsize,
    /// Numbers of sequences that write together.
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "1,16,32")]
    pub batch: Vec<NonZeroUsize>,
    /// How often each is measured; the median counts.
    #[arg(long, value_name = "N", default_value = "3")]
    pub repeat: NonZeroUsize,
    /// How often each runs before it is measured.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub warmup: usize,
    /// Format of keys and values in the KV cache.
    #[arg(long, env = "BESPOKE_KV_DTYPE", value_name = "FORMAT", default_value = "auto")]
    pub kv_dtype: KvDTypeName,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// What `bench --json` prints.
#[derive(Debug, Serialize)]
struct Measured {
    model: String,
    digest: String,
    dtype: String,
    kv_dtype: String,
    isa: String,
    threads: usize,
    version: &'static str,
    prompt_tokens: usize,
    decode_prompt_tokens: usize,
    generate_tokens: usize,
    repeat: usize,
    load_ms: f64,
    prefill_tokens_per_s: f64,
    decode: Vec<Decode>,
}

#[derive(Debug, Serialize)]
struct Decode {
    batch: usize,
    tokens_per_s: f64,
}

/// Measures a model.
///
/// **Errors**: a model that cannot be had or loaded, more tokens than its context.
pub fn bench(arguments: &Bench) -> anyhow::Result<()> {
    let path = Store::open(None)?.pull(&arguments.model, &TerminalProgress::new())?;
    let (prompt, generate) = (arguments.prompt.get(), arguments.generate.get());
    let num_lanes = arguments.batch.iter().map(|batch| batch.get()).max().unwrap_or(1);
    let sizes = LaneSizes {
        num_lanes,
        tokens_max: prompt.max(DECODE_PROMPT + generate),
        step_tokens_max: Config::default().step_tokens_max.max(num_lanes),
        step_logits_max: num_lanes,
        kv_dtype: arguments.kv_dtype.into(),
    };
    let threads = threads_or_cores(arguments.threads);
    let begun = Instant::now();
    let mut lanes = Lanes::new(&ModelSource::open(&path)?, threads, sizes)?;
    let load_ms = begun.elapsed().as_secs_f64() * 1e3;
    let prefill = median_of(arguments, || prefill(&mut lanes, prompt))?;
    let mut decode = Vec::new();
    for batch in &arguments.batch {
        let batch = batch.get();
        let time = median_of(arguments, || decode_together(&mut lanes, batch, generate))?;
        decode.push(Decode { batch, tokens_per_s: (batch * generate) as f64 / time.as_secs_f64() });
    }
    let model = lanes.model();
    let measured = Measured {
        model: model.name().to_owned(),
        digest: model.digest().to_owned(),
        dtype: model.dtype().to_string(),
        kv_dtype: lanes.kv_dtype().to_string(),
        isa: model.isa(),
        threads,
        version: env!("CARGO_PKG_VERSION"),
        prompt_tokens: prompt,
        decode_prompt_tokens: DECODE_PROMPT,
        generate_tokens: generate,
        repeat: arguments.repeat.get(),
        load_ms,
        prefill_tokens_per_s: prompt as f64 / prefill.as_secs_f64(),
        decode,
    };
    measured.print(arguments.json)
}

/// Returns the threads asked for, else as many as the machine has cores.
pub(crate) fn threads_or_cores(threads: Option<NonZeroUsize>) -> usize {
    threads.or_else(|| std::thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get)
}

/// Reads a prompt into an empty sequence; only the logits of its last token are computed.
fn prefill(lanes: &mut Lanes, num_tokens: usize) -> anyhow::Result<Duration> {
    let tokens = random_tokens(num_tokens, lanes.model().config().vocab_size, 0);
    lanes.clear();
    let begun = Instant::now();
    lanes.feed(0, &tokens, num_tokens - 1, |_, _| {})?;
    Ok(begun.elapsed())
}

/// Writes tokens in several sequences at once, each behind a prompt of its own that is not timed.
fn decode_together(lanes: &mut Lanes, batch: usize, num_tokens: usize) -> anyhow::Result<Duration> {
    let vocab_size = lanes.model().config().vocab_size;
    lanes.clear();
    for lane in 0..batch {
        let prompt = random_tokens(DECODE_PROMPT, vocab_size, 1 + lane as u64);
        lanes.feed(lane, &prompt, DECODE_PROMPT, |_, _| {})?;
    }
    let mut tokens = random_tokens(batch, vocab_size, 0);
    let begun = Instant::now();
    for _ in 0..num_tokens {
        lanes.decode(&mut tokens)?;
    }
    Ok(begun.elapsed())
}

fn median_of(arguments: &Bench, mut run: impl FnMut() -> anyhow::Result<Duration>) -> anyhow::Result<Duration> {
    for _ in 0..arguments.warmup {
        run()?;
    }
    let mut times = (0..arguments.repeat.get()).map(|_| run()).collect::<anyhow::Result<Vec<_>>>()?;
    Ok(median(&mut times))
}

/// Returns the middle one, of an even number the mean of the middle two. **Panics**: if there are none.
fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    let middle = times.len() / 2;
    if times.len() % 2 == 1 { times[middle] } else { (times[middle - 1] + times[middle]) / 2 }
}

/// Returns tokens of a fixed pattern. **Source**: the SplitMix64 generator of Steele, Lea and Flood (OOPSLA 2014).
fn random_tokens(num_tokens: usize, vocab_size: usize, stream: u64) -> Vec<u32> {
    let mut state = SEED ^ stream.wrapping_mul(0xD6E8_FEB8_6659_FD93);
    let next = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ (mixed >> 31)) % vocab_size as u64) as u32
    };
    std::iter::repeat_with(next).take(num_tokens).collect()
}

impl Measured {
    fn print(&self, as_json: bool) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        if as_json {
            writeln!(out, "{}", serde_json::to_string(self)?)?;
            return Ok(());
        }
        let Measured { model, dtype, kv_dtype, isa, threads, version, repeat, load_ms, .. } = self;
        writeln!(
            out,
            "{model}, {dtype}, KV {kv_dtype}, {isa}, {threads} threads, bespoke-engine {version}, loaded in {load_ms:.0} ms"
        )?;
        writeln!(out, "{:<28} {:>12}", "median of ".to_owned() + &repeat.to_string(), "tokens/s")?;
        writeln!(out, "{:<28} {:>12.1}", format!("prefill {}", self.prompt_tokens), self.prefill_tokens_per_s)?;
        for Decode { batch, tokens_per_s } in &self.decode {
            let name = format!("decode {}, batch {batch}", self.generate_tokens);
            writeln!(out, "{name:<28} {tokens_per_s:>12.1}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let of = |times: &[u64]| median(&mut times.iter().copied().map(Duration::from_millis).collect::<Vec<_>>());
        assert_eq!(of(&[5]), Duration::from_millis(5));
        assert_eq!(of(&[9, 1, 4]), Duration::from_millis(4));
        assert_eq!(of(&[9, 1, 4, 6]), Duration::from_millis(5));
    }

    #[test]
    fn random_tokens_repeat_and_stay_in_the_vocabulary() {
        let tokens = random_tokens(1000, 300, 7);
        assert_eq!(tokens, random_tokens(1000, 300, 7));
        assert_ne!(tokens, random_tokens(1000, 300, 8));
        assert!(tokens.iter().all(|&token| token < 300));
        assert!((0..300).filter(|token| tokens.contains(token)).count() > 200);
    }
}
