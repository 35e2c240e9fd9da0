//! A soak: clients that ask for random lengths with random priorities and leave when they like, for as long as wished, while the
//! server's memory is watched. At the end nothing may be left in the server.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use bespoke_client::{
    Client, ClientError, Event, Generate, Priority, Prompt, PromptSpec, Request, SamplingParams, Template,
};
use clap::Args;
use futures::{StreamExt, future::join_all};
use serde::Serialize;

use crate::{prompts::words, random::Random};

/// The longest answer, in tokens.
const NEW_TOKENS_MAX: usize = 128;
/// Of so many requests one is left early.
const CANCELS_ONE_IN: usize = 5;
/// Prompts share their beginnings, a third of the longest, with those of the same topic.
const TOPICS: usize = 8;
/// How long the server may take to become empty at the end.
const EMPTY_WITHIN: Duration = Duration::from_secs(30);
const SAMPLE_EVERY: Duration = Duration::from_secs(5);

/// What to do to which server.
#[derive(Args, Clone, Debug)]
pub struct SoakOptions {
    /// Address of the server, which speaks bespoke.v1.
    #[arg(long, value_name = "URI", default_value = "http://127.0.0.1:50051")]
    pub target: String,
    /// Process of the server, whose memory is watched. Default: none.
    #[arg(long)]
    pub pid: Option<u32>,
    /// Clients, each with a connection of its own.
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub clients: usize,
    /// How long new requests are sent, in seconds.
    #[arg(long, default_value_t = 1800)]
    pub seconds: u64,
    /// How long memory may still grow, in seconds.
    #[arg(long, default_value_t = 300)]
    pub warmup_seconds: u64,
    /// The longest prompt, in words, at least 3.
    #[arg(long, value_name = "WORDS", default_value_t = 300)]
    pub prompt_words_max: usize,
    /// Seed of everything random.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct SoakReport {
    /// Requests that were answered to their end, and that were left early.
    pub num_finished: usize,
    /// See above.
    pub num_cancelled: usize,
    /// Tokens that arrived.
    pub num_tokens: usize,
    /// Other ends, by their codes.
    pub failures: BTreeMap<String, usize>,
    /// Resident memory of the server at the end of the warm-up, in bytes; absent without a process or past its end.
    pub rss_warm_bytes: Option<u64>,
    /// The most after that.
    pub rss_max_bytes: Option<u64>,
    /// At the end.
    pub rss_end_bytes: Option<u64>,
    /// KV blocks, running and waiting requests that are left when all clients have gone; 0 is right.
    pub left: u64,
}

#[derive(Default)]
struct Counts {
    finished: usize,
    cancelled: usize,
    tokens: usize,
    failures: BTreeMap<String, usize>,
}

/// Runs the soak.
///
/// **Errors**: a server that cannot be reached, or that still holds something half a minute after the last client has gone.
pub async fn soak(options: &SoakOptions) -> anyhow::Result<SoakReport> {
    ensure!(options.clients > 0, "clients must be at least 1");
    ensure!(options.prompt_words_max >= 3, "prompt_words_max must be at least 3");
    let words_max = options.prompt_words_max;
    let watcher = Client::connect(&options.target).await.with_context(|| format!("cannot reach {}", options.target))?;
    let begun = Instant::now();
    let until = begun + Duration::from_secs(options.seconds);
    let clients = (0..options.clients as u64).map(|client| {
        let (target, random) = (options.target.clone(), Random::new(options.seed, client));
        tokio::spawn(async move { run_client(&Client::connect(&target).await?, random, words_max, until).await })
    });
    let clients: Vec<_> = clients.collect();
    let mut memory = Vec::new();
    while Instant::now() < until {
        tokio::time::sleep(SAMPLE_EVERY.min(until.saturating_duration_since(Instant::now()))).await;
        memory.extend(options.pid.map(rss).transpose()?.map(|bytes| (begun.elapsed(), bytes)));
    }
    let mut counts = Counts::default();
    for client in join_all(clients).await {
        let client = client.context("a client panicked")??;
        counts.finished += client.finished;
        counts.cancelled += client.cancelled;
        counts.tokens += client.tokens;
        client.failures.into_iter().for_each(|(code, count)| *counts.failures.entry(code).or_default() += count);
    }
    let left = wait_until_empty(&watcher).await?;
    let warm: Vec<u64> = memory
        .iter()
        .filter(|(at, _)| *at >= Duration::from_secs(options.warmup_seconds))
        .map(|&(_, bytes)| bytes)
        .collect();
    Ok(SoakReport {
        num_finished: counts.finished,
        num_cancelled: counts.cancelled,
        num_tokens: counts.tokens,
        failures: counts.failures,
        rss_warm_bytes: warm.first().copied(),
        rss_max_bytes: warm.iter().copied().max(),
        rss_end_bytes: options.pid.map(rss).transpose()?,
        left,
    })
}

