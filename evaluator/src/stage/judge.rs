//! `judge`: Prometheus-style grading of generated answers, two runs against each other or one by itself.
//!
//! Place in the flow: reads finished `generate` runs, shows each pair to the judge in both orders under each rubric; `win-rate`
//! counts the verdicts.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::{Map, Value, json};

use super::generate::{GenerateRow, STAGE as GENERATE};
use crate::{
    comparison::{self, Asking, Comparison},
    judging::parse_absolute,
    options::{ModelOptions, RunOptions, VerdictMode},
    prompts::{Prompts, Rubric, short_digest},
    run_folder::{Manifest, Record, read_run},
    session::{Plan, execute},
};

/// Arguments of `judge`.
#[derive(Args, Debug)]
pub(crate) struct Judge {
    /// Folder of the `generate` run under test; its personas are those that the judge sees.
    #[arg(long, value_name = "DIR")]
    pub(crate) a: PathBuf,
    /// Folder of the `generate` run that it is compared with. Without it, --a is graded by itself from 1 to 5.
    #[arg(long, value_name = "DIR")]
    pub(crate) b: Option<PathBuf>,
    /// Rubric: quality, personalization, or a TOML file with `criterion`, `scores` and `uses_persona`. May be given repeatedly.
    #[arg(long, value_name = "RUBRIC", default_values = ["quality", "personalization"])]
    pub(crate) rubric: Vec<String>,
    /// Show the judge the answer of the data that the persona prefers.
    #[arg(long)]
    pub(crate) with_reference: bool,
    /// How the judge gives its verdict.
    #[arg(long, value_enum, default_value = "feedback")]
    pub(crate) verdict: VerdictMode,
    /// Take at most this many rows.
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<usize>,
    #[command(flatten)]
    pub(crate) model: ModelOptions,
    #[command(flatten)]
    pub(crate) run: RunOptions,
}

/// The names of the stage in manifests.
pub(crate) const RELATIVE: &str = "judge";
pub(crate) const ABSOLUTE: &str = "judge-absolute";

/// A `generate` run that is judged.
struct Judged {
    manifest: Manifest,
    rows: Vec<GenerateRow>,
}

impl Judged {
    fn read(dir: &Path) -> Result<Self> {
        let (manifest, rows) = read_run(dir, GENERATE)?;
        Ok(Self { manifest, rows })
    }

    /// Returns what this run is called in reports, such as `SmolLM2 dpo_chosen_gold-chosen`.
    fn label(&self) -> String {
        let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or("?").to_owned();
        let identity = &self.manifest.identity;
        let types = ["model_type", "training_type", "inference_type"].map(|name| text(identity.get(name)));
        format!("{} {}", text(identity.get("model").and_then(|model| model.get("model"))), types.join("_"))
    }

    fn digest(&self) -> Result<String> {
        let answers: Vec<_> = self.rows.iter().map(|row| (row.index, &row.persona, &row.response)).collect();
        Ok(short_digest(&serde_json::to_string(&answers)?))
    }
}

/// Runs the stage.
pub(crate) async fn judge(arguments: &Judge) -> Result<()> {
    let a = Judged::read(&arguments.a)?;
    let dataset = a.manifest.identity.get("dataset").and_then(Value::as_str).unwrap_or("data").to_owned();
    let prompts = Prompts::new(arguments.run.prompt_dir.clone(), &dataset);
    let rubrics = arguments.rubric.iter().map(|name| prompts.rubric(name)).collect::<Result<Vec<_>>>()?;
    let template = prompts.template(if arguments.b.is_some() { "judge-relative.txt" } else { "judge-absolute.txt" })?;
    let asking = Asking { template: &template, mode: arguments.verdict, model: &arguments.model };
    let mut identity = Map::new();
    identity.insert("a".to_owned(), json!({"label": a.label(), "digest": a.digest()?}));
    identity.insert("rubrics".to_owned(), serde_json::to_value(&arguments.rubric)?);
    identity.insert("rubrics_digest".to_owned(), short_digest(&serde_json::to_string(&rubrics)?).into());
    identity.insert("prompt_digest".to_owned(), template.digest.clone().into());
    identity.insert("with_reference".to_owned(), arguments.with_reference.into());
    identity.insert("verdict".to_owned(), serde_json::to_value(arguments.verdict)?);
    let limit = arguments.limit.unwrap_or(usize::MAX);
    let Some(b) = &arguments.b else {
        let tasks = absolute_tasks(&a, &rubrics, &asking, arguments)?;
        let name = format!("judge-absolute_{}", short_digest(&a.label()));
        let plan = Plan { stage: ABSOLUTE, dataset, name, identity, tasks, annotate: annotate_absolute };
        let Some(folder) = execute(plan, &arguments.model, &arguments.run).await? else { return Ok(()) };
        return folder.write_summary(&scores(&folder.rows));
    };
    let b = Judged::read(b)?;
    identity.insert("b".to_owned(), json!({"label": b.label(), "digest": b.digest()?}));
    let others: HashMap<usize, &GenerateRow> = b.rows.iter().map(|row| (row.index, row)).collect();
    let mut tasks = Vec::new();
    // Rubrics stand last in the prompt and change fastest, so that an engine with a prefix cache reads the answers once.
    for row in a.rows.iter().take(limit) {
        let other = others.get(&row.index).with_context(|| format!("--b has no row {}", row.index))?;
        ensure!(row.prompt == other.prompt, "row {} of --a and --b have different prompts", row.index);
        for rubric in &rubrics {
            tasks.extend(asking.tasks(comparison(row, other, rubric, arguments.with_reference)?)?);
        }
    }
    let name = format!("judge_{}", short_digest(&format!("{} {}", a.label(), b.label())));
    let plan = Plan { stage: RELATIVE, dataset, name, identity, tasks, annotate: comparison::annotate };
    execute(plan, &arguments.model, &arguments.run).await?;
    Ok(())
}

