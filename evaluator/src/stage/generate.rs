//! `generate`: answers of a model tailored to personas, for every kind of model, training and inference of the paper.
//!
//! Place in the flow: its rows are what `judge` compares and what the report shows side by side.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use bespoke_domain::{Row, mnemonic_prefix};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{
    batch::Task,
    case::{Case, CasePrompt, Tailored},
    dataset::{DataOptions, Dataset, file_digest, read_all},
    judging::repetition,
    options::{ModelOptions, RunOptions},
    prompts::Prompts,
    run_folder::Record,
    session::{Plan, execute},
};

/// Arguments of `generate`.
#[derive(Args, Debug)]
pub(crate) struct Generate {
    #[command(flatten)]
    pub(crate) data: DataOptions,
    /// What the model is.
    #[arg(long, value_enum)]
    pub(crate) model_type: ModelType,
    /// What the model was trained on, or which side of the few-shot examples it is shown.
    #[arg(long, value_enum, default_value = "chosen")]
    pub(crate) training_type: TrainingType,
    /// Where the persona comes from.
    #[arg(long, value_enum, default_value = "gold-chosen")]
    pub(crate) inference_type: InferenceType,
    /// Few-shot examples: JSON lines with the columns of the data. Needed for the model type fewshot.
    #[arg(long, value_name = "FILE")]
    pub(crate) fewshot: Option<PathBuf>,
    /// The persona of the inference type system. Default: the one of the data set's prompts.
    #[arg(long, value_name = "TEXT")]
    pub(crate) system_persona: Option<String>,
    /// The shortest answer, in tokens; the paper's is 10.
    #[arg(long, value_name = "TOKENS", default_value_t = 10)]
    pub(crate) min_new_tokens: u32,
    #[command(flatten)]
    pub(crate) model: ModelOptions,
    #[command(flatten)]
    pub(crate) run: RunOptions,
}

/// The kinds of models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ModelType {
    /// A base model that goes on after examples in the paper's template.
    Fewshot,
    /// A model tuned on the paper's template.
    Sft,
    /// As sft, tuned further on preferences.
    Dpo,
    /// An instruction model in its own chat template, the persona in the system turn; not one of the paper's.
    Chat,
}

/// What a model was trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum TrainingType {
    /// Chosen answers with their personas.
    Chosen,
    /// Rejected answers with theirs.
    Rejected,
    /// Both.
    All,
    /// Chosen answers without personas.
    None,
}

/// Where the persona of a test row comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum InferenceType {
    /// Inferred from the row's own pair, for its chosen answer.
    GoldChosen,
    /// Likewise, for its rejected answer.
    GoldRejected,
    /// The chosen persona of the most similar training row.
    RetrChosen,
    /// Its rejected persona.
    RetrRejected,
    /// One persona for all rows.
    System,
    /// No persona.
    None,
}

/// A row as later stages read it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct GenerateRow {
    pub(crate) index: usize,
    pub(crate) prompt: String,
    pub(crate) persona: Option<String>,
    /// The answer of the data that the persona prefers; empty where there is none.
    #[serde(default)]
    pub(crate) reference: String,
    pub(crate) response: String,
    #[serde(default)]
    pub(crate) repetition: f64,
    #[serde(default)]
    pub(crate) refusal: Option<String>,
}

/// The name of the stage in manifests.
pub(crate) const STAGE: &str = "generate";
/// **Source**: paper section 4, inference settings.
const ANSWER_TOKENS: u32 = 512;
/// What ends an answer in the paper's template.
const STOP: &str = "\nPrompt:";
/// The data set whose answers begin with `{Term} sounds like`.
const MNEMONIC: &str = "Mnemonic";

