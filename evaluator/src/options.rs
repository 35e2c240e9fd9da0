//! Options that several commands share, and what they become.

use std::{path::PathBuf, time::Duration};

use anyhow::{Result, bail, ensure};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::{
    batch::{BatchSettings, Prices},
    case::Settings,
    provider::{Endpoint, ProviderName},
};

/// Which model answers, and how it is asked.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Model")]
pub(crate) struct ModelOptions {
    /// Who serves the model.
    #[arg(long, value_enum, default_value = "engine")]
    pub(crate) provider: ProviderName,
    /// Address of the service. Default: the provider's own; http://127.0.0.1:50051 for the engine.
    #[arg(long, value_name = "URL")]
    pub(crate) base_url: Option<String>,
    /// Name of the model. The engine serves one, whose name must contain this where it is given.
    #[arg(long)]
    pub(crate) model: Option<String>,
    /// Requests under way at once.
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub(crate) concurrency: usize,
    /// Requests a minute, at most. Default: no limit.
    #[arg(long, value_name = "N")]
    pub(crate) requests_per_minute: Option<u64>,
    /// Tokens a minute, at most, prompts and longest answers together, estimated. Default: no limit.
    #[arg(long, value_name = "N")]
    pub(crate) tokens_per_minute: Option<u64>,
    /// Let the engine compute each prompt anew instead of sharing what prompts have in common, as for a timing without it.
    /// Our engine only.
    #[arg(long)]
    pub(crate) no_prefix_cache: bool,
    /// Seconds that one request may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 600.0)]
    pub(crate) timeout_s: f64,
    /// How often a request that failed is tried again, with growing waits or those that the service asks for.
    #[arg(long, value_name = "N", default_value_t = 6)]
    pub(crate) retries: usize,
    /// Randomness of the answers; 0 always takes the most likely token.
    #[arg(long, default_value_t = 0.0)]
    pub(crate) temperature: f32,
    /// Makes random answers repeatable, where the provider takes a seed (Anthropic takes none).
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// The longest answer, in tokens. Default: what the command needs.
    #[arg(long, value_name = "TOKENS")]
    pub(crate) max_new_tokens: Option<u32>,
    /// Price of a million tokens of prompts, in US dollars.
    #[arg(long, value_name = "USD", default_value_t = 0.0)]
    pub(crate) price_input: f64,
    /// Price of a million tokens of answers, in US dollars.
    #[arg(long, value_name = "USD", default_value_t = 0.0)]
    pub(crate) price_output: f64,
    /// Stops the run before it costs more than this many US dollars, what earlier sessions of the run cost included.
    #[arg(long, value_name = "USD")]
    pub(crate) budget: Option<f64>,
}

impl ModelOptions {
    /// Checks what clap cannot.
    ///
    /// **Errors**: the option that is out of its range.
    pub(crate) fn check(&self) -> Result<()> {
        ensure!(self.concurrency >= 1, "`--concurrency` is 0, must be at least 1");
        let is_engine = self.provider == ProviderName::Engine;
        ensure!(is_engine || !self.no_prefix_cache, "`--no-prefix-cache` is of `--provider engine` only");
        ensure!(self.timeout_s > 0.0 && self.timeout_s.is_finite(), "`--timeout-s` must be above 0");
        ensure!((0.0..=100.0).contains(&self.temperature), "`--temperature` must be in 0..=100");
        ensure!(self.price_input >= 0.0 && self.price_output >= 0.0, "prices must not be below 0");
        if self.budget.is_some() && self.price_input + self.price_output == 0.0 {
            bail!("`--budget` needs `--price-input` and `--price-output`: prices change too often to be built in");
        }
        Ok(())
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint {
            provider: self.provider,
            base_url: self.base_url.clone(),
            model: self.model.clone(),
            no_prefix_cache: self.no_prefix_cache,
            timeout: Duration::from_secs_f64(self.timeout_s),
        }
    }

    pub(crate) fn batch_settings(&self) -> BatchSettings {
        BatchSettings {
            concurrency: self.concurrency,
            requests_per_minute: self.requests_per_minute,
            tokens_per_minute: self.tokens_per_minute,
            num_retries: self.retries,
            prices: Prices { input_usd: self.price_input, output_usd: self.price_output },
            budget_usd: self.budget,
        }
    }

    /// Returns how answers are made, with what the command needs as default.
    pub(crate) fn settings(&self, max_new_tokens: u32) -> Settings {
        Settings {
            max_new_tokens: self.max_new_tokens.unwrap_or(max_new_tokens),
            min_new_tokens: 0,
            temperature: self.temperature,
            seed: self.seed,
            stop: Vec::new(),
        }
    }

