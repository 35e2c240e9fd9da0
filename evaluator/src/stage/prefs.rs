//! `prefs`: which personas does a judge find better, those of the chosen or those of the rejected answers? (Paper, figure 4.)

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::infer::{Direction, InferRow, STAGE as INFER};
use crate::{
    comparison::{self, Asking, Comparison, Pair, pairs_of_records},
    judging::{Counts, Interval, bootstrap, sign_test, wilson},
    options::{ModelOptions, RunOptions, VerdictMode},
    prompts::{Prompts, short_digest},
    run_folder::{Manifest, read_run},
    session::{Plan, execute},
};

/// Arguments of `prefs`.
#[derive(Args, Debug)]
pub(crate) struct Prefs {
    /// Folder of a finished `infer` run with both directions.
    #[arg(long, value_name = "DIR")]
    pub(crate) infer: PathBuf,
    /// How the judge gives its verdict.
    #[arg(long, value_enum, default_value = "short")]
    pub(crate) verdict: VerdictMode,
    /// Take at most this many rows.
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<usize>,
    #[command(flatten)]
    pub(crate) model: ModelOptions,
    #[command(flatten)]
    pub(crate) run: RunOptions,
}

/// The name of the stage in manifests.
pub(crate) const STAGE: &str = "prefs";
/// Draws of a bootstrap: the ends of an interval of 95 % are then steady to about a percent of its width.
const NUM_DRAWS: usize = 2000;

/// Runs the stage.
pub(crate) async fn prefs(arguments: &Prefs) -> Result<()> {
    let (manifest, by_row) = both_directions(&arguments.infer)?;
    let dataset = manifest.identity.get("dataset").and_then(Value::as_str).unwrap_or("data").to_owned();
    let template = Prompts::new(arguments.run.prompt_dir.clone(), &dataset).template("prefs.txt")?;
    let asking = Asking { template: &template, mode: arguments.verdict, model: &arguments.model };
    let mut tasks = Vec::new();
    for (index, [chosen, rejected]) in by_row.iter().take(arguments.limit.unwrap_or(usize::MAX)) {
        let mut fields = Map::new();
        fields.insert("index".to_owned(), (*index).into());
        fields.insert("chosen_persona".to_owned(), chosen.persona.clone().into());
        fields.insert("rejected_persona".to_owned(), rejected.persona.clone().into());
        tasks.extend(asking.tasks(Comparison {
            key: index.to_string(),
            first: chosen.persona.clone(),
            second: rejected.persona.clone(),
            filling: json!({"prompt": chosen.prompt}),
            fields,
        })?);
    }
    let mut identity = Map::new();
    identity.insert("inferrer".to_owned(), manifest.identity.get("model").cloned().unwrap_or_default());
    identity.insert("infer_identity".to_owned(), short_digest(&serde_json::to_string(&manifest.identity)?).into());
    identity.insert("verdict".to_owned(), serde_json::to_value(arguments.verdict)?);
    identity.insert("prompt_digest".to_owned(), template.digest.clone().into());
    let name = "persona_prefs".to_owned();
    let plan = Plan { stage: STAGE, dataset, name, identity, tasks, annotate: comparison::annotate };
    let Some(folder) = execute(plan, &arguments.model, &arguments.run).await? else { return Ok(()) };
    let summary = summary(&pairs_of_records(&folder.rows)?, arguments.model.seed);
    folder.write_summary(&summary)?;
    print(&summary);
    Ok(())
}

/// Rows with a persona for each direction.
fn both_directions(dir: &Path) -> Result<(Manifest, BTreeMap<usize, [InferRow; 2]>)> {
    let (manifest, rows) = read_run::<InferRow>(dir, INFER)?;
    let mut by_key: BTreeMap<(usize, Direction), InferRow> = BTreeMap::new();
    by_key.extend(rows.into_iter().filter(|row| !row.persona.is_empty()).map(|row| ((row.index, row.direction), row)));
    let mut both = BTreeMap::new();
    for ((index, direction), chosen) in &by_key {
        if let (Direction::Chosen, Some(rejected)) = (direction, by_key.get(&(*index, Direction::Rejected))) {
            both.insert(*index, [chosen.clone(), rejected.clone()]);
        }
    }
    anyhow::ensure!(!both.is_empty(), "{} has no row with both personas", dir.display());
    Ok((manifest, both))
}

/// What the judge prefers.
#[derive(Debug, PartialEq, Serialize)]
struct Summary {
    /// A win is a row whose chosen persona is preferred.
    counts: Counts,
    /// Shares of the rows with verdicts.
    chosen: Option<f64>,
    tie: Option<f64>,
    rejected: Option<f64>,
    chosen_wilson: Option<Interval>,
    delta_interval: Option<Interval>,
    /// Of chosen against rejected, ties left out.
    sign_test_p: f64,
}

fn summary(pairs: &[Pair], seed: u64) -> Summary {
    let outcomes: Vec<_> = pairs.iter().map(Pair::outcome).collect();
    let counts: Counts = outcomes.iter().copied().collect();
    let share = |part: u64| (counts.judged() > 0).then(|| part as f64 / counts.judged() as f64);
    Summary {
        counts,
        chosen: share(counts.wins),
        tie: share(counts.ties),
        rejected: share(counts.losses),
        chosen_wilson: wilson(counts.wins as f64, counts.judged() as f64),
        delta_interval: bootstrap(&outcomes, NUM_DRAWS, seed, |drawn| drawn.copied().collect::<Counts>().delta()),
        sign_test_p: sign_test(counts.wins, counts.losses),
    }
}

#[expect(clippy::print_stdout, reason = "the table is the output of the command")]
fn print(summary: &Summary) {
    let Counts { wins, ties, losses, unparsable } = summary.counts;
    println!("chosen {wins}, tie {ties}, rejected {losses}, unparsable {unparsable}; p = {:.4}", summary.sign_test_p);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judging::{Side, Verdict};

    #[test]
    fn shares_by_hand() {
        let pair =
            |ab, ba| Pair { ab: Verdict::Prefers(ab), ba: Verdict::Prefers(ba), margin: None, fields: Map::new() };
        let pairs = [pair(Side::A, Side::B), pair(Side::A, Side::B), pair(Side::A, Side::A), pair(Side::B, Side::A)];
        let summary = summary(&pairs, 1);
        assert_eq!((summary.chosen, summary.tie, summary.rejected), (Some(0.5), Some(0.25), Some(0.25)));
        assert_eq!(summary.sign_test_p, 1.0);
    }
}