/// Runs the stage.
pub(crate) async fn generate(arguments: &Generate) -> Result<()> {
    let dataset = Dataset::read(&arguments.data)?;
    let prompts = Prompts::new(arguments.run.prompt_dir.clone(), &dataset.name);
    let system = match (&arguments.system_persona, arguments.inference_type) {
        (Some(persona), _) => Some(persona.clone()),
        (None, InferenceType::System) => Some(prompts.system_persona()?),
        (None, _) => None,
    };
    let shots = match (arguments.model_type, &arguments.fewshot) {
        (ModelType::Fewshot, Some(file)) => shots(file, arguments.training_type, &dataset.name)?,
        (ModelType::Fewshot, None) => anyhow::bail!("`--fewshot` is missing: the model type fewshot needs examples"),
        _ => String::new(),
    };
    let mut tasks = Vec::new();
    for (index, row) in &dataset.rows {
        let persona = persona(row, arguments.inference_type, system.as_deref())
            .with_context(|| format!("{}: row {index}", arguments.data.data.display()))?;
        tasks.push(task(arguments, (*index, row), persona, &shots, &dataset.name)?);
    }
    let mut identity = dataset.identity(&arguments.data);
    let kebab = |value: Value| value.as_str().unwrap_or_default().to_owned();
    let types = [
        kebab(json!(arguments.model_type)),
        kebab(json!(arguments.training_type)),
        kebab(json!(arguments.inference_type)),
    ];
    for (name, value) in ["model_type", "training_type", "inference_type"].into_iter().zip(&types) {
        identity.insert(name.to_owned(), value.clone().into());
    }
    identity.insert("fewshot_digest".to_owned(), json!(arguments.fewshot.as_deref().map(file_digest).transpose()?));
    identity.insert("system_persona".to_owned(), json!(system));
    identity.insert("min_new_tokens".to_owned(), arguments.min_new_tokens.into());
    let plan = Plan { stage: STAGE, dataset: dataset.name, name: types.join("_"), identity, tasks, annotate };
    let Some(folder) = execute(plan, &arguments.model, &arguments.run).await? else { return Ok(()) };
    let repetitive = folder.rows.iter().filter(|row| row["repetitive"] == true).count();
    let words: usize =
        folder.rows.iter().map(|row| row["response"].as_str().unwrap_or_default().split_whitespace().count()).sum();
    let num_rows = folder.rows.len();
    folder.write_summary(&json!({
        "num_rows": num_rows, "num_repetitive": repetitive, "words_mean": words as f64 / num_rows as f64,
    }))
}

fn task(
    arguments: &Generate,
    (index, row): (usize, &Row),
    persona: Option<String>,
    shots: &str,
    dataset: &str,
) -> Result<Task> {
    let tailored = Tailored {
        prompt: row.prompt.clone(),
        persona: persona.clone(),
        persona_in_prompt: arguments.training_type == TrainingType::None,
        response_prefix: if dataset == MNEMONIC { mnemonic_prefix(&row.prompt) } else { String::new() },
        chat: arguments.model_type == ModelType::Chat,
    };
    let response_prefix = tailored.response_prefix.clone();
    let prompt = match arguments.model_type {
        ModelType::Fewshot => CasePrompt::Plain { text: format!("{shots}{}", tailored.paper_text(None)?) },
        ModelType::Sft | ModelType::Dpo | ModelType::Chat => CasePrompt::Tailored(tailored),
    };
    let mut settings = arguments.model.settings(ANSWER_TOKENS);
    settings.min_new_tokens = arguments.min_new_tokens.min(settings.max_new_tokens);
    if arguments.model_type == ModelType::Fewshot {
        settings.stop = vec![STOP.to_owned()];
    }
    let reference = match arguments.inference_type {
        InferenceType::GoldRejected | InferenceType::RetrRejected => &row.rejected,
        _ => &row.chosen,
    };
    let mut fields = Map::new();
    fields.insert("index".to_owned(), index.into());
    fields.insert("prompt".to_owned(), row.prompt.trim().into());
    fields.insert("persona".to_owned(), json!(persona));
    fields.insert("reference".to_owned(), reference.clone().into());
    fields.insert("response_prefix".to_owned(), response_prefix.into());
    Ok(Task { key: index.to_string(), case: Case { prompt, settings }, options: Vec::new(), fields })
}