fn comparison(a: &GenerateRow, b: &GenerateRow, rubric: &Rubric, with_reference: bool) -> Result<Comparison> {
    let persona = a.persona.as_ref().or(b.persona.as_ref());
    let words = |text: &str| text.split_whitespace().count();
    let fields = json!({
        "rubric": rubric.name, "index": a.index, "prompt": a.prompt, "persona": persona,
        "response_a": a.response, "response_b": b.response,
        "words_a": words(&a.response), "words_b": words(&b.response),
        "repetition_a": a.repetition, "repetition_b": b.repetition,
    });
    Ok(Comparison {
        key: format!("{}/{}", rubric.name, a.index),
        first: a.response.clone(),
        second: b.response.clone(),
        filling: filling(a, persona, rubric, with_reference),
        fields: fields.as_object().cloned().context("invariant: an object")?,
    })
}

fn filling(row: &GenerateRow, persona: Option<&String>, rubric: &Rubric, with_reference: bool) -> Value {
    let persona = persona.filter(|_| rubric.uses_persona).cloned().unwrap_or_default();
    let reference = if with_reference { row.reference.clone() } else { String::new() };
    json!({"prompt": row.prompt, "persona": persona, "reference": reference, "rubric": rubric})
}

fn absolute_tasks(
    a: &Judged,
    rubrics: &[Rubric],
    asking: &Asking<'_>,
    arguments: &Judge,
) -> Result<Vec<crate::batch::Task>> {
    ensure!(arguments.verdict != VerdictMode::Logprob, "`--verdict logprob` compares two answers: give `--b`");
    let mut tasks = Vec::new();
    for row in a.rows.iter().take(arguments.limit.unwrap_or(usize::MAX)) {
        for rubric in rubrics {
            ensure!(rubric.scores.len() == 5, "rubric `{}` has {} scores, needs 5", rubric.name, rubric.scores.len());
            let filling = filling(row, row.persona.as_ref(), rubric, arguments.with_reference);
            let filling = comparison::with(filling, json!({"response_a": row.response}));
            let fields = json!({"rubric": rubric.name, "index": row.index, "prompt": row.prompt,
                "persona": row.persona, "response": row.response});
            let fields = fields.as_object().cloned().context("invariant: an object")?;
            tasks.push(asking.task(format!("{}/{}", rubric.name, row.index), filling, fields)?);
        }
    }
    Ok(tasks)
}

/// Adds `score` to a row: 1 to 5, or null where the answer has none.
fn annotate_absolute(row: &mut Record) {
    let score = parse_absolute(row.get("answer").and_then(Value::as_str).unwrap_or_default());
    row.insert("score".to_owned(), json!(score));
}

/// The mean score under each rubric.
fn scores(rows: &[Record]) -> Value {
    let mut by_rubric: BTreeMap<&str, (Vec<f64>, u64)> = BTreeMap::new();
    for row in rows {
        let (scores, unparsable) = by_rubric.entry(row["rubric"].as_str().unwrap_or_default()).or_default();
        match row["score"].as_f64() {
            Some(score) => scores.push(score),
            None => *unparsable += 1,
        }
    }
    let summary = by_rubric.into_iter().map(|(rubric, (scores, unparsable))| {
        let mean = (!scores.is_empty()).then(|| scores.iter().sum::<f64>() / scores.len() as f64);
        let clusters: Vec<Vec<f64>> = scores.iter().map(|score| vec![*score]).collect();
        let error = crate::judging::clustered_standard_error(&clusters);
        let entry =
            json!({"num_scores": scores.len(), "num_unparsable": unparsable, "mean": mean, "standard_error": error});
        (rubric.to_owned(), entry)
    });
    Value::Object(summary.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_by_hand() {
        let row = |rubric: &str, answer: &str| {
            let mut row = json!({"rubric": rubric, "answer": answer}).as_object().unwrap().clone();
            annotate_absolute(&mut row);
            row
        };
        let rows = [row("q", "[RESULT] 2"), row("q", "fine [RESULT] 4"), row("q", "no verdict"), row("p", "5")];
        let summary = scores(&rows);
        assert_eq!((summary["q"]["mean"].as_f64(), summary["q"]["num_unparsable"].as_u64()), (Some(3.0), Some(1)));
        assert_eq!(summary["p"]["num_scores"], 1);
    }
}
