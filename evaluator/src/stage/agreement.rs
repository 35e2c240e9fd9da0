//! `agreement`: how often does a judge agree with people? Asks a judge about labelled pairs, or counts recorded verdicts.
//!
//! Labelled pairs are JSON lines with `id`, `prompt`, `response_a`, `response_b`, `human` (A, B or tie) and optionally `rubric`
//! and `persona`; or with `prompt`, `persona`, `aligned` and `misaligned` (a list, of which the first is taken), where the
//! aligned answer is right. Recorded verdicts have `id`, `judge`, `winner_ab` and `winner_ba`, both in terms of the
//! answers as the data names them, not of their places.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Map, json};

use crate::{
    comparison::{self, Asking, Comparison, Pair, pairs_of_records},
    dataset::{DataOptions, file_digest},
    judging::{Interval, Outcome, Side, Verdict, cohen_kappa, wilson},
    options::{ModelOptions, RunOptions, VerdictMode},
    prompts::{Prompts, Rubric},
    run_folder::{read_jsonl, write_atomically},
    session::{Plan, execute},
};

/// Arguments of `agreement`.
#[derive(Args, Debug)]
pub(crate) struct Agreement {
    #[command(flatten)]
    pub(crate) data: DataOptions,
    /// Recorded verdicts of judges over the same ids: asks no model. May hold verdicts over other data too; give --also for it.
    #[arg(long, value_name = "FILE")]
    pub(crate) recorded: Option<PathBuf>,
    /// More labelled pairs for --recorded.
    #[arg(long, value_name = "FILE", requires = "recorded")]
    pub(crate) also: Vec<PathBuf>,
    /// Rubric of pairs without their own: quality, personalization, or a TOML file. Default: personalization for pairs with a
    /// persona, else quality.
    #[arg(long, value_name = "RUBRIC")]
    pub(crate) rubric: Option<String>,
    /// How the judge gives its verdict.
    #[arg(long, value_enum, default_value = "feedback")]
    pub(crate) verdict: VerdictMode,
    #[command(flatten)]
    pub(crate) model: ModelOptions,
    #[command(flatten)]
    pub(crate) run: RunOptions,
}

/// The name of the stage in manifests.
pub(crate) const STAGE: &str = "agreement";

/// What people said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
enum Human {
    A,
    B,
    #[serde(rename = "tie")]
    Tie,
}

/// A labelled pair as files have it.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Labelled {
    Pair {
        id: String,
        prompt: String,
        response_a: String,
        response_b: String,
        human: Human,
        #[serde(default)]
        rubric: Option<String>,
        #[serde(default)]
        persona: Option<String>,
        /// Which part of a mixed set the pair is of.
        #[serde(default)]
        source: Option<String>,
    },
    Aligned {
        id: String,
        prompt: String,
        persona: String,
        aligned: String,
        misaligned: Vec<String>,
    },
}

#[derive(Debug, Deserialize)]
struct Recorded {
    id: String,
    judge: String,
    winner_ab: Option<Side>,
    winner_ba: Option<Side>,
}

