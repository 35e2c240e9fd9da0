//! What a report shows: the runs that were found, their summaries as tables and figures, and the answers side by side.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Value, json};

use super::figure::{Bar, Figure, Shares};
use crate::{
    run_folder::{Manifest, SUMMARY, read_manifest, read_run},
    stage::{
        accuracy,
        generate::{self, GenerateRow},
        judge, prefs,
    },
};

/// Everything that was found.
#[derive(Default)]
pub(crate) struct Findings {
    pub(crate) runs: Vec<Run>,
    /// By the run's name.
    pub(crate) summaries: BTreeMap<String, Value>,
    pub(crate) examples: Vec<Value>,
    /// The names of the `generate` runs.
    pub(crate) contestants: Vec<String>,
}

/// One run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Run {
    /// Its folder below the one that was searched.
    name: String,
    #[serde(skip)]
    dir: PathBuf,
    #[serde(flatten)]
    manifest: Manifest,
}

/// A table, as the page and a CSV file show it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Table {
    pub(crate) title: String,
    /// What the columns mean.
    pub(crate) note: String,
    pub(crate) columns: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
}

impl Findings {
    /// Finds all runs below the folders.
    ///
    /// **Errors**: a folder that cannot be read, a manifest or summary that is not one.
    pub(crate) fn read(folders: &[PathBuf], examples_max: usize) -> Result<Self> {
        let mut findings = Self::default();
        for folder in folders {
            findings.search(folder, folder)?;
        }
        findings.runs.sort_by(|a, b| (&a.manifest.started, &a.name).cmp(&(&b.manifest.started, &b.name)));
        findings.put_side_by_side(examples_max)?;
        Ok(findings)
    }

