//! Sessions: one stage from its plan to its finished folder.
//!
//! Place in the flow: a stage reads its input and makes a [`Plan`]; [`execute`] prices it for a dry run, or opens the provider
//! and the run folder, runs the batch, and hands the finished folder back, from which the stage draws its summary.

use std::path::PathBuf;

use anyhow::Result;
use serde_json::{Map, Value, json};

use crate::{
    batch::{Batch, Task},
    options::{ModelOptions, RunOptions},
    progress::Progress,
    provider::{Keys, Provider},
    run_folder::{Record, RunFolder, key_of},
};

/// What a stage is going to do.
pub(crate) struct Plan {
    pub(crate) stage: &'static str,
    pub(crate) dataset: String,
    /// The last part of the folder's default name.
    pub(crate) name: String,
    /// What the rows depend on, beside the model and how it is asked.
    pub(crate) identity: Map<String, Value>,
    pub(crate) tasks: Vec<Task>,
    /// Reads what a row's answer says into the row.
    pub(crate) annotate: fn(&mut Record),
}

/// Runs a plan; `None` after a dry run.
///
/// **Errors**: options out of range, a provider that cannot be had, a folder of another run, and what the batch meets.
pub(crate) async fn execute(plan: Plan, model: &ModelOptions, run: &RunOptions) -> Result<Option<RunFolder>> {
    model.check()?;
    if run.dry_run {
        print_estimate(&plan, model);
        return Ok(None);
    }
    let keys = Keys::load()?;
    let provider = Provider::open(&model.endpoint(), &keys).await?;
    let identity = provider.identity();
    let dir = run.out.clone().unwrap_or_else(|| default_dir(&plan, &identity.model));
    let mut whole = Map::new();
    whole.insert("dataset".to_owned(), plan.dataset.clone().into());
    whole.insert("model".to_owned(), serde_json::to_value(&identity)?);
    whole.insert("temperature".to_owned(), json!(model.temperature));
    whole.insert("seed".to_owned(), json!(model.seed));
    whole.insert("max_new_tokens".to_owned(), json!(plan.tasks.first().map(|task| task.case.settings.max_new_tokens)));
    whole.extend(plan.identity.clone());
    let mut folder = RunFolder::open(&dir, plan.stage, whole, run.force)?;
    let settings = model.batch_settings();
    let batch = Batch::new(&provider, &settings, &folder.rows);
    let progress = Progress::new(plan.stage);
    batch.run(&mut folder, &plan.tasks, plan.annotate, &progress).await?;
    drop(progress);
    let keys: Vec<String> = plan.tasks.iter().map(|task| task.key.clone()).collect();
    let usage = folder.manifest.usage;
    folder.finish(&keys, usage)?;
    let (rows, seconds) = (folder.rows.len(), folder.manifest.wall_ms as f64 / 1000.0);
    eprintln!("{}: {rows} rows in {}, {seconds:.1} s of work", plan.stage, dir.display());
    let num_refused = folder.rows.iter().filter(|row| row.contains_key("refusal")).count();
    if num_refused > 0 {
        eprintln!("{}: {num_refused} rows were refused; `refusal` says why", plan.stage);
    }
    debug_assert!(folder.rows.iter().map(key_of).eq(keys.iter().map(String::as_str)));
    Ok(Some(folder))
}

/// `results/<dataset>/<model>/<name>`, as the reference lays its results out.
fn default_dir(plan: &Plan, model: &str) -> PathBuf {
    let safe = |text: &str| text.replace(['/', '\\', ':'], "_");
    ["results", &safe(&plan.dataset), &safe(model), &safe(&plan.name)].iter().collect()
}

#[expect(clippy::print_stdout, reason = "the estimate is the output of a dry run")]
fn print_estimate(plan: &Plan, model: &ModelOptions) {
    let mut seen = std::collections::HashSet::new();
    let (mut prompt_tokens, mut answer_tokens) = (0, 0);
    for task in &plan.tasks {
        if seen.insert(task.case.digest("", &task.options)) {
            let (prompt, answer) = task.case.tokens_estimated();
            let num_calls = task.options.len().max(1) as u64;
            prompt_tokens += prompt * num_calls;
            answer_tokens += if task.options.is_empty() { answer } else { 0 };
        }
    }
    let cost = model.batch_settings().prices.cost_usd(prompt_tokens, answer_tokens);
    println!("stage: {}", plan.stage);
    println!("rows: {}, distinct requests: {}", plan.tasks.len(), seen.len());
    println!("prompt tokens: about {prompt_tokens}; answer tokens: at most {answer_tokens}");
    println!("cost: at most about {cost:.4} US dollars at --price-input and --price-output");
}