/// Renders the few-shot examples that stand before every prompt.
fn shots(file: &Path, training: TrainingType, dataset: &str) -> Result<String> {
    let mut text = String::new();
    for row in read_all(file)? {
        let sides: &[(&String, &String)] = match training {
            TrainingType::Chosen => &[(&row.chosen_persona_gold, &row.chosen)],
            TrainingType::Rejected => &[(&row.rejected_persona_gold, &row.rejected)],
            TrainingType::All => {
                &[(&row.chosen_persona_gold, &row.chosen), (&row.rejected_persona_gold, &row.rejected)]
            }
            TrainingType::None => &[(&row.chosen_persona_gold, &row.chosen)],
        };
        for (persona, response) in sides {
            let with_persona = training != TrainingType::None;
            ensure!(!with_persona || !persona.is_empty(), "{}: an example has no persona", file.display());
            let prefix = if dataset == MNEMONIC { mnemonic_prefix(&row.prompt) } else { String::new() };
            let tailored = Tailored {
                prompt: row.prompt.clone(),
                persona: with_persona.then(|| (*persona).clone()),
                persona_in_prompt: false,
                response_prefix: String::new(),
                chat: false,
            };
            // An example whose answer has not the form of the data set's answers would teach the wrong form.
            if response.to_lowercase().starts_with(&prefix.to_lowercase()) {
                text += &tailored.paper_text(Some(response.trim()))?;
                text.push_str("\n\n");
            }
        }
    }
    ensure!(!text.is_empty(), "{} has no examples for this training type", file.display());
    Ok(text)
}

fn persona(row: &Row, inference: InferenceType, system: Option<&str>) -> Result<Option<String>> {
    let (column, text) = match inference {
        InferenceType::GoldChosen => ("chosen_persona_gold", &row.chosen_persona_gold),
        InferenceType::GoldRejected => ("rejected_persona_gold", &row.rejected_persona_gold),
        InferenceType::RetrChosen => ("chosen_persona_retr", &row.chosen_persona_retr),
        InferenceType::RetrRejected => ("rejected_persona_retr", &row.rejected_persona_retr),
        InferenceType::System => return Ok(system.map(str::to_owned)),
        InferenceType::None => return Ok(None),
    };
    ensure!(
        !text.trim().is_empty(),
        "`{column}` is empty: fill it with `augment` or `retrieve`, or choose another `--inference-type`"
    );
    Ok(Some(text.trim().to_owned()))
}

/// Adds `response` to a row, the answer with its prefix, and how repetitive it is.
fn annotate(row: &mut Record) {
    let text = |name: &str| row.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let response = format!("{}{}", text("response_prefix"), text("answer")).trim().to_owned();
    row.remove("response_prefix");
    row.insert("repetition".to_owned(), json!((repetition(&response) * 1000.0).round() / 1000.0));
    row.insert("repetitive".to_owned(), crate::judging::is_repetitive(&response).into());
    row.insert("response".to_owned(), response.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        serde_json::from_str(
            r#"{"prompt":"p","chosen":"c","rejected":"r","chosen_persona_gold":"The user is c.",
               "rejected_persona_gold":"The user is r.","chosen_persona_retr":"","rejected_persona_retr":"The user is x."}"#,
        )
        .unwrap()
    }

    #[test]
    fn the_persona_is_that_of_the_inference_type() {
        let of = |inference| persona(&row(), inference, Some("The user is all."));
        assert_eq!(of(InferenceType::GoldRejected).unwrap().as_deref(), Some("The user is r."));
        assert_eq!(of(InferenceType::System).unwrap().as_deref(), Some("The user is all."));
        assert_eq!(of(InferenceType::None).unwrap(), None);
        assert!(of(InferenceType::RetrChosen).unwrap_err().to_string().contains("`chosen_persona_retr` is empty"));
    }

    #[test]
    fn examples_are_those_of_the_training_type() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), serde_json::to_string(&row()).unwrap()).unwrap();
        let of = |training| shots(file.path(), training, "BeaverTails").unwrap();
        assert_eq!(of(TrainingType::Rejected), "Prompt: p\nPersona: The user is r.\nResponse: r\n\n");
        assert_eq!(of(TrainingType::None), "Prompt: p\nResponse: c\n\n");
        assert_eq!(of(TrainingType::All).matches("Persona:").count(), 2);
        assert!(shots(file.path(), TrainingType::Chosen, "Mnemonic").is_err());
    }
}
