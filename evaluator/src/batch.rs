//! The batch: runs the tasks of a stage against a provider and keeps every answer.
//!
//! Place in the flow: a stage makes [`Task`]s, the batch runs those whose rows are not there yet, a bounded number at a time,
//! with limits, retries and a budget, and appends a row the moment an answer is there. Equal requests are sent once.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use backon::{ExponentialBuilder, Retryable};
use futures::{StreamExt, stream};
use serde_json::{Map, Value};
use tokio::sync::OnceCell;

use crate::{
    case::{Case, Completion},
    error::CallError,
    limits::Limits,
    progress::Progress,
    provider::Provider,
    run_folder::{Record, RunFolder, UsageTotals, key_of},
};

/// One row to be made.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    /// Names the row within the run.
    pub(crate) key: String,
    pub(crate) case: Case,
    /// Continuations to score instead of generating; empty: generate.
    pub(crate) options: Vec<String>,
    /// What else the row holds.
    pub(crate) fields: Map<String, Value>,
}

/// How a batch is run.
#[derive(Clone, Debug)]
pub(crate) struct BatchSettings {
    pub(crate) concurrency: usize,
    pub(crate) requests_per_minute: Option<u64>,
    pub(crate) tokens_per_minute: Option<u64>,
    pub(crate) num_retries: usize,
    pub(crate) prices: Prices,
    pub(crate) budget_usd: Option<f64>,
}

/// Prices, in US dollars for a million tokens.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Prices {
    pub(crate) input_usd: f64,
    pub(crate) output_usd: f64,
}

impl Prices {
    /// Returns the price of a call.
    pub(crate) fn cost_usd(&self, prompt_tokens: u64, completion_tokens: u64) -> f64 {
        (prompt_tokens as f64 * self.input_usd + completion_tokens as f64 * self.output_usd) / 1e6
    }
}

/// The first wait before a retry; each is twice the one before, plus up to as much again by chance.
const BACKOFF_FIRST: Duration = Duration::from_millis(500);
/// No wait is longer, unless the server asks for it.
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// After so many failed rows in a row, retries included, the provider is taken for dead.
const FAILURES_MAX: usize = 5;
/// After so many refused requests before any answer, the requests are taken for wrong in the same way.
const REJECTIONS_MAX: usize = 5;

/// What a batch needs while it runs.
pub(crate) struct Batch<'a> {
    provider: &'a Provider,
    settings: &'a BatchSettings,
    limits: Limits,
    model: String,
    /// One cell for each distinct request, filled once: the response cache.
    answers: Mutex<HashMap<String, Arc<OnceCell<Completion>>>>,
    spent_usd: Mutex<f64>,
}

impl<'a> Batch<'a> {
    /// Prepares a batch; rows that are there already fill the cache and count for the budget.
    pub(crate) fn new(provider: &'a Provider, settings: &'a BatchSettings, rows: &[Record]) -> Self {
        let mut answers = HashMap::new();
        for row in rows {
            let Some(digest) = row.get("request").and_then(Value::as_str) else { continue };
            if let Ok(completion) = serde_json::from_value::<Completion>(Value::Object(row.clone())) {
                answers.insert(digest.to_owned(), Arc::new(OnceCell::from(completion)));
            }
        }
        let identity = serde_json::to_string(&provider.identity()).expect("invariant: an identity is JSON");
        Self {
            provider,
            settings,
            limits: Limits::new(settings.requests_per_minute, settings.tokens_per_minute),
            model: identity,
            answers: Mutex::new(answers),
            spent_usd: Mutex::new(usage_of(rows, &settings.prices).cost_usd),
        }
    }

    /// Runs what is missing. Each row goes through `annotate` before it is kept.
    ///
    /// **Errors**: Ctrl-C, a fatal failure, the budget, rows that failed to the last retry. All rows that came are kept.
    pub(crate) async fn run(
        &self,
        folder: &mut RunFolder,
        tasks: &[Task],
        annotate: fn(&mut Record),
        progress: &Progress,
    ) -> Result<()> {
        let begun = Instant::now();
        let ended = self.run_missing(folder, tasks, annotate, progress).await;
        folder.manifest.wall_ms += begun.elapsed().as_millis() as u64;
        folder.manifest.usage = usage_of(&folder.rows, &self.settings.prices);
        folder.write_manifest()?;
        ended
    }

    async fn run_missing(
        &self,
        folder: &mut RunFolder,
        tasks: &[Task],
        annotate: fn(&mut Record),
        progress: &Progress,
    ) -> Result<()> {
        let there: HashSet<String> = folder.rows.iter().map(|row| key_of(row).to_owned()).collect();
        let missing: Vec<&Task> = tasks.iter().filter(|task| !there.contains(&task.key)).collect();
        progress.start(tasks.len(), tasks.len() - missing.len());
        let calls = stream::iter(missing).map(|task| async move { (task, self.perform(task).await) });
        let mut calls = calls.buffer_unordered(self.settings.concurrency.max(1));
        let interrupt = tokio::signal::ctrl_c();
        tokio::pin!(interrupt);
        let mut failures = Failures { answered: !there.is_empty(), ..Failures::default() };
        loop {
            let next = tokio::select! {
                biased;
                _ = &mut interrupt => bail!("interrupted; {} rows are kept, run again to go on", folder.rows.len()),
                next = calls.next() => next,
            };
            let Some((task, outcome)) = next else { break };
            for (task, completion) in failures.take(task, outcome)? {
                self.keep(folder, task, &completion, annotate)?;
                progress.step();
            }
        }
        for (task, completion) in std::mem::take(&mut failures.held) {
            self.keep(folder, task, &completion, annotate)?;
            progress.step();
        }
        failures.conclude()
    }