/// Runs the stage.
pub(crate) async fn agreement(arguments: &Agreement) -> Result<()> {
    if let Some(recorded) = &arguments.recorded {
        return replay(arguments, recorded);
    }
    let labelled: Vec<Labelled> = read_jsonl(&arguments.data.data)?;
    let places = arguments.data.select.places(labelled.len());
    ensure!(!places.is_empty(), "{} has no pairs", arguments.data.data.display());
    let stem =
        arguments.data.data.file_stem().map_or_else(|| "data".into(), |stem| stem.to_string_lossy().into_owned());
    let dataset = arguments.data.dataset.clone().unwrap_or(stem);
    let prompts = Prompts::new(arguments.run.prompt_dir.clone(), &dataset);
    let template = prompts.template("judge-relative.txt")?;
    let asking = Asking { template: &template, mode: arguments.verdict, model: &arguments.model };
    let mut tasks = Vec::new();
    for place in places {
        tasks.extend(asking.tasks(comparison(&labelled[place], &prompts, arguments.rubric.as_deref())?)?);
    }
    let mut identity = Map::new();
    identity.insert("data_digest".to_owned(), file_digest(&arguments.data.data)?.into());
    identity.insert("select".to_owned(), json!(arguments.data.select));
    identity.insert("prompt_digest".to_owned(), template.digest.clone().into());
    identity.insert("rubric".to_owned(), json!(arguments.rubric));
    identity.insert("verdict".to_owned(), json!(arguments.verdict));
    let name = format!("agreement_{}", serde_json::to_value(arguments.verdict)?.as_str().unwrap_or_default());
    let plan = Plan { stage: STAGE, dataset: dataset.clone(), name, identity, tasks, annotate: comparison::annotate };
    let Some(folder) = execute(plan, &arguments.model, &arguments.run).await? else { return Ok(()) };
    let mut summaries = BTreeMap::new();
    let pairs = pairs_of_records(&folder.rows)?;
    let mut groups: BTreeMap<String, Vec<(Pair, Human)>> = BTreeMap::new();
    for pair in pairs {
        let human: Human = serde_json::from_value(pair.fields["human"].clone())?;
        let source = pair.text("source").to_owned();
        if !source.is_empty() {
            groups.entry(format!("{dataset}/{source}")).or_default().push((pair.clone(), human));
        }
        groups.entry(dataset.clone()).or_default().push((pair, human));
    }
    for (name, group) in groups {
        summaries.insert(name, summary(&group));
    }
    folder.write_summary(&summaries)?;
    print(&summaries);
    Ok(())
}

fn comparison(labelled: &Labelled, prompts: &Prompts, rubric: Option<&str>) -> Result<Comparison> {
    let built_in =
        |persona: bool| prompts.rubric(rubric.unwrap_or(if persona { "personalization" } else { "quality" }));
    let (id, prompt, first, second, human, rubric, persona, source) = match labelled {
        Labelled::Pair { id, prompt, response_a, response_b, human, rubric, persona, source } => {
            let own = |criterion: &String| Rubric {
                name: "own".to_owned(),
                criterion: criterion.clone(),
                scores: Vec::new(),
                uses_persona: persona.is_some(),
            };
            let rubric = rubric.as_ref().map(own).map_or_else(|| built_in(persona.is_some()), Ok)?;
            (id, prompt, response_a, response_b, *human, rubric, persona.as_ref(), source.as_deref())
        }
        Labelled::Aligned { id, prompt, persona, aligned, misaligned } => {
            let other = misaligned.first().with_context(|| format!("`{id}` has no misaligned answer"))?;
            (id, prompt, aligned, other, Human::A, built_in(true)?, Some(persona), None)
        }
    };
    let persona = persona.filter(|_| rubric.uses_persona).cloned().unwrap_or_default();
    let fields = json!({"id": id, "human": human, "source": source.unwrap_or_default()});
    Ok(Comparison {
        key: id.clone(),
        first: first.clone(),
        second: second.clone(),
        filling: json!({"prompt": prompt, "persona": persona, "reference": "", "rubric": rubric}),
        fields: fields.as_object().cloned().context("invariant: an object")?,
    })
}

