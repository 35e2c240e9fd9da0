//! A run of requests: in a closed loop, where each client waits for its answer, or open, at a rate that no answer slows.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use futures::future::join_all;
use serde::Serialize;

use crate::{
    prompts::{prompts, warmup_prompt},
    random::Random,
    report::Report,
    target::{Answer, Failure, Protocol, Target},
};

/// How long one request may take.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(600);
/// The stream of random numbers of the arrival times, away from those of the prompts.
const ARRIVAL_STREAM: u64 = u64::MAX - 1;

/// When requests are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Each client sends its next request when the last is answered.
    #[default]
    Closed,
    /// Requests come at random times, on average --rate of them a second.
    Open,
}

/// What to send where.
#[derive(Args, Clone, Debug, Serialize)]
pub struct LoadOptions {
    /// Address of the server.
    #[arg(long, value_name = "URI", default_value = "http://127.0.0.1:50051")]
    pub target: String,
    /// What the server speaks.
    #[arg(long, default_value = "grpc")]
    pub protocol: Protocol,
    /// Clients, each with a connection of its own.
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub clients: usize,
    /// Requests of all clients together.
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub requests: usize,
    /// Length of a prompt, in tokens.
    #[arg(long, value_name = "TOKENS", default_value_t = 200)]
    pub prompt_tokens: usize,
    /// How much of its beginning a prompt shares with all others, in tokens.
    #[arg(long, value_name = "TOKENS", default_value_t = 150)]
    pub shared_tokens: usize,
    /// Length of an answer, in tokens.
    #[arg(long, value_name = "TOKENS", default_value_t = 64)]
    pub new_tokens: u32,
    /// When requests are sent.
    #[arg(long, default_value = "closed")]
    pub mode: Mode,
    /// Requests a second, for the mode open.
    #[arg(long, required_if_eq("mode", "open"))]
    pub rate: Option<f64>,
    /// Seed of prompts and arrival times.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            target: "http://127.0.0.1:50051".to_owned(),
            protocol: Protocol::Grpc,
            clients: 16,
            requests: 128,
            prompt_tokens: 200,
            shared_tokens: 150,
            new_tokens: 64,
            mode: Mode::Closed,
            rate: None,
            seed: 1,
        }
    }
}

/// Sends one request to warm the server up, then the load, and sums up. Failed requests are counted, not errors.
///
/// **Errors**: options out of range, a server that cannot be reached or fails at the first request.
pub async fn run(options: &LoadOptions) -> anyhow::Result<Report> {
    ensure!(options.clients > 0 && options.requests > 0, "clients and requests must be at least 1");
    ensure!(options.shared_tokens <= options.prompt_tokens, "a prompt cannot share more tokens than it has");
    ensure!(options.rate.is_none_or(|rate| rate > 0.0 && rate.is_finite()), "the rate must be above 0");
    let mut targets = Vec::new();
    for _ in 0..options.clients {
        let target = Target::connect(options.protocol, &options.target).await;
        targets.push(target.with_context(|| format!("cannot reach {}", options.target))?);
    }
    let prompts = prompts(options, &targets[0]).await?;
    let warmup = warmup_prompt(options, &targets[0]).await?;
    let warmed = request(&targets[0], &warmup, options.new_tokens, Instant::now()).await;
    warmed.map_err(|failure| anyhow::anyhow!("the first request failed: {} ({})", failure.message, failure.code))?;
    let begun = Instant::now();
    let results = match (options.mode, options.rate) {
        (Mode::Open, Some(rate)) => open(options, &targets, prompts, rate).await,
        _ => closed(options, targets, prompts).await,
    };
    Ok(Report::new(options, &results, begun.elapsed()))
}

async fn closed(options: &LoadOptions, targets: Vec<Target>, prompts: Vec<String>) -> Vec<Result<Answer, Failure>> {
    let prompts = Arc::new(prompts);
    let next = Arc::new(AtomicUsize::new(0));
    let new_tokens = options.new_tokens;
    let clients = targets.into_iter().map(|target| {
        let (prompts, next) = (prompts.clone(), next.clone());
        tokio::spawn(async move {
            let mut results = Vec::new();
            while let Some(prompt) = prompts.get(next.fetch_add(1, Ordering::Relaxed)) {
                results.push(request(&target, prompt, new_tokens, Instant::now()).await);
            }
            results
        })
    });
    let results = join_all(clients.collect::<Vec<_>>()).await;
    results.into_iter().flat_map(|results| results.expect("invariant: a client does not panic")).collect()
}

/// A request is timed from when it was due, so a client that lags hides no waiting.
async fn open(
    options: &LoadOptions,
    targets: &[Target],
    prompts: Vec<String>,
    rate: f64,
) -> Vec<Result<Answer, Failure>> {
    let mut random = Random::new(options.seed, ARRIVAL_STREAM);
    let new_tokens = options.new_tokens;
    let mut due = Instant::now();
    let mut running = Vec::new();
    for (prompt, target) in prompts.into_iter().zip(targets.iter().cycle().cloned()) {
        tokio::time::sleep_until(due.into()).await;
        running.push(tokio::spawn(async move { request(&target, &prompt, new_tokens, due).await }));
        due += Duration::from_secs_f64(random.exponential(rate));
    }
    let results = join_all(running).await;
    results.into_iter().map(|result| result.expect("invariant: a request does not panic")).collect()
}

async fn request(target: &Target, prompt: &str, new_tokens: u32, start: Instant) -> Result<Answer, Failure> {
    let answered = tokio::time::timeout(REQUEST_TIME_MAX, target.generate(prompt, new_tokens, start)).await;
    answered.unwrap_or_else(|_| Err(Failure::new("timeout", "no end in time")))
}
