//! The recipe: everything that decides a run, from the defaults of the method, a TOML file and flags, the later winning.

use std::path::{Path, PathBuf};

use bespoke_domain::Template;
use serde::{Deserialize, Serialize};

use crate::TrainError;
use crate::base::{BaseDtype, Numbers};
use crate::frozen::Compute;
use crate::loss::DpoLoss;
use crate::optimizer::{AdamSettings, Schedule};

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Supervised fine-tuning.
    Sft,
    /// Direct preference optimisation.
    Dpo,
}

/// Which personas and answers of a row are trained on.
///
/// **Source**: paper section 4.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum TrainingType {
    /// The chosen answer with its persona.
    #[default]
    Chosen,
    /// The pair swapped: the rejected answer is the preferred one, with its persona.
    Rejected,
    /// Both.
    All,
    /// The chosen answer without a persona.
    None,
}

/// Which tokens the loss of SFT counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LossOn {
    /// All of the text, as the paper does.
    #[default]
    Full,
    /// The answer alone.
    Completion,
}

/// How rows become text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum TemplateName {
    /// The `Prompt: / Persona: / Response:` lines of the paper.
    #[default]
    Paper,
    /// The chat template of the model.
    Chat,
}

impl From<TemplateName> for Template {
    fn from(name: TemplateName) -> Template {
        match name {
            TemplateName::Paper => Template::Paper,
            TemplateName::Chat => Template::Chat,
        }
    }
}

/// A complete recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The base model.
    pub model: ModelRecipe,
    /// The adapter.
    pub lora: LoraRecipe,
    /// The rows and how they become tokens.
    pub data: DataRecipe,
    /// The loop.
    pub train: TrainRecipe,
    /// The preference loss; only `dpo` reads it.
    pub dpo: DpoRecipe,
}

/// The base model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRecipe {
    /// Catalogue name, hub id, folder or GGUF file.
    pub base: String,
    /// What its weights are kept in.
    pub base_dtype: BaseDtype,
    /// A PEFT adapter to go on from; empty for a fresh one.
    pub adapter: String,
}

/// The adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraRecipe {
    /// Rank.
    pub r: usize,
    /// Scale, times the rank.
    pub alpha: f64,
    /// Share of inputs dropped while training; DPO drops none.
    pub dropout: f32,
    /// Scale by the root of the rank.
    pub rslora: bool,
    /// Names of modules, or `["all-linear"]`.
    pub target_modules: Vec<String>,
}

/// The rows and how they become tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataRecipe {
    /// JSONL, JSON or Parquet file, or `org/name:file` of the hub.
    pub train: String,
    /// Rows to evaluate on; empty for none.
    pub validation: String,
    /// Which personas and answers.
    pub training_type: TrainingType,
    /// How rows become text.
    pub template: TemplateName,
    /// Which tokens SFT counts.
    pub loss: LossOn,
    /// Most tokens of a sequence.
    pub length_max: usize,
    /// Most tokens of a prompt in DPO, of which the last are kept.
    pub prompt_length_max: usize,
    /// Pass over bad rows instead of stopping.
    pub skip_bad_rows: bool,
    /// Take only so many rows of each file; 0 for all.
    pub rows_max: usize,
}

/// The loop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainRecipe {
    /// Where everything goes.
    pub output: PathBuf,
    /// Seed of adapter, order and dropout.
    pub seed: u64,
    /// Passes over the rows.
    pub epochs: u64,
    /// Stop after so many steps; 0 for no limit.
    pub steps_max: u64,
    /// Rows (or pairs) of a batch.
    pub batch_size: usize,
    /// Batches of a step.
    pub gradient_accumulation: usize,
    /// Most token rows that go through the model at once; a step is cut into as many pieces as it takes.
    pub batch_tokens: usize,
    /// Learning rate.
    pub learning_rate: f64,
    /// How it falls.
    pub schedule: Schedule,
    /// Share of the steps in which it rises.
    pub warmup_ratio: f64,
    /// Norm that gradients are scaled down to; 0 for any.
    pub grad_norm_max: f64,
    /// The optimiser.
    pub adam: AdamSettings,
    /// Evaluate each so many steps and at the end; 0 for each epoch.
    pub eval_steps: u64,
    /// Save each so many steps besides each evaluation; 0 for never.
    pub save_steps: u64,
    /// Stop after so many evaluations without a gain; 0 for never.
    pub patience: u64,
    /// What products with frozen weights and factors, and those of attention, are computed in.
    pub compute: Compute,
    /// Keep only the rows between layers and compute the rest twice.
    pub checkpointing: bool,
    /// Threads; 0 for one per core.
    pub threads: usize,
}