/// Counts recorded verdicts by judge and by set, which is the start of an id.
fn replay(arguments: &Agreement, recorded: &Path) -> Result<()> {
    let mut humans: BTreeMap<String, Human> = BTreeMap::new();
    for file in std::iter::once(&arguments.data.data).chain(&arguments.also) {
        for labelled in read_jsonl::<Labelled>(file)? {
            match labelled {
                Labelled::Pair { id, human, .. } => humans.insert(id, human),
                Labelled::Aligned { id, .. } => humans.insert(id, Human::A),
            };
        }
    }
    let mut groups: BTreeMap<String, Vec<(Pair, Human)>> = BTreeMap::new();
    let mut num_unknown = 0;
    for Recorded { id, judge, winner_ab, winner_ba } in read_jsonl::<Recorded>(recorded)? {
        let Some(human) = humans.get(&id) else {
            num_unknown += 1;
            continue;
        };
        let verdict = |winner: Option<Side>| winner.map_or(Verdict::Unparsable, Verdict::Prefers);
        // In the second order the answers have changed places; the winner's name has not.
        let pair =
            Pair { ab: verdict(winner_ab), ba: verdict(winner_ba.map(Side::other)), margin: None, fields: Map::new() };
        let set = id.rsplit_once('-').map_or(id.as_str(), |(set, _)| set);
        groups.entry(format!("{judge} {set}")).or_default().push((pair, *human));
    }
    ensure!(!groups.is_empty(), "{} has no verdict over the ids of the data", recorded.display());
    let summaries: BTreeMap<String, Summary> =
        groups.iter().map(|(name, group)| (name.clone(), summary(group))).collect();
    if num_unknown > 0 {
        eprintln!("agreement: {num_unknown} recorded verdicts are over other ids; add their data with `--also`");
    }
    if let Some(out) = &arguments.run.out {
        let text = serde_json::to_string_pretty(&summaries)? + "\n";
        write_atomically(&out.join(crate::run_folder::SUMMARY), text.as_bytes())?;
    }
    print(&summaries);
    Ok(())
}

/// How a judge and people agree. Pairs that people call a tie count for `kappa` alone.
#[derive(Debug, PartialEq, Serialize)]
struct Summary {
    num_pairs: usize,
    num_human_ties: usize,
    num_unparsable: usize,
    /// Right verdicts among all verdicts, both orders: the average accuracy of LLMBar.
    accuracy: Option<f64>,
    /// Of pairs, whose two verdicts are not independent: from the number of pairs.
    accuracy_wilson: Option<Interval>,
    /// Pairs that both orders judge rightly, among pairs with both verdicts.
    accuracy_both_orders: Option<f64>,
    /// Pairs whose orders agree: the positional agreement of LLMBar.
    positional_agreement: Option<f64>,
    /// Right pairs where the mean of both orders' log-odds decides, among pairs with log-probabilities: what a judge likes
    /// about a place cancels out.
    accuracy_of_mean: Option<f64>,
    accuracy_of_mean_wilson: Option<Interval>,
    /// With people over A, B and tie, where orders that disagree are a tie.
    kappa: Option<f64>,
}

fn summary(group: &[(Pair, Human)]) -> Summary {
    let (mut hits, mut verdicts, mut strict, mut agree, mut both) = (0usize, 0usize, 0usize, 0usize, 0usize);
    let mut labels = Vec::new();
    let (mut num_unparsable, mut pairs_counted) = (0, 0usize);
    let (mut hits_of_mean, mut means) = (0usize, 0usize);
    for (pair, human) in group {
        let judge = match pair.outcome() {
            Outcome::Win => Some(Human::A),
            Outcome::Loss => Some(Human::B),
            Outcome::Tie => Some(Human::Tie),
            Outcome::Unparsable => None,
        };
        num_unparsable += usize::from(judge.is_none());
        labels.extend(judge.map(|judge| (judge, *human)));
        let right = match human {
            Human::A => Side::A,
            Human::B => Side::B,
            Human::Tie => continue,
        };
        if pair.margin.is_some() {
            means += 1;
            let wanted = if right == Side::A { Outcome::Win } else { Outcome::Loss };
            hits_of_mean += usize::from(pair.outcome_of_mean() == wanted);
        }
        let said = [(pair.ab, right), (pair.ba, right.other())];
        let hit = said.iter().filter(|(verdict, right)| *verdict == Verdict::Prefers(*right)).count();
        let num = said.iter().filter(|(verdict, _)| *verdict != Verdict::Unparsable).count();
        hits += hit;
        verdicts += num;
        pairs_counted += usize::from(num > 0);
        if num == 2 {
            both += 1;
            strict += usize::from(hit == 2);
            agree += usize::from(hit != 1);
        }
    }
    let share = |part: usize, whole: usize| (whole > 0).then(|| part as f64 / whole as f64);
    let accuracy = share(hits, verdicts);
    Summary {
        num_pairs: group.len(),
        num_human_ties: group.iter().filter(|(_, human)| *human == Human::Tie).count(),
        num_unparsable,
        accuracy,
        accuracy_wilson: accuracy.and_then(|accuracy| wilson(accuracy * pairs_counted as f64, pairs_counted as f64)),
        accuracy_both_orders: share(strict, both),
        positional_agreement: share(agree, both),
        accuracy_of_mean: share(hits_of_mean, means),
        accuracy_of_mean_wilson: wilson(hits_of_mean as f64, means as f64),
        kappa: cohen_kappa(&labels),
    }
}