async fn run_client(client: &Client, mut random: Random, words_max: usize, until: Instant) -> anyhow::Result<Counts> {
    let mut counts = Counts::default();
    while Instant::now() < until {
        let leaves_after = (random.below(CANCELS_ONE_IN) == 0).then(|| random.below(20));
        match ask(client, &request(&mut random, words_max)?, leaves_after, &mut counts.tokens).await {
            Ok(true) => counts.finished += 1,
            Ok(false) => counts.cancelled += 1,
            Err(ClientError::Status { code, .. }) => *counts.failures.entry(format!("{code:?}")).or_default() += 1,
            Err(error) => *counts.failures.entry(error.to_string()).or_default() += 1,
        }
    }
    Ok(counts)
}

/// Reads an answer, or leaves it after some events. Returns whether it came to its end.
async fn ask(
    client: &Client,
    request: &Request,
    leaves_after: Option<usize>,
    num_tokens: &mut usize,
) -> Result<bool, ClientError> {
    let mut events = client.generate_stream(request).await?;
    let mut num_events = 0;
    while let Some(event) = events.next().await {
        if let Event::Delta(delta) = event? {
            *num_tokens += delta.token_ids.len();
        }
        num_events += 1;
        if leaves_after.is_some_and(|limit| num_events > limit) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn request(random: &mut Random, words_max: usize) -> anyhow::Result<Request> {
    let num_shared = words_max / 3;
    let topic = words(num_shared, &mut Random::new(random.below(TOPICS) as u64, 0));
    let text = topic + &words(1 + random.below(words_max - num_shared), random);
    let spec = PromptSpec { template: Some(Template::None), ..PromptSpec::new(Prompt::Text(text)) };
    let mut generate = Generate::new(spec);
    let temperature = if random.below(2) == 0 { 0.0 } else { 0.9 };
    generate.sampling =
        SamplingParams { temperature, seed: Some(random.bits()), ..SamplingParams::default() }.try_into()?;
    generate.max_new_tokens = 1 + random.below(NEW_TOKENS_MAX) as u32;
    generate.n = 1 + u32::from(random.below(8) == 0);
    generate.draft_tokens_max = if random.below(4) == 0 { 4 } else { 0 };
    generate.priority = Priority::new(random.below(5) as i32 - 2)?;
    generate.stop.ignore_end = true;
    generate.spec.prefix_cache.off = random.below(10) == 0;
    Ok(Request::try_from(generate)?)
}

async fn wait_until_empty(client: &Client) -> anyhow::Result<u64> {
    let begun = Instant::now();
    loop {
        let load = client.server_info().await?.load.unwrap_or_default();
        let left = u64::from(load.num_running) + u64::from(load.num_waiting) + u64::from(load.num_kv_blocks_used);
        if left == 0 {
            return Ok(0);
        }
        if begun.elapsed() > EMPTY_WITHIN {
            bail!("the server still holds something when all clients have gone: {load:?}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Reads the resident memory of a process. **Units**: bytes.
fn rss(pid: u32) -> anyhow::Result<u64> {
    let file = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS: has it ended?")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().context("VmRSS is no number")?;
    Ok(kib << 10)
}