/// The preference loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DpoRecipe {
    /// Strength of the tie to the reference.
    pub beta: f64,
    /// The form.
    pub loss: DpoLoss,
    /// Share of labels taken for wrong.
    pub label_smoothing: f64,
}

impl Recipe {
    /// The paper's settings.
    ///
    /// **Source**: the reference implementation's training scripts.
    pub fn paper(method: Method) -> Recipe {
        let (epochs, learning_rate, output) = match method {
            Method::Sft => (10, 2e-5, "runs/sft"),
            Method::Dpo => (1, 5e-6, "runs/dpo"),
        };
        Recipe {
            model: ModelRecipe {
                base: bespoke_store::DEFAULT_MODEL.to_owned(),
                base_dtype: BaseDtype::Auto,
                adapter: String::new(),
            },
            lora: LoraRecipe {
                r: 16,
                alpha: 32.0,
                dropout: 0.05,
                rslora: false,
                target_modules: vec!["q_proj".to_owned(), "v_proj".to_owned()],
            },
            data: DataRecipe {
                train: String::new(),
                validation: String::new(),
                training_type: TrainingType::Chosen,
                template: TemplateName::Paper,
                loss: LossOn::Full,
                length_max: 512,
                prompt_length_max: 128,
                skip_bad_rows: false,
                rows_max: 0,
            },
            train: TrainRecipe {
                output: output.into(),
                seed: 42,
                epochs,
                steps_max: 0,
                batch_size: 1,
                gradient_accumulation: 1,
                batch_tokens: 2048,
                learning_rate,
                schedule: Schedule::Linear,
                warmup_ratio: 0.0,
                grad_norm_max: 1.0,
                adam: AdamSettings::default(),
                eval_steps: 0,
                save_steps: 0,
                patience: 0,
                compute: Compute::F32,
                checkpointing: false,
                threads: 0,
            },
            dpo: DpoRecipe { beta: 0.1, loss: DpoLoss::Sigmoid, label_smoothing: 0.0 },
        }
    }

    /// Lays a recipe file and then single settings (`section.key`, TOML value) over the defaults of a method, and checks the whole.
    ///
    /// **Errors**: `File` for a file or key that is wrong, `Setting` for a value that cannot be.
    pub fn resolve(
        method: Method,
        file: Option<&Path>,
        settings: &[(String, toml::Value)],
    ) -> Result<Recipe, TrainError> {
        let name = file.unwrap_or(Path::new("recipe"));
        let broken = |error: &dyn std::fmt::Display| TrainError::file(name, error.to_string().trim_end());
        let mut table = toml::Table::try_from(Recipe::paper(method)).map_err(|error| broken(&error))?;
        if let Some(file) = file {
            let text = std::fs::read_to_string(file).map_err(TrainError::reading(file))?;
            let over: toml::Table = text.parse().map_err(|error| broken(&error))?;
            // Read once by itself over the defaults, so that an error points into the file and not into the flags.
            overlay(&mut table, over);
            table.clone().try_into::<Recipe>().map_err(|error| broken(&error))?;
        }
        for (key, value) in settings {
            let over = key.rsplit('.').fold(value.clone(), |value, part| {
                toml::Value::Table([(part.to_owned(), value)].into_iter().collect())
            });
            if let toml::Value::Table(over) = over {
                overlay(&mut table, over);
            }
        }
        let recipe: Recipe = table.try_into().map_err(|error| broken(&error))?;
        recipe.check(method)?;
        Ok(recipe)
    }

    /// How the base is kept and multiplied.
    pub fn numbers(&self) -> Numbers {
        Numbers { dtype: self.model.base_dtype, compute: self.train.compute }
    }

    /// Rows of a step.
    pub fn rows_per_step(&self) -> usize {
        self.train.batch_size * self.train.gradient_accumulation
    }