#[expect(clippy::print_stdout, reason = "the table is the output of the command")]
fn print(summaries: &BTreeMap<String, Summary>) {
    let percent = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{:.1}", 100.0 * value));
    let range = |interval: Option<Interval>| {
        interval.map_or("-".to_owned(), |Interval { low, high }| format!("[{:.1}, {:.1}]", 100.0 * low, 100.0 * high))
    };
    for (name, summary) in summaries {
        let mean = match summary.accuracy_of_mean {
            Some(_) => format!(
                ", by the mean of both orders {} % {}",
                percent(summary.accuracy_of_mean),
                range(summary.accuracy_of_mean_wilson)
            ),
            None => String::new(),
        };
        println!(
            "{name}: n {}, accuracy {} % {}{mean}, both orders {} %, orders agree {} %, kappa {}, unparsable {}, human ties {}",
            summary.num_pairs,
            percent(summary.accuracy),
            range(summary.accuracy_wilson),
            percent(summary.accuracy_both_orders),
            percent(summary.positional_agreement),
            summary.kappa.map_or("-".to_owned(), |kappa| format!("{kappa:.3}")),
            summary.num_unparsable,
            summary.num_human_ties,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agreement_by_hand() {
        let pair = |ab: Verdict, ba: Verdict, human| (Pair { ab, ba, margin: None, fields: Map::new() }, human);
        let (a, b) = (Verdict::Prefers(Side::A), Verdict::Prefers(Side::B));
        let group = [
            pair(a, b, Human::A),
            pair(a, b, Human::B),
            pair(a, a, Human::A),
            pair(b, a, Human::B),
            pair(a, a, Human::Tie),
            pair(a, Verdict::Unparsable, Human::A),
        ];
        let summary = summary(&group);
        // Right: 2 + 0 + 1 + 2 + 1 of 2 + 2 + 2 + 2 + 1.
        assert_eq!(summary.accuracy, Some(6.0 / 9.0));
        assert_eq!((summary.accuracy_both_orders, summary.positional_agreement), (Some(0.5), Some(0.75)));
        assert_eq!((summary.num_pairs, summary.num_human_ties, summary.num_unparsable), (6, 1, 1));
        assert_eq!(summary.accuracy_of_mean, None);
        // Five labelled by both: A-A, A-B, tie-A, B-B, tie-tie: observed 3/5, chance 2/5 2/5 + 1/5 2/5 + 2/5 1/5 = 8/25.
        assert!((summary.kappa.unwrap() - (0.6 - 0.32) / 0.68).abs() < 1e-12);
    }

    #[test]
    fn the_mean_of_both_orders_counts_pairs_with_log_probabilities() {
        let a = Verdict::Prefers(Side::A);
        let pair = |margin, human| (Pair { ab: a, ba: a, margin, fields: Map::new() }, human);
        let group = [
            pair(Some(0.5), Human::A),
            pair(Some(0.5), Human::B),
            pair(Some(-2.0), Human::B),
            pair(Some(0.0), Human::A),
            pair(Some(1.0), Human::Tie),
            pair(None, Human::A),
        ];
        let summary = summary(&group);
        assert_eq!((summary.accuracy, summary.accuracy_of_mean), (Some(0.5), Some(0.5)));
    }
}
