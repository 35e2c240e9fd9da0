//! The flags that all recipes share.

use std::path::PathBuf;

use bespoke_trainer::{
    BaseDtype, Compute, DpoLoss, LossOn, MergedDtype, Method, Recipe, TemplateName, TrainError, TrainingType,
};
use clap::{Args, ValueEnum};

/// Settings that win over the recipe file.
#[derive(Args)]
pub(crate) struct RecipeFlags {
    /// TOML recipe; `trainer/recipes` has commented ones.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Base model: catalogue name, hub id, folder or GGUF file.
    #[arg(long)]
    model: Option<String>,
    /// What the base weights are kept in while training.
    #[arg(long, value_enum)]
    base_dtype: Option<BaseDtype>,
    /// PEFT adapter to go on from.
    #[arg(long, value_name = "FOLDER")]
    adapter: Option<String>,
    /// Rows to train on: JSONL, JSON or Parquet file, or `org/name:file` of the hub.
    #[arg(long, value_name = "FILE")]
    train: Option<String>,
    /// Rows to evaluate on.
    #[arg(long, value_name = "FILE")]
    validation: Option<String>,
    /// Which personas and answers are trained on.
    #[arg(long, value_enum)]
    training_type: Option<TrainingType>,
    /// How rows become text.
    #[arg(long, value_enum)]
    template: Option<TemplateName>,
    /// Which tokens SFT counts.
    #[arg(long, value_enum)]
    loss: Option<LossOn>,
    /// Form of the preference loss (DPO).
    #[arg(long, value_enum)]
    dpo_loss: Option<DpoLoss>,
    /// Strength of the tie to the reference (DPO).
    #[arg(long)]
    beta: Option<f64>,
    /// Most tokens of a sequence.
    #[arg(long)]
    length_max: Option<i64>,
    /// Take only so many rows of each file.
    #[arg(long)]
    rows_max: Option<i64>,
    /// Pass over bad rows instead of stopping.
    #[arg(long)]
    skip_bad_rows: bool,
    /// Output folder.
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
    /// Passes over the rows.
    #[arg(long)]
    epochs: Option<i64>,
    /// Stop after so many steps.
    #[arg(long)]
    steps_max: Option<i64>,
    /// Rows or pairs of a batch.
    #[arg(long)]
    batch_size: Option<i64>,
    /// Batches of a step.
    #[arg(long)]
    gradient_accumulation: Option<i64>,
    /// Most token rows that go through the model at once.
    #[arg(long)]
    batch_tokens: Option<i64>,
    /// Learning rate.
    #[arg(long)]
    learning_rate: Option<f64>,
    /// Seed of adapter, order and dropout.
    #[arg(long)]
    seed: Option<i64>,
    /// Threads; 0 for one per core.
    #[arg(long)]
    threads: Option<i64>,
    /// What products with frozen weights and factors, and those of attention, are computed in.
    #[arg(long, value_enum)]
    compute: Option<Compute>,
    /// Keep only the rows between layers and compute the rest twice: less memory, a third slower.
    #[arg(long)]
    checkpointing: bool,
    /// Any other setting of the recipe, such as `lora.r=8` or `lora.target_modules=["all-linear"]`; may be repeated.
    #[arg(long, value_name = "SECTION.KEY=VALUE", value_parser = parse_setting)]
    set: Vec<(String, toml::Value)>,
}

/// Arguments of `sft` and `dpo`.
#[derive(Args)]
pub(crate) struct TrainArguments {
    #[command(flatten)]
    pub(crate) recipe: RecipeFlags,
    /// Go on from the newest checkpoint of the output folder.
    #[arg(long)]
    pub(crate) resume: bool,
    /// Leave out the merged model; `bespoke-trainer merge` can write it later.
    #[arg(long)]
    pub(crate) no_merge: bool,
    /// What merged weights are stored in.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) merged_dtype: MergedDtype,
}

impl RecipeFlags {
    /// The complete recipe.
    pub(crate) fn resolve(&self, method: Method) -> Result<Recipe, TrainError> {
        let mut settings = self.set.clone();
        let mut put =
            |key: &str, value: Option<toml::Value>| settings.extend(value.map(|value| (key.to_owned(), value)));
        let text = |value: &Option<String>| value.clone().map(toml::Value::String);
        let int = |value: Option<i64>| value.map(toml::Value::Integer);
        put("model.base", text(&self.model));
        put("model.base_dtype", name_of(self.base_dtype));
        put("model.adapter", text(&self.adapter));
        put("data.train", text(&self.train));
        put("data.validation", text(&self.validation));
        put("data.training_type", name_of(self.training_type));
        put("data.template", name_of(self.template));
        put("data.loss", name_of(self.loss));
        put("data.length_max", int(self.length_max));
        put("data.rows_max", int(self.rows_max));
        put("data.skip_bad_rows", self.skip_bad_rows.then_some(toml::Value::Boolean(true)));
        put("dpo.loss", name_of(self.dpo_loss));
        put("dpo.beta", self.beta.map(toml::Value::Float));
        put("train.output", self.output.as_ref().map(|path| toml::Value::String(path.display().to_string())));
        put("train.epochs", int(self.epochs));
        put("train.steps_max", int(self.steps_max));
        put("train.batch_size", int(self.batch_size));
        put("train.gradient_accumulation", int(self.gradient_accumulation));
        put("train.batch_tokens", int(self.batch_tokens));
        put("train.learning_rate", self.learning_rate.map(toml::Value::Float));
        put("train.seed", int(self.seed));
        put("train.threads", int(self.threads));
        put("train.compute", name_of(self.compute));
        put("train.checkpointing", self.checkpointing.then_some(toml::Value::Boolean(true)));
        Recipe::resolve(method, self.config.as_deref(), &settings)
    }
}

fn name_of<T: ValueEnum>(value: Option<T>) -> Option<toml::Value> {
    let value = value?.to_possible_value()?;
    Some(toml::Value::String(value.get_name().to_owned()))
}

fn parse_setting(text: &str) -> Result<(String, toml::Value), String> {
    let (key, value) = text.split_once('=').ok_or("must be SECTION.KEY=VALUE")?;
    // What is no TOML value is a plain text, so that names need no quotes.
    let table: Result<toml::Table, _> = format!("value = {value}").parse();
    let value = table.ok().and_then(|mut table| table.remove("value"));
    let value = value.unwrap_or_else(|| toml::Value::String(text[key.len() + 1..].to_owned()));
    Ok((key.to_owned(), value))
}