    fn search(&mut self, root: &Path, dir: &Path) -> Result<()> {
        let name = dir.strip_prefix(root).unwrap_or(dir).display().to_string();
        let name = if name.is_empty() { dir.display().to_string() } else { name };
        if let Some(manifest) = read_manifest(dir)? {
            self.runs.push(Run { name: name.clone(), dir: dir.to_owned(), manifest });
        }
        let summary = dir.join(SUMMARY);
        if summary.is_file() {
            let text =
                std::fs::read_to_string(&summary).with_context(|| format!("cannot read {}", summary.display()))?;
            let value = serde_json::from_str(&text).with_context(|| format!("{} is not JSON", summary.display()))?;
            self.summaries.insert(name, value);
        }
        let entries = std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
        let mut below: Vec<PathBuf> =
            entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir()).collect();
        below.sort();
        below.iter().try_for_each(|dir| self.search(root, dir))
    }

    /// Returns the finished runs of a stage with their summaries.
    fn summed<'a>(&'a self, stage: &'a str) -> impl Iterator<Item = (&'a Run, &'a Value)> {
        let runs = self.runs.iter().filter(move |run| run.manifest.stage == stage && run.manifest.complete);
        runs.filter_map(|run| Some((run, self.summaries.get(&run.name)?)))
    }

    /// Returns all figures with the names of their files.
    pub(crate) fn figures(&self) -> Vec<(&'static str, Figure)> {
        let mut figures = Vec::new();
        let mut bars = Vec::new();
        for (run, summary) in self.summed(accuracy::STAGE) {
            for (series, direction) in ["chosen", "rejected"].into_iter().enumerate() {
                let share = &summary[direction];
                let Some(value) = share["accuracy"].as_f64() else { continue };
                let error = share["standard_error"].as_f64();
                let interval = error.map(|error| ((value - error).max(0.0), (value + error).min(1.0)));
                bars.push(Bar { label: run.label(), value, interval, series });
            }
        }
        if !bars.is_empty() {
            let title = "Accuracy of inferred personas (whiskers: standard error; line: chance)";
            figures.push(("accuracy", Figure::bars(title, &["chosen", "rejected"], &bars, Some(0.5))));
        }
        let rows: Vec<Shares> = self
            .summed(prefs::STAGE)
            .filter_map(|(run, summary)| {
                let shares = ["chosen", "tie", "rejected"].map(|name| summary[name].as_f64());
                Some(Shares { label: run.label(), shares: shares.into_iter().collect::<Option<_>>()? })
            })
            .collect();
        if !rows.is_empty() {
            figures.push(("preferences", Figure::shares("Preferred personas", &["chosen", "tie", "rejected"], &rows)));
        }
        let rubrics: Vec<(String, &Value)> =
            self.summed(judge::RELATIVE).flat_map(|(run, summary)| rubrics(run, summary)).collect();
        let rows: Vec<Shares> = rubrics
            .iter()
            .filter_map(|(label, rubric)| {
                let counts = ["wins", "ties", "losses"].map(|name| rubric["counts"][name].as_f64().unwrap_or_default());
                let sum: f64 = counts.iter().sum();
                let shares = counts.iter().map(|count| count / sum).collect();
                (sum > 0.0).then(|| Shares { label: label.clone(), shares })
            })
            .collect();
        if !rows.is_empty() {
            figures.push(("outcomes", Figure::shares("Wins, ties and losses", &["win", "tie", "loss"], &rows)));
        }
        let bars: Vec<Bar> = rubrics
            .iter()
            .filter_map(|(label, rubric)| {
                let interval = &rubric["win_rate_interval"];
                let interval = interval["low"].as_f64().zip(interval["high"].as_f64());
                Some(Bar { label: label.clone(), value: rubric["win_rate"].as_f64()?, interval, series: 0 })
            })
            .collect();
        if !bars.is_empty() {
            let title = "Win rate, a tie being half a win (whiskers: 95 % bootstrap over prompts)";
            figures.push(("win-rates", Figure::bars(title, &["win rate"], &bars, Some(0.5))));
        }
        let bars: Vec<Bar> = self
            .agreements()
            .filter_map(|(label, summary)| {
                let interval = &summary["accuracy_wilson"];
                let interval = interval["low"].as_f64().zip(interval["high"].as_f64());
                Some(Bar { label, value: summary["accuracy"].as_f64()?, interval, series: 0 })
            })
            .collect();
        if !bars.is_empty() {
            let title = "Agreement with people (whiskers: 95 % Wilson; line: chance)";
            figures.push(("agreement", Figure::bars(title, &["accuracy"], &bars, Some(0.5))));
        }
        figures
    }

    /// Returns the judges' agreement with people, by judge and set.
    fn agreements(&self) -> impl Iterator<Item = (String, &Value)> {
        let with_people = |set: &&Value| set.get("positional_agreement").is_some();
        let sets = self.summaries.iter().flat_map(|(name, summary)| summary.as_object().map(|sets| (name, sets)));
        sets.flat_map(move |(name, sets)| {
            let judge = self.runs.iter().find(|run| run.name == *name).map(|run| run.model());
            sets.iter().filter(move |(_, set)| with_people(set)).map(move |(set_name, set)| {
                (judge.as_ref().map_or_else(|| set_name.clone(), |judge| format!("{judge} on {set_name}")), set)
            })
        })
    }

    /// Returns all tables with the names of their files.
    pub(crate) fn tables(&self) -> Vec<(&'static str, Table)> {
        let tables = [
            ("win-rates", self.win_rates()),
            ("accuracy", self.accuracies()),
            ("preferences", self.preferences()),
            ("agreement", self.agreement()),
            ("saliency", self.saliency()),
            ("answers", self.answers()),
            ("runs", self.run_table()),
        ];
        tables.into_iter().filter(|(_, table)| !table.rows.is_empty()).collect()
    }

    fn win_rates(&self) -> Table {
        let mut rows = Vec::new();
        for (run, summary) in self.summed(judge::RELATIVE) {
            for judge in summary["judges"].as_array().into_iter().flatten() {
                let delta_pq = format!("{} {}", signed(&judge["delta_pq"]), range(&judge["delta_pq_interval"], 1.0));
                for (name, rubric) in judge["rubrics"].as_object().into_iter().flatten() {
                    let count = |name: &str| rubric["counts"][name].to_string();
                    rows.push(vec![
                        run.name.clone(),
                        text(&summary["a"]),
                        text(&summary["b"]),
                        text(&judge["judge"]),
                        name.clone(),
                        count("wins"),
                        count("ties"),
                        count("losses"),
                        count("unparsable"),
                        format!("{} {}", percent(&rubric["win_rate"]), range(&rubric["win_rate_interval"], 100.0)),
                        percent(&rubric["length_controlled"]["win_rate"]),
                        format!("{} {}", signed(&rubric["delta"]), range(&rubric["delta_interval"], 1.0)),
                        rubric["sign_test_p"].as_f64().map_or("-".to_owned(), |p| format!("{p:.4}")),
                        percent(&rubric["position_bias"]),
                        percent(&rubric["first_preferred"]),
                        rubric["num_repetitive"].to_string(),
                        delta_pq.clone(),
                    ]);
                }
            }
        }
        let note = "A win needs both orders to agree, a tie is half a win in the win rate. Brackets: 95 % bootstrap over prompts. \
            LC: at equal lengths. Delta: 100 (W - L) / (W + L). p: sign test over prompts. Delta-PQ: mean over rubrics.";
        table(
            "Win rates",
            note,
            &[
                "run",
                "A",
                "B",
                "judge",
                "rubric",
                "W",
                "T",
                "L",
                "unparsable",
                "win rate",
                "LC win rate",
                "delta",
                "p",
                "orders disagree",
                "first preferred",
                "repetitive",
                "Delta-PQ",
            ],
            rows,
        )
    }

    fn accuracies(&self) -> Table {
        let rows = self.summed(accuracy::STAGE).flat_map(|(run, summary)| {
            ["chosen", "rejected", "all"].map(|name| {
                let share = &summary[name];
                vec![
                    run.label(),
                    name.to_owned(),
                    share["num_personas"].to_string(),
                    percent(&share["accuracy"]),
                    percent(&share["standard_error"]),
                    range(&share["wilson"], 100.0),
                    percent(&share["accuracy_both_orders"]),
                    share["num_unparsable"].to_string(),
                ]
            })
        });
        let note = "How often a judge tells from a persona which answer it was inferred for, both orders.";
        table(
            "Accuracy of inferred personas",
            note,
            &[
                "inferrer / judge",
                "personas",
                "n",
                "accuracy",
                "std. error",
                "95 % Wilson",
                "both orders right",
                "unparsable",
            ],
            rows.collect(),
        )
    }

    fn preferences(&self) -> Table {
        let rows = self.summed(prefs::STAGE).map(|(run, summary)| {
            let count = |name: &str| summary["counts"][name].to_string();
            vec![
                run.label(),
                count("wins"),
                count("ties"),
                count("losses"),
                count("unparsable"),
                percent(&summary["chosen"]),
                range(&summary["chosen_wilson"], 100.0),
                summary["sign_test_p"].as_f64().map_or("-".to_owned(), |p| format!("{p:.4}")),
            ]
        });
        table(
            "Preferred personas",
            "Which persona a judge finds better, both orders.",
            &["inferrer / judge", "chosen", "tie", "rejected", "unparsable", "chosen share", "95 % Wilson", "p"],
            rows.collect(),
        )
    }

    fn agreement(&self) -> Table {
        let rows = self.agreements().map(|(label, set)| {
            vec![
                label,
                set["num_pairs"].to_string(),
                percent(&set["accuracy"]),
                range(&set["accuracy_wilson"], 100.0),
                percent(&set["accuracy_both_orders"]),
                percent(&set["positional_agreement"]),
                set["kappa"].as_f64().map_or("-".to_owned(), |kappa| format!("{kappa:.3}")),
                set["num_unparsable"].to_string(),
            ]
        });
        table(
            "Agreement with people",
            "Accuracy is over both orders; ties of people count for kappa alone.",
            &[
                "judge and set",
                "n",
                "accuracy",
                "95 % Wilson",
                "both orders right",
                "orders agree",
                "kappa",
                "unparsable",
            ],
            rows.collect(),
        )
    }

    fn saliency(&self) -> Table {
        let words = |value: &Value| -> Vec<String> {
            let words = value.as_array().into_iter().flatten();
            words
                .map(|word| {
                    format!(
                        "{} {:.2} ({})",
                        text(&word["word"]),
                        word["p"].as_f64().unwrap_or_default(),
                        word["num_personas"]
                    )
                })
                .collect()
        };
        let rows =
            self.summaries.iter().filter(|(_, summary)| summary["cutoff"].is_u64()).flat_map(|(name, summary)| {
                ["chosen", "rejected"]
                    .map(|label| vec![name.clone(), label.to_owned(), words(&summary[label]).join(", ")])
            });
        table(
            "Salient words",
            "p(label | stem), in how many personas the stem stands in brackets.",
            &["run", "personas", "words"],
            rows.collect(),
        )
    }

    fn answers(&self) -> Table {
        let rows = self.summed(generate::STAGE).map(|(run, summary)| {
            let words = summary["words_mean"].as_f64().map_or("-".to_owned(), |words| format!("{words:.1}"));
            vec![
                run.name.clone(),
                run.model(),
                summary["num_rows"].to_string(),
                words,
                summary["num_repetitive"].to_string(),
            ]
        });
        table("Answers", "", &["run", "model", "n", "mean words", "repetitive"], rows.collect())
    }

    fn run_table(&self) -> Table {
        let rows = self.runs.iter().map(|run| {
            let Manifest { stage, complete, num_rows, wall_ms, usage, .. } = &run.manifest;
            let state = if *complete { "complete" } else { "unfinished" };
            vec![
                run.name.clone(),
                stage.clone(),
                run.identity("dataset"),
                run.model(),
                num_rows.to_string(),
                state.to_owned(),
                format!("{:.1}", *wall_ms as f64 / 1000.0),
                usage.prompt_tokens.to_string(),
                usage.completion_tokens.to_string(),
                format!("{:.4}", usage.cost_usd),
            ]
        });
        table(
            "Runs",
            "",
            &[
                "run",
                "stage",
                "data set",
                "model",
                "rows",
                "state",
                "seconds",
                "prompt tokens",
                "answer tokens",
                "US dollars",
            ],
            rows.collect(),
        )
    }

    /// Joins the answers of all `generate` runs by data set and row.
    fn put_side_by_side(&mut self, examples_max: usize) -> Result<()> {
        let mut by_row: BTreeMap<(String, usize), (String, Vec<Value>)> = BTreeMap::new();
        let mut names = BTreeSet::new();
        for run in self.runs.iter().filter(|run| run.manifest.stage == generate::STAGE && run.manifest.complete) {
            let (_, rows) = read_run::<GenerateRow>(&run.dir, generate::STAGE)?;
            names.insert(run.name.clone());
            for row in rows {
                let entry = by_row.entry((run.identity("dataset"), row.index));
                let (_, answers) = entry.or_insert_with(|| (row.prompt.clone(), Vec::new()));
                let response = row.refusal.unwrap_or(row.response);
                let repetitive = crate::judging::is_repetitive(&response);
                answers.push(
                    json!({"run": run.name, "persona": row.persona, "response": response, "repetitive": repetitive}),
                );
            }
        }
        let examples = by_row.into_iter().map(|((dataset, index), (prompt, answers))| {
            json!({"dataset": dataset, "index": index, "prompt": prompt, "answers": answers})
        });
        self.examples = examples.take(examples_max).collect();
        self.contestants = names.into_iter().collect();
        Ok(())
    }
}

