//! Overload: a server at its capacity, then with more than that, and whether those it takes in feel the difference.
//!
//! The capacity is what comes out with as many clients as the server takes in at once, running and waiting; each sends its
//! next request when the last is answered. Then requests come at a multiple of the rate that this gave.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use bespoke_client::{Client, ClientError, Code, Event, Generate, Prompt, PromptSpec, Request, Sampling, Template};
use clap::Args;
use futures::{StreamExt, future::join_all};
use serde::Serialize;

use crate::{random::Random, report::Milliseconds};

/// The stream of random numbers of the arrival times.
const ARRIVAL_STREAM: u64 = u64::MAX - 2;
/// Requests that one connection carries; more get another one.
const STREAMS_PER_CONNECTION: usize = 64;

/// What to send where.
#[derive(Args, Clone, Debug, Serialize)]
pub struct OverloadOptions {
    /// Address of the server. Give it a queue that is short: what waits is accepted.
    #[arg(long, value_name = "URI", default_value = "http://127.0.0.1:50051")]
    pub target: String,
    /// Seconds at capacity.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub capacity_seconds: u64,
    /// Seconds beyond it.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub seconds: u64,
    /// How many times its capacity the server is asked for.
    #[arg(long, default_value_t = 2.0)]
    pub factor: f64,
    /// Length of an answer, in tokens.
    #[arg(long, value_name = "TOKENS", default_value_t = 64)]
    pub new_tokens: u32,
    /// Seed of arrival times.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// What came out.
#[derive(Clone, Debug, Serialize)]
pub struct OverloadReport {
    /// What was asked for.
    #[serde(flatten)]
    pub options: OverloadOptions,
    /// At capacity.
    pub capacity: Phase,
    /// Beyond it.
    pub overload: Phase,
    /// The p99 of the time to the first token beyond capacity over that at it; the goal is at most 1.5.
    pub first_token_p99_ratio: f64,
    /// The same for whole answers.
    pub answer_p99_ratio: f64,
}

/// One part of the run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Phase {
    /// Requests that were answered to their ends.
    pub num_finished: usize,
    /// Requests that ended in time, over time. **Units**: requests a second.
    pub finished_per_s: f64,
    /// From the start of a request to its first token, of those that finished.
    pub first_token_ms: Milliseconds,
    /// From the start of a request to its end, of those that finished.
    pub answer_ms: Milliseconds,
    /// Requests that were refused with RESOURCE_EXHAUSTED.
    pub num_refused: usize,
    /// How many of them were told when to come back.
    pub num_refused_with_retry: usize,
    /// From the start of a request to its refusal.
    pub refusal_ms: Milliseconds,
    /// What failed in another way, by code; there should be none.
    pub failures: BTreeMap<String, usize>,
}

/// How one request ended.
enum Outcome {
    Finished { first: Duration, whole: Duration },
    Refused { after: Duration, with_retry: bool },
    Failed(String),
}

/// Runs both parts.
///
/// **Errors**: options out of range, a server that cannot be reached or answers nothing at capacity.
pub async fn overload(options: &OverloadOptions) -> anyhow::Result<OverloadReport> {
    ensure!(options.factor > 0.0 && options.factor.is_finite(), "the factor must be above 0");
    let first = connect(options).await?;
    let limits = first.server_info().await?.limits.context("the server tells no limits")?;
    let num_places = (limits.sequences_max + limits.waiting_max) as usize;
    let mut clients = vec![first];
    while clients.len() * STREAMS_PER_CONNECTION < num_places * 2 {
        clients.push(connect(options).await?);
    }
    let begun = Instant::now();
    let until = begun + Duration::from_secs(options.capacity_seconds);
    let outcomes = closed(options, &clients, num_places, until).await;
    let capacity = Phase::new(&outcomes, begun.elapsed());
    ensure!(capacity.num_finished > 0, "the server answers nothing: {:?}", capacity.failures);
    let begun = Instant::now();
    let until = begun + Duration::from_secs(options.seconds);
    let outcomes = open(options, &clients, capacity.finished_per_s * options.factor, until).await;
    let overload = Phase::new(&outcomes, begun.elapsed());
    Ok(OverloadReport {
        options: options.clone(),
        first_token_p99_ratio: overload.first_token_ms.p99 / capacity.first_token_ms.p99,
        answer_p99_ratio: overload.answer_ms.p99 / capacity.answer_ms.p99,
        capacity,
        overload,
    })
}

async fn connect(options: &OverloadOptions) -> anyhow::Result<Client> {
    Client::connect(&options.target).await.with_context(|| format!("cannot reach {}", options.target))
}

async fn closed(options: &OverloadOptions, clients: &[Client], num: usize, until: Instant) -> Vec<Outcome> {
    let tasks = (0..num).map(|place| {
        let (client, new_tokens) = (clients[place % clients.len()].clone(), options.new_tokens);
        tokio::spawn(async move {
            let mut outcomes = Vec::new();
            while Instant::now() < until {
                outcomes.push(request(&client, &prompt(place, outcomes.len()), new_tokens).await);
            }
            outcomes
        })
    });
    let outcomes = join_all(tasks.collect::<Vec<_>>()).await;
    outcomes.into_iter().flat_map(|outcomes| outcomes.expect("invariant: a client does not panic")).collect()
}