    /// Whether an answer can be started for the model.
    pub(crate) fn can_start_answer(&self) -> bool {
        self.provider == ProviderName::Engine
    }
}

/// Where a run is kept, and whether it is run at all.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Run")]
pub(crate) struct RunOptions {
    /// Folder of the run. One that holds a part of the same run goes on. Default: results/<dataset>/<model>/<what it is>.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Empty the folder and start anew.
    #[arg(long)]
    pub(crate) force: bool,
    /// Say how many requests, tokens and dollars the run would take, and call nobody.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Folder whose prompts replace those built in: <dataset>/<name> or <name>, as in evaluator/prompts.
    #[arg(long, value_name = "DIR")]
    pub(crate) prompt_dir: Option<PathBuf>,
}

/// Which rows of a file are taken.
#[derive(Args, Clone, Debug, Serialize)]
#[command(next_help_heading = "Rows")]
pub(crate) struct SelectOptions {
    /// Take at most this many rows. A finished run goes on with a larger limit.
    #[arg(long, value_name = "N")]
    #[serde(skip)]
    pub(crate) limit: Option<usize>,
    /// Take the rows of --limit at random with this seed, instead of the first ones.
    #[arg(long, value_name = "SEED")]
    pub(crate) sample: Option<u64>,
    /// Take one part of the rows: 1/2 is the first half; halves, quarters and eighths.
    #[arg(long, value_name = "PART/PARTS")]
    pub(crate) partition: Option<Partition>,
}

impl SelectOptions {
    /// Returns the places of the rows to take, in their order.
    pub(crate) fn places(&self, num_rows: usize) -> Vec<usize> {
        let range = self.partition.map_or(0..num_rows, |partition| partition.range(num_rows));
        let mut places: Vec<usize> = range.collect();
        if let Some(seed) = self.sample {
            fastrand::Rng::with_seed(seed).shuffle(&mut places);
        }
        places.truncate(self.limit.unwrap_or(usize::MAX));
        places.sort_unstable();
        places
    }
}

/// One part of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Partition {
    /// From 1.
    part: usize,
    num_parts: usize,
}

impl Partition {
    fn range(self, num_rows: usize) -> std::ops::Range<usize> {
        let start = |part: usize| part * num_rows / self.num_parts;
        start(self.part - 1)..start(self.part)
    }
}

impl std::str::FromStr for Partition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a part such as 1/2, 3/4 or 8/8");
        let (part, num_parts) = text.split_once('/').ok_or_else(wrong)?;
        let (part, num_parts) = (part.parse().map_err(|_| wrong())?, num_parts.parse().map_err(|_| wrong())?);
        let known = matches!(num_parts, 1 | 2 | 4 | 8) && (1..=num_parts).contains(&part);
        if known { Ok(Self { part, num_parts }) } else { Err(wrong()) }
    }
}

/// How a judge gives its verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum VerdictMode {
    /// It writes why, then the verdict.
    Feedback,
    /// It writes the verdict alone.
    Short,
    /// The verdict that the model thinks more likely, without writing it; our engine only.
    Logprob,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn select(limit: Option<usize>, sample: Option<u64>, partition: Option<&str>) -> SelectOptions {
        SelectOptions { limit, sample, partition: partition.map(|text| text.parse().unwrap()) }
    }

    #[test]
    fn rows_are_taken_as_asked_for() {
        assert_eq!(select(Some(2), None, None).places(5), [0, 1]);
        assert_eq!(select(None, None, Some("2/2")).places(5), [2, 3, 4]);
        let eighths: Vec<usize> =
            (1..=8).flat_map(|n| select(None, None, Some(&format!("{n}/8"))).places(300)).collect();
        assert_eq!(eighths, (0..300).collect::<Vec<_>>());
        assert!(
            "0/2".parse::<Partition>().is_err()
                && "1/3".parse::<Partition>().is_err()
                && "x".parse::<Partition>().is_err()
        );
    }

    #[test]
    fn a_larger_sample_holds_the_smaller_one() {
        let (small, large) = (select(Some(5), Some(3), None).places(100), select(Some(20), Some(3), None).places(100));
        assert!(small.iter().all(|place| large.contains(place)) && small.is_sorted() && small != [0, 1, 2, 3, 4]);
        assert_ne!(small, select(Some(5), Some(4), None).places(100));
    }
}