    fn check(&self, method: Method) -> Result<(), TrainError> {
        let (lora, data, train) = (&self.lora, &self.data, &self.train);
        let share = |x: f64| (0.0..1.0).contains(&x);
        let rules: [(&'static str, bool, &str); 16] = [
            ("model.base", !self.model.base.is_empty(), "is empty, must name a model"),
            ("data.train", !data.train.is_empty(), "is empty, must name a file of rows (--train)"),
            ("lora.r", (1..=4096).contains(&lora.r), "must be in 1..=4096"),
            ("lora.alpha", lora.alpha.is_finite() && lora.alpha > 0.0, "must be positive"),
            ("lora.dropout", share(f64::from(lora.dropout)), "must be in 0..1"),
            ("lora.target_modules", !lora.target_modules.is_empty(), "is empty, must name modules or all-linear"),
            ("data.length_max", data.length_max >= 2, "must be at least 2"),
            (
                "data.prompt_length_max",
                method == Method::Sft || (1..data.length_max).contains(&data.prompt_length_max),
                "must be in 1..length_max",
            ),
            (
                "train.compute",
                train.compute == Compute::F32 || matches!(self.model.base_dtype, BaseDtype::Auto | BaseDtype::Bf16),
                "bf16 keeps the base in bf16, so that `model.base_dtype` must be auto or bf16",
            ),
            ("train.batch_size", train.batch_size > 0, "must be at least 1"),
            ("train.gradient_accumulation", train.gradient_accumulation > 0, "must be at least 1"),
            ("train.batch_tokens", train.batch_tokens > 0, "must be at least 1"),
            ("train.learning_rate", train.learning_rate.is_finite() && train.learning_rate > 0.0, "must be positive"),
            ("train.warmup_ratio", share(train.warmup_ratio), "must be in 0..1"),
            ("dpo.beta", method == Method::Sft || self.dpo.beta > 0.0, "must be positive"),
            ("dpo.label_smoothing", (0.0..0.5).contains(&self.dpo.label_smoothing), "must be in 0..0.5"),
        ];
        match rules.into_iter().find(|(_, holds, _)| !holds) {
            Some((field, _, reason)) => Err(TrainError::Setting { field, reason: reason.to_owned() }),
            None => Ok(()),
        }
    }
}

/// Lays a table over another, section by section.
fn overlay(table: &mut toml::Table, over: toml::Table) {
    for (key, value) in over {
        match (table.get_mut(&key), value) {
            (Some(toml::Value::Table(inner)), toml::Value::Table(over)) => overlay(inner, over),
            (_, value) => {
                table.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(key: &str, value: impl Into<toml::Value>) -> (String, toml::Value) {
        (key.to_owned(), value.into())
    }

    #[test]
    fn flags_win_over_files_and_files_over_defaults() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("r.toml");
        std::fs::write(&file, "[data]\ntrain = \"a.jsonl\"\n[train]\nepochs = 3\nseed = 5\n").unwrap();
        let recipe = Recipe::resolve(Method::Sft, Some(&file), &[set("train.seed", 7)]).unwrap();
        assert_eq!((recipe.train.epochs, recipe.train.seed, recipe.train.learning_rate), (3, 7, 2e-5));
        assert_eq!(recipe.data.train, "a.jsonl");
    }

    #[test]
    fn wrong_keys_and_values_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("r.toml");
        std::fs::write(&file, "[train]\nlearning = 3\n").unwrap();
        let error = Recipe::resolve(Method::Sft, Some(&file), &[]).unwrap_err().to_string();
        assert!(error.contains("r.toml") && error.contains("learning"), "{error}");
        let error = Recipe::resolve(Method::Sft, None, &[]).unwrap_err().to_string();
        assert!(error.starts_with("`data.train` is empty"), "{error}");
        let settings = [set("data.train", "x"), set("lora.r", 0)];
        let error = Recipe::resolve(Method::Dpo, None, &settings).unwrap_err().to_string();
        assert!(error.starts_with("`lora.r` must be"), "{error}");
        let settings = [set("data.train", "x"), set("train.compute", "bf16"), set("model.base_dtype", "q8_0")];
        let error = Recipe::resolve(Method::Sft, None, &settings).unwrap_err().to_string();
        assert!(error.starts_with("`train.compute` bf16 keeps the base in bf16"), "{error}");
    }

    /// Every shipped recipe, and the defaults of the method that its name ends with.
    #[test]
    fn shipped_recipes_are_valid() {
        let folder = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("recipes");
        let mut num = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let method = if name.ends_with("dpo") { Method::Dpo } else { Method::Sft };
            let recipe = Recipe::resolve(method, Some(&path), &[]).unwrap();
            if name.starts_with("paper") {
                let paper = Recipe::paper(method);
                assert_eq!((&recipe.lora, &recipe.dpo), (&paper.lora, &paper.dpo), "{name}");
                assert_eq!(recipe.train.learning_rate, paper.train.learning_rate, "{name}");
            }
            num += 1;
        }
        assert!(num >= 8, "{num} recipes");
    }
}