impl Run {
    fn identity(&self, name: &str) -> String {
        self.manifest.identity.get(name).map(text).unwrap_or_default()
    }

    fn model(&self) -> String {
        self.manifest.identity.get("model").map_or_else(String::new, |model| text(&model["model"]))
    }

    /// What a figure calls the run: data set, who inferred, and who judged where that is somebody else.
    fn label(&self) -> String {
        let inferrer = self.manifest.identity.get("inferrer").map(|model| text(&model["model"])).unwrap_or_default();
        let judge = self.model();
        let who = if inferrer.is_empty() || inferrer == judge { judge } else { format!("{inferrer} / {judge}") };
        format!("{}: {who}", self.identity("dataset"))
    }
}

fn rubrics<'a>(run: &'a Run, summary: &'a Value) -> Vec<(String, &'a Value)> {
    let judges = summary["judges"].as_array();
    let several = judges.is_some_and(|judges| judges.len() > 1);
    let mut found = Vec::new();
    for judge in judges.into_iter().flatten() {
        for (rubric, value) in judge["rubrics"].as_object().into_iter().flatten() {
            let judge = if several { format!(" by {}", text(&judge["judge"])) } else { String::new() };
            found.push((format!("{}: {rubric}{judge}", run.name), value));
        }
    }
    found
}

fn table(title: &str, note: &str, columns: &[&str], rows: Vec<Vec<String>>) -> Table {
    Table {
        title: title.to_owned(),
        note: note.to_owned(),
        columns: columns.iter().map(|&name| name.to_owned()).collect(),
        rows,
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn percent(value: &Value) -> String {
    value.as_f64().map_or("-".to_owned(), |value| format!("{:.1} %", 100.0 * value))
}

fn signed(value: &Value) -> String {
    value.as_f64().map_or("-".to_owned(), |value| format!("{value:+.1}"))
}

fn range(interval: &Value, scale: f64) -> String {
    match (interval["low"].as_f64(), interval["high"].as_f64()) {
        (Some(low), Some(high)) => format!("[{:.1}, {:.1}]", low * scale, high * scale),
        _ => String::new(),
    }
}