async fn open(options: &OverloadOptions, clients: &[Client], rate: f64, until: Instant) -> Vec<Outcome> {
    let mut random = Random::new(options.seed, ARRIVAL_STREAM);
    let clients: Arc<[Client]> = clients.into();
    let mut due = Instant::now();
    let mut tasks = Vec::new();
    while due < until {
        tokio::time::sleep_until(due.into()).await;
        let (clients, place, new_tokens) = (clients.clone(), tasks.len(), options.new_tokens);
        tasks.push(tokio::spawn(async move {
            request(&clients[place % clients.len()], &prompt(place, usize::MAX), new_tokens).await
        }));
        due += Duration::from_secs_f64(random.exponential(rate));
    }
    let outcomes = join_all(tasks).await;
    outcomes.into_iter().map(|outcome| outcome.expect("invariant: a request does not panic")).collect()
}

/// A prompt that shares its beginning with the others, as those of one product do.
fn prompt(place: usize, round: usize) -> String {
    let shared =
        "You answer questions about cooking. Be brief and friendly, and give quantities where they help. ".repeat(4);
    format!("{shared}Question {place}.{round}: how long do I cook {} eggs?", place % 12 + 1)
}

async fn request(client: &Client, prompt: &str, new_tokens: u32) -> Outcome {
    let begun = Instant::now();
    match answer(client, prompt, new_tokens, begun).await {
        Ok(first) => Outcome::Finished { first, whole: begun.elapsed() },
        Err(error) if error.code() == Some(Code::ResourceExhausted) => {
            Outcome::Refused { after: begun.elapsed(), with_retry: error.retry_after().is_some() }
        }
        Err(error) => Outcome::Failed(error.code().map_or_else(|| error.to_string(), |code| format!("{code:?}"))),
    }
}

/// Reads an answer to its end; returns the time to its first token.
async fn answer(client: &Client, prompt: &str, new_tokens: u32, begun: Instant) -> Result<Duration, ClientError> {
    let spec = PromptSpec { template: Some(Template::None), ..PromptSpec::new(Prompt::Text(prompt.to_owned())) };
    let mut generate = Generate::new(spec);
    generate.sampling = Sampling::greedy();
    generate.max_new_tokens = new_tokens;
    generate.stop.ignore_end = true;
    let request = Request::try_from(generate).map_err(ClientError::Response)?;
    let mut events = client.generate_stream(&request).await?;
    let mut first = None;
    while let Some(event) = events.next().await {
        if matches!(event?, Event::Delta(_)) {
            first.get_or_insert_with(|| begun.elapsed());
        }
    }
    Ok(first.unwrap_or_else(|| begun.elapsed()))
}

impl Phase {
    fn new(outcomes: &[Outcome], time: Duration) -> Self {
        let mut phase = Self::default();
        let (mut firsts, mut wholes, mut refusals) = (Vec::new(), Vec::new(), Vec::new());
        for outcome in outcomes {
            match outcome {
                Outcome::Finished { first, whole } => {
                    firsts.push(*first);
                    wholes.push(*whole);
                }
                Outcome::Refused { after, with_retry } => {
                    refusals.push(*after);
                    phase.num_refused_with_retry += usize::from(*with_retry);
                }
                Outcome::Failed(code) => *phase.failures.entry(code.clone()).or_default() += 1,
            }
        }
        phase.num_finished = firsts.len();
        phase.num_refused = refusals.len();
        phase.finished_per_s = firsts.len() as f64 / time.as_secs_f64().max(f64::EPSILON);
        phase.first_token_ms = Milliseconds::of(firsts.into_iter());
        phase.answer_ms = Milliseconds::of(wholes.into_iter());
        phase.refusal_ms = Milliseconds::of(refusals.into_iter());
        phase
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_counted_by_how_they_ended() {
        let ms = Duration::from_millis;
        let outcomes = [
            Outcome::Finished { first: ms(10), whole: ms(50) },
            Outcome::Finished { first: ms(20), whole: ms(70) },
            Outcome::Refused { after: ms(1), with_retry: true },
            Outcome::Refused { after: ms(3), with_retry: false },
            Outcome::Failed("Unavailable".to_owned()),
        ];
        let phase = Phase::new(&outcomes, Duration::from_secs(2));
        assert_eq!((phase.num_finished, phase.num_refused, phase.num_refused_with_retry), (2, 2, 1));
        assert_eq!(phase.finished_per_s, 1.0);
        assert_eq!((phase.first_token_ms.p99, phase.answer_ms.max, phase.refusal_ms.max), (20.0, 70.0, 3.0));
        assert_eq!(phase.failures["Unavailable"], 1);
    }
}
