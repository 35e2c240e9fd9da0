//! `accuracy`: can a judge tell from a persona which answer it was inferred for? (Paper, figure 3.)

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::infer::{InferRow, STAGE as INFER};
use crate::{
    comparison::{self, Asking, Comparison, Pair, pairs_of_records},
    judging::{Interval, Side, Verdict, clustered_standard_error, wilson},
    options::{ModelOptions, RunOptions, VerdictMode},
    prompts::Prompts,
    run_folder::read_run,
    session::{Plan, execute},
};

/// Arguments of `accuracy`.
#[derive(Args, Debug)]
pub(crate) struct Accuracy {
    /// Folder of a finished `infer` run.
    #[arg(long, value_name = "DIR")]
    pub(crate) infer: PathBuf,
    /// How the judge gives its verdict.
    #[arg(long, value_enum, default_value = "short")]
    pub(crate) verdict: VerdictMode,
    /// Take at most this many personas.
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<usize>,
    #[command(flatten)]
    pub(crate) model: ModelOptions,
    #[command(flatten)]
    pub(crate) run: RunOptions,
}

/// The name of the stage in manifests.
pub(crate) const STAGE: &str = "accuracy";

/// Runs the stage.
pub(crate) async fn accuracy(arguments: &Accuracy) -> Result<()> {
    let (manifest, rows) = read_run::<InferRow>(&arguments.infer, INFER)?;
    let dataset = manifest.identity.get("dataset").and_then(Value::as_str).unwrap_or("data").to_owned();
    let template = Prompts::new(arguments.run.prompt_dir.clone(), &dataset).template("accuracy.txt")?;
    let asking = Asking { template: &template, mode: arguments.verdict, model: &arguments.model };
    let mut tasks = Vec::new();
    let with_persona = rows.iter().filter(|row| !row.persona.is_empty());
    for row in with_persona.take(arguments.limit.unwrap_or(usize::MAX)) {
        let mut fields = Map::new();
        fields.insert("index".to_owned(), row.index.into());
        fields.insert("direction".to_owned(), row.direction.as_str().into());
        fields.insert("persona".to_owned(), row.persona.clone().into());
        tasks.extend(asking.tasks(Comparison {
            key: format!("{}/{}", row.index, row.direction.as_str()),
            first: row.preferred.clone(),
            second: row.other.clone(),
            filling: json!({"prompt": row.prompt, "persona": row.persona}),
            fields,
        })?);
    }
    let mut identity = Map::new();
    identity.insert("inferrer".to_owned(), manifest.identity.get("model").cloned().unwrap_or_default());
    identity.insert(
        "infer_identity".to_owned(),
        crate::prompts::short_digest(&serde_json::to_string(&manifest.identity)?).into(),
    );
    identity.insert("verdict".to_owned(), serde_json::to_value(arguments.verdict)?);
    identity.insert("prompt_digest".to_owned(), template.digest.clone().into());
    let name = "persona_accuracy".to_owned();
    let plan = Plan { stage: STAGE, dataset, name, identity, tasks, annotate: comparison::annotate };
    let Some(folder) = execute(plan, &arguments.model, &arguments.run).await? else { return Ok(()) };
    let summary = summary(&pairs_of_records(&folder.rows)?);
    folder.write_summary(&summary)?;
    print(&summary);
    Ok(())
}

/// The accuracy of one kind of persona.
#[derive(Debug, Default, PartialEq, Serialize)]
pub(crate) struct Share {
    num_personas: usize,
    num_verdicts: usize,
    num_unparsable: usize,
    /// Right verdicts among all verdicts.
    accuracy: Option<f64>,
    /// Clustered by row.
    standard_error: Option<f64>,
    wilson: Option<Interval>,
    /// Personas that both orders put to the right answer, among those with two verdicts.
    accuracy_both_orders: Option<f64>,
}

/// Concludes for `chosen`, `rejected` and `all`.
fn summary(pairs: &[Pair]) -> BTreeMap<&'static str, Share> {
    let of = |direction: Option<&str>| -> Vec<&Pair> {
        pairs.iter().filter(|pair| direction.is_none_or(|direction| pair.text("direction") == direction)).collect()
    };
    [("chosen", share(&of(Some("chosen")))), ("rejected", share(&of(Some("rejected")))), ("all", share(&of(None)))]
        .into()
}

fn share(pairs: &[&Pair]) -> Share {
    let right = |verdict: Verdict, side: Side| match verdict {
        Verdict::Prefers(said) => Some(f64::from(u8::from(said == side))),
        Verdict::Unparsable => None,
    };
    let hits = |pair: &Pair| [right(pair.ab, Side::A), right(pair.ba, Side::B)];
    let mut clusters: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    let (mut num_both, mut num_both_right) = (0usize, 0usize);
    for pair in pairs {
        let index = pair.fields.get("index").and_then(Value::as_u64).unwrap_or_default();
        clusters.entry(index).or_default().extend(hits(pair).into_iter().flatten());
        if let [Some(ab), Some(ba)] = hits(pair) {
            num_both += 1;
            num_both_right += usize::from(ab + ba == 2.0);
        }
    }
    let clusters: Vec<Vec<f64>> = clusters.into_values().collect();
    let verdicts: Vec<f64> = clusters.iter().flatten().copied().collect();
    let (sum, total) = (verdicts.iter().sum::<f64>(), verdicts.len() as f64);
    Share {
        num_personas: pairs.len(),
        num_verdicts: verdicts.len(),
        num_unparsable: 2 * pairs.len() - verdicts.len(),
        accuracy: (total > 0.0).then(|| sum / total),
        standard_error: clustered_standard_error(&clusters),
        wilson: wilson(sum, total),
        accuracy_both_orders: (num_both > 0).then(|| num_both_right as f64 / num_both as f64),
    }
}

#[expect(clippy::print_stdout, reason = "the table is the output of the command")]
fn print(summary: &BTreeMap<&'static str, Share>) {
    println!("personas   n  accuracy  std.err.  both orders  unparsable");
    for (name, share) in summary {
        let percent = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{:.1}", 100.0 * value));
        println!(
            "{name:8} {:4} {:>8}% {:>8}% {:>11}% {:>11}",
            share.num_personas,
            percent(share.accuracy),
            percent(share.standard_error),
            percent(share.accuracy_both_orders),
            share.num_unparsable
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accuracy_by_hand() {
        let pair = |index: u64, direction: &str, ab: Verdict, ba: Verdict| Pair {
            ab,
            ba,
            margin: None,
            fields: json!({"index": index, "direction": direction}).as_object().unwrap().clone(),
        };
        let (a, b) = (Verdict::Prefers(Side::A), Verdict::Prefers(Side::B));
        let pairs = [pair(0, "chosen", a, b), pair(0, "rejected", a, a), pair(1, "chosen", Verdict::Unparsable, b)];
        let summary = summary(&pairs);
        assert_eq!((summary["chosen"].accuracy, summary["rejected"].accuracy), (Some(1.0), Some(0.5)));
        let all = &summary["all"];
        assert_eq!((all.num_verdicts, all.num_unparsable, all.accuracy), (5, 1, Some(0.8)));
        assert_eq!(all.accuracy_both_orders, Some(0.5));
    }
}