    fn keep(
        &self,
        folder: &mut RunFolder,
        task: &Task,
        completion: &Completion,
        annotate: fn(&mut Record),
    ) -> Result<()> {
        let mut row = record(task, &self.digest(task), completion)?;
        annotate(&mut row);
        folder.append(row)
    }

    fn digest(&self, task: &Task) -> String {
        task.case.digest(&self.model, &task.options)
    }

    /// Gets the answer of a task, from the cache where an equal request has one.
    async fn perform(&self, task: &Task) -> Result<Completion, CallError> {
        let cell = {
            let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
            answers.entry(self.digest(task)).or_default().clone()
        };
        cell.get_or_try_init(|| self.call(task)).await.cloned()
    }

    async fn call(&self, task: &Task) -> Result<Completion, CallError> {
        let (prompt_tokens, answer_tokens) = task.case.tokens_estimated();
        let backoff = ExponentialBuilder::default()
            .with_min_delay(BACKOFF_FIRST)
            .with_max_delay(BACKOFF_MAX)
            .with_jitter()
            .with_max_times(self.settings.num_retries);
        let attempt = || async {
            self.check_budget(self.settings.prices.cost_usd(prompt_tokens, answer_tokens))?;
            self.limits.wait(prompt_tokens + answer_tokens).await;
            if task.options.is_empty() {
                self.provider.complete(&task.case).await
            } else {
                self.provider.score(&task.case, &task.options).await
            }
        };
        let completion = attempt
            .retry(backoff)
            .when(|error| matches!(error, CallError::Transient { .. }))
            // The server's own wish goes before our guess, but a retry without any wait helps nobody.
            .adjust(|error, wait| wait.map(|wait| error.retry_after().unwrap_or(wait).max(Duration::from_millis(1))))
            .await?;
        let cost = self.settings.prices.cost_usd(completion.prompt_tokens, completion.completion_tokens);
        *self.spent_usd.lock().unwrap_or_else(PoisonError::into_inner) += cost;
        Ok(completion)
    }

    /// Refuses a call that could cost more than is left.
    fn check_budget(&self, cost_usd: f64) -> Result<(), CallError> {
        let spent = *self.spent_usd.lock().unwrap_or_else(PoisonError::into_inner);
        match self.settings.budget_usd {
            Some(budget) if spent + cost_usd > budget => Err(CallError::fatal(format!(
                "the budget is used up: {spent:.4} of {budget:.4} US dollars; raise `--budget` to go on"
            ))),
            Some(_) | None => Ok(()),
        }
    }
}

/// What went wrong so far, and when it is enough.
#[derive(Default)]
struct Failures<'t> {
    answered: bool,
    in_a_row: usize,
    /// Refused before any answer: rows only once something is answered, or all are refused and there are few.
    held: Vec<(&'t Task, Completion)>,
    failed: Vec<String>,
    last: String,
}

impl<'t> Failures<'t> {
    /// Returns the completions to keep.
    fn take(&mut self, task: &'t Task, outcome: Result<Completion, CallError>) -> Result<Vec<(&'t Task, Completion)>> {
        match outcome {
            Ok(completion) => {
                self.answered = true;
                self.in_a_row = 0;
                self.held.push((task, completion));
                Ok(std::mem::take(&mut self.held))
            }
            Err(CallError::Rejected { reason }) => {
                self.held.push((task, Completion::refused(reason.clone())));
                if self.answered {
                    return Ok(std::mem::take(&mut self.held));
                }
                if self.held.len() >= REJECTIONS_MAX {
                    bail!("every request so far is refused, the last: {reason}; put it right and run again");
                }
                Ok(Vec::new())
            }
            Err(CallError::Fatal { reason }) => bail!("{reason}; what came is kept, run again to go on"),
            Err(error @ CallError::Transient { .. }) => {
                self.in_a_row += 1;
                self.last = error.to_string();
                self.failed.push(task.key.clone());
                if self.in_a_row >= FAILURES_MAX {
                    bail!("{} rows in a row failed; the last: {error}; run again to go on", self.in_a_row);
                }
                Ok(Vec::new())
            }
        }
    }

    fn conclude(self) -> Result<()> {
        if let Some(first) = self.failed.first() {
            let num = self.failed.len();
            bail!("{num} rows failed after all retries, the first is `{first}`: {}; run again to try them", self.last);
        }
        Ok(())
    }
}

fn record(task: &Task, digest: &str, completion: &Completion) -> Result<Record> {
    let mut row = Record::new();
    row.insert("key".to_owned(), task.key.clone().into());
    row.extend(task.fields.clone());
    row.insert("request".to_owned(), digest.into());
    let Value::Object(answer) = serde_json::to_value(completion)? else { bail!("a completion is an object") };
    row.extend(answer);
    Ok(row)
}

/// Adds up what rows have used, each distinct request once.
pub(crate) fn usage_of(rows: &[Record], prices: &Prices) -> UsageTotals {
    let mut seen = HashSet::new();
    let mut totals = UsageTotals::default();
    for row in rows {
        if !seen.insert(row.get("request").and_then(Value::as_str)) {
            continue;
        }
        let number = |name: &str| row.get(name).and_then(Value::as_u64).unwrap_or_default();
        totals.num_calls += 1;
        totals.prompt_tokens += number("prompt_tokens");
        totals.completion_tokens += number("completion_tokens");
    }
    totals.cost_usd = prices.cost_usd(totals.prompt_tokens, totals.completion_tokens);
    totals
}
