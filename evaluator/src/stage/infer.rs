//! `infer`: writes the persona of a user who would prefer one answer of a pair over the other.
//!
//! Place in the flow: the first stage. Its rows feed `augment`, `accuracy`, `prefs` and `saliency`.

use anyhow::{Result, ensure};
use bespoke_domain::Row;
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{
    batch::Task,
    case::{Case, CasePrompt},
    dataset::{DataOptions, Dataset},
    options::{ModelOptions, RunOptions},
    prompts::{Example, PromptTemplate, Prompts, short_digest},
    run_folder::Record,
    session::{Plan, execute},
};

/// Arguments of `infer`.
#[derive(Args, Debug)]
pub(crate) struct Infer {
    #[command(flatten)]
    pub(crate) data: DataOptions,
    /// Whose personas: of who prefers the chosen answer, of who prefers the rejected one, or both.
    #[arg(long, value_enum, default_value = "both")]
    pub(crate) direction: Directions,
    #[command(flatten)]
    pub(crate) model: ModelOptions,
    #[command(flatten)]
    pub(crate) run: RunOptions,
}

/// The directions to infer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Directions {
    Both,
    Chosen,
    Rejected,
}

/// Which answer of a pair a persona prefers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Direction {
    Chosen,
    Rejected,
}

impl Direction {
    pub(crate) const BOTH: [Self; 2] = [Self::Chosen, Self::Rejected];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Chosen => "chosen",
            Self::Rejected => "rejected",
        }
    }

    /// Returns the preferred answer of a row, and the other one.
    pub(crate) fn answers(self, row: &Row) -> (&str, &str) {
        match self {
            Self::Chosen => (&row.chosen, &row.rejected),
            Self::Rejected => (&row.rejected, &row.chosen),
        }
    }
}

/// A row as later stages read it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct InferRow {
    pub(crate) index: usize,
    pub(crate) direction: Direction,
    pub(crate) prompt: String,
    pub(crate) preferred: String,
    pub(crate) other: String,
    /// Empty where the model gave none.
    pub(crate) persona: String,
}

/// The name of the stage in manifests.
pub(crate) const STAGE: &str = "infer";
/// What every persona begins with.
const START: &str = "The user";
/// Personas of the paper have some 30 tokens; this is room for longer ones.
const PERSONA_TOKENS: u32 = 96;

/// Runs the stage.
pub(crate) async fn infer(arguments: &Infer) -> Result<()> {
    let dataset = Dataset::read(&arguments.data)?;
    let prompts = Prompts::new(arguments.run.prompt_dir.clone(), &dataset.name);
    let (template, examples) = (prompts.template("infer.txt")?, prompts.examples()?);
    let directions: &[Direction] = match arguments.direction {
        Directions::Both => &Direction::BOTH,
        Directions::Chosen => &Direction::BOTH[..1],
        Directions::Rejected => &Direction::BOTH[1..],
    };
    let mut tasks = Vec::new();
    for (index, row) in &dataset.rows {
        ensure!(
            !row.chosen.is_empty() && !row.rejected.is_empty(),
            "{}: row {index} has no pair of answers, which `infer` needs",
            arguments.data.data.display()
        );
        for direction in directions {
            tasks.push(task(*index, row, *direction, &(&template, &examples, &arguments.model))?);
        }
    }
    let mut identity = dataset.identity(&arguments.data);
    identity.insert("direction".to_owned(), json!(arguments.direction));
    identity.insert("prompt_digest".to_owned(), template.digest.clone().into());
    identity.insert("examples_digest".to_owned(), short_digest(&serde_json::to_string(&examples)?).into());
    let name = format!("persona_inference_{}", dataset.name);
    let plan = Plan { stage: STAGE, dataset: dataset.name, name, identity, tasks, annotate };
    let Some(folder) = execute(plan, &arguments.model, &arguments.run).await? else { return Ok(()) };
    let num_empty = folder.rows.iter().filter(|row| row["persona"] == "").count();
    folder.write_summary(&json!({"num_rows": folder.rows.len(), "num_without_persona": num_empty}))
}

fn task(
    index: usize,
    row: &Row,
    direction: Direction,
    asking: &(&PromptTemplate, &[Example], &ModelOptions),
) -> Result<Task> {
    let (template, examples, model) = asking;
    let (preferred, other) = direction.answers(row);
    let prompt = row.prompt.trim();
    let text =
        template.fill(json!({"examples": examples, "prompt": prompt, "preferred": preferred, "other": other}))?;
    let answer_start = if model.can_start_answer() { START } else { "" };
    let mut settings = model.settings(PERSONA_TOKENS);
    settings.stop = vec!["\n".to_owned()];
    let mut fields = Map::new();
    for (name, value) in [("prompt", prompt), ("preferred", preferred), ("other", other), ("start", answer_start)] {
        fields.insert(name.to_owned(), value.into());
    }
    fields.insert("index".to_owned(), index.into());
    fields.insert("direction".to_owned(), direction.as_str().into());
    let case = Case { prompt: CasePrompt::Instruct { text, answer_start: answer_start.to_owned() }, settings };
    Ok(Task { key: format!("{index}/{}", direction.as_str()), case, options: Vec::new(), fields })
}

/// Adds `persona` to a row: the answer, cleaned; empty where there is none.
fn annotate(row: &mut Record) {
    let text = |name: &str| row.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let persona = clean(&text("answer"), &text("start"));
    row.remove("start");
    row.insert("persona".to_owned(), persona.into());
}

/// Takes the persona out of an answer: its first line with text, without label or quotes, with what the answer was started
/// with.
fn clean(answer: &str, start: &str) -> String {
    let line = answer.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    let line = line.strip_prefix("Persona:").unwrap_or(line).trim().trim_matches(['"', '*']).trim();
    if line.is_empty() || start.is_empty() || line.starts_with(START) {
        return line.to_owned();
    }
    let gap = if line.starts_with(|c: char| c.is_alphanumeric()) { " " } else { "" };
    format!("{start}{gap}{line}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn personas_are_cleaned() {
        assert_eq!(clean(" is shy and prefers brevity.", "The user"), "The user is shy and prefers brevity.");
        assert_eq!(clean("'s time is short.\nMore", "The user"), "The user's time is short.");
        assert_eq!(clean("\nPersona: \"The user is shy.\"\n", ""), "The user is shy.");
        assert_eq!((clean("", "The user"), clean(" \n", "")), (String::new(), String::new()));
    }

    #[test]
    fn a_rejected_persona_swaps_the_pair() {
        let row: Row = serde_json::from_str(r#"{"prompt":"p","chosen":"c","rejected":"r"}"#).unwrap();
        assert_eq!((Direction::Chosen.answers(&row), Direction::Rejected.answers(&row)), (("c", "r"), ("r", "c")));
    }
}
