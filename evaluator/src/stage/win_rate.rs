//! `win-rate`: counts the verdicts of one or more judges over the same pairs of answers.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::Value;

use super::judge::RELATIVE;
use crate::{
    comparison::{OrderRow, Pair, pairs},
    judging::{
        Counts, Interval, LengthControlled, Outcome, Side, Verdict, bootstrap, cohen_kappa, is_repetitive,
        krippendorff_alpha, length_controlled, sign_test, wilson,
    },
    run_folder::{SUMMARY, read_run, write_atomically},
};

/// Arguments of `win-rate`.
#[derive(Args, Debug)]
pub(crate) struct WinRate {
    /// Folder of a finished relative `judge` run. Several judges of the same pairs: give it repeatedly.
    #[arg(long, value_name = "DIR", required = true)]
    pub(crate) judge: Vec<PathBuf>,
    /// What makes a win of two verdicts.
    #[arg(long, value_enum, default_value = "agree")]
    pub(crate) decide: Decide,
    /// Leave pairs out in which one of the answers is repetitive, as the paper does for Anthropic-HHH.
    #[arg(long)]
    pub(crate) drop_repetitive: bool,
    /// Seed of the bootstrap.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Where to write the summary. Default: summary.json in the first folder.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

/// How the two orders of a pair become an outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Decide {
    /// Both orders must prefer the same answer; else it is a tie.
    Agree,
    /// The mean of both orders' log-odds decides, which takes out what a judge likes about a place. For `judge --verdict logprob`.
    Mean,
}

impl Decide {
    fn outcome(self, pair: &Pair) -> Outcome {
        match self {
            Self::Agree => pair.outcome(),
            Self::Mean => pair.outcome_of_mean(),
        }
    }
}

/// Draws of a bootstrap: the ends of an interval of 95 % are then steady to about a percent of its width.
const NUM_DRAWS: usize = 2000;

/// What `win-rate` concludes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Summary {
    /// The run under test and the one that it is compared with.
    a: String,
    b: String,
    judges: Vec<JudgeSummary>,
    /// Between judges, over wins, ties and losses; for two judges.
    cohen_kappa: Option<f64>,
    /// Likewise, for any number.
    krippendorff_alpha: Option<f64>,
    dropped_repetitive: bool,
    decided_by: Decide,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct JudgeSummary {
    judge: String,
    rubrics: BTreeMap<String, RubricSummary>,
    /// The mean of the rubrics' deltas. **Source**: paper, Delta-PQ.
    delta_pq: Option<f64>,
    delta_pq_interval: Option<Interval>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct RubricSummary {
    counts: Counts,
    num_repetitive: u64,
    win_rate: Option<f64>,
    /// Bootstrap, clustered by prompt, as all intervals here.
    win_rate_interval: Option<Interval>,
    delta: Option<f64>,
    delta_interval: Option<Interval>,
    /// Of prompts with more wins than losses against the others.
    sign_test_p: f64,
    /// The share of pairs whose two orders disagree.
    position_bias: Option<f64>,
    position_bias_wilson: Option<Interval>,
    /// The share of single verdicts for what stood first.
    first_preferred: Option<f64>,
    length_controlled: Option<LengthControlled>,
}

/// Runs the stage.
pub(crate) fn win_rate(arguments: &WinRate) -> Result<()> {
    let mut judges = Vec::new();
    let mut compared: Option<(Value, Value)> = None;
    let mut verdicts: Vec<BTreeMap<String, Outcome>> = Vec::new();
    for dir in &arguments.judge {
        let (manifest, rows) = read_run::<OrderRow>(dir, RELATIVE)?;
        let side = |name: &str| manifest.identity.get(name).cloned().unwrap_or_default();
        let sides = (side("a"), side("b"));
        let first = compared.get_or_insert_with(|| sides.clone());
        ensure!(*first == sides, "{} judged other runs than {}", dir.display(), arguments.judge[0].display());
        let pairs = pairs(rows)?;
        let decidable = arguments.decide == Decide::Agree || pairs.iter().all(|pair| pair.margin.is_some());
        ensure!(decidable, "`--decide mean` needs log-probabilities: {} is not of `--verdict logprob`", dir.display());
        let mut outcomes = BTreeMap::new();
        for pair in &pairs {
            outcomes
                .insert(format!("{}/{}", pair.text("rubric"), pair.fields["index"]), arguments.decide.outcome(pair));
        }
        verdicts.push(outcomes);
        let judge = manifest.identity.get("model").and_then(|model| model.get("model")).and_then(Value::as_str);
        judges.push(judge_summary(judge.unwrap_or("?"), pairs, arguments));
    }
    let label = |side: &Value| side.get("label").and_then(Value::as_str).unwrap_or("?").to_owned();
    let (a, b) = compared.map(|(a, b)| (label(&a), label(&b))).unwrap_or_default();
    let (cohen_kappa, krippendorff_alpha) = between(&verdicts);
    let dropped_repetitive = arguments.drop_repetitive;
    let summary =
        Summary { a, b, judges, cohen_kappa, krippendorff_alpha, dropped_repetitive, decided_by: arguments.decide };
    let out = arguments.out.clone().unwrap_or_else(|| arguments.judge[0].join(SUMMARY));
    write_atomically(&out, (serde_json::to_string_pretty(&summary)? + "\n").as_bytes())?;
    print(&summary);
    Ok(())
}

fn judge_summary(judge: &str, pairs: Vec<Pair>, arguments: &WinRate) -> JudgeSummary {
    let mut by_rubric: BTreeMap<String, Vec<Pair>> = BTreeMap::new();
    for pair in pairs {
        by_rubric.entry(pair.text("rubric").to_owned()).or_default().push(pair);
    }
    let mut rubrics = BTreeMap::new();
    // Counts of each prompt under each rubric, for the interval of the mean over rubrics.
    let mut clusters: BTreeMap<String, Vec<Counts>> = BTreeMap::new();
    let num_rubrics = by_rubric.len();
    for (place, (rubric, pairs)) in by_rubric.into_iter().enumerate() {
        let (kept, repetitive): (Vec<Pair>, Vec<Pair>) = pairs.into_iter().partition(|pair| !repeats(pair));
        let num_repetitive = repetitive.len() as u64;
        let kept = if arguments.drop_repetitive { kept } else { kept.into_iter().chain(repetitive).collect() };
        for pair in &kept {
            let cluster = clusters.entry(pair.text("prompt").to_owned());
            cluster.or_insert_with(|| vec![Counts::default(); num_rubrics])[place].add(arguments.decide.outcome(pair));
        }
        rubrics.insert(rubric, rubric_summary(&kept, num_repetitive, arguments));
    }
    let clusters: Vec<Vec<Counts>> = clusters.into_values().collect();
    let mean_delta = |drawn: &mut dyn Iterator<Item = &Vec<Counts>>| {
        let mut sums = vec![Counts::default(); num_rubrics];
        drawn.for_each(|counts| sums.iter_mut().zip(counts).for_each(|(sum, counts)| *sum = sum.plus(*counts)));
        let deltas: Option<Vec<f64>> = sums.into_iter().map(Counts::delta).collect();
        deltas.map(|deltas| deltas.iter().sum::<f64>() / deltas.len() as f64)
    };
    JudgeSummary {
        judge: judge.to_owned(),
        rubrics,
        delta_pq: mean_delta(&mut clusters.iter()),
        delta_pq_interval: bootstrap(&clusters, NUM_DRAWS, arguments.seed, mean_delta),
    }
}

fn repeats(pair: &Pair) -> bool {
    is_repetitive(pair.text("response_a")) || is_repetitive(pair.text("response_b"))
}

fn rubric_summary(pairs: &[Pair], num_repetitive: u64, arguments: &WinRate) -> RubricSummary {
    let (decide, seed) = (arguments.decide, arguments.seed);
    let mut clusters: BTreeMap<&str, Counts> = BTreeMap::new();
    for pair in pairs {
        clusters.entry(pair.text("prompt")).or_default().add(decide.outcome(pair));
    }
    let orders: Counts = pairs.iter().map(Pair::outcome).collect();
    let clusters: Vec<Counts> = clusters.into_values().collect();
    let sum = |drawn: &mut dyn Iterator<Item = &Counts>| drawn.fold(Counts::default(), |sum, counts| sum.plus(*counts));
    let counts = sum(&mut clusters.iter());
    let better = clusters.iter().filter(|counts| counts.wins > counts.losses).count() as u64;
    let worse = clusters.iter().filter(|counts| counts.wins < counts.losses).count() as u64;
    let share = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
    let said = |verdict: Verdict| matches!(verdict, Verdict::Prefers(_));
    let verdicts = pairs.iter().flat_map(|pair| [pair.ab, pair.ba]);
    let first = verdicts.clone().filter(|verdict| *verdict == Verdict::Prefers(Side::A)).count() as u64;
    let points: Vec<(f64, f64)> = pairs.iter().filter_map(|pair| point(pair, decide)).collect();
    RubricSummary {
        counts,
        num_repetitive,
        win_rate: counts.win_rate(),
        win_rate_interval: bootstrap(&clusters, NUM_DRAWS, seed, |drawn| sum(drawn).win_rate()),
        delta: counts.delta(),
        delta_interval: bootstrap(&clusters, NUM_DRAWS, seed, |drawn| sum(drawn).delta()),
        sign_test_p: sign_test(better, worse),
        position_bias: share(orders.ties, orders.judged()),
        position_bias_wilson: wilson(orders.ties as f64, orders.judged() as f64),
        first_preferred: share(first, verdicts.filter(|verdict| said(*verdict)).count() as u64),
        length_controlled: length_controlled(&points),
    }
}

/// The win of a pair and its difference in length, for the length-controlled win rate.
fn point(pair: &Pair, decide: Decide) -> Option<(f64, f64)> {
    let win = match decide.outcome(pair) {
        Outcome::Win => 1.0,
        Outcome::Tie => 0.5,
        Outcome::Loss => 0.0,
        Outcome::Unparsable => return None,
    };
    let words = |name: &str| pair.fields.get(name).and_then(Value::as_f64);
    Some((win, words("words_a")? - words("words_b")?))
}

/// Returns Cohen's kappa of two judges and Krippendorff's alpha of all, over pairs with a verdict.
fn between(judges: &[BTreeMap<String, Outcome>]) -> (Option<f64>, Option<f64>) {
    let label = |outcome: Option<&Outcome>| match outcome {
        Some(Outcome::Win) => Some("win"),
        Some(Outcome::Tie) => Some("tie"),
        Some(Outcome::Loss) => Some("loss"),
        Some(Outcome::Unparsable) | None => None,
    };
    let [first, others @ ..] = judges else { return (None, None) };
    if others.is_empty() {
        return (None, None);
    }
    let items: Vec<Vec<Option<&str>>> =
        first.keys().map(|key| judges.iter().map(|judge| label(judge.get(key))).collect()).collect();
    let both: Vec<(&str, &str)> = items.iter().filter_map(|item| Some((item[0]?, item[1]?))).collect();
    let kappa = if judges.len() == 2 { cohen_kappa(&both) } else { None };
    (kappa, krippendorff_alpha(&items))
}

#[expect(clippy::print_stdout, reason = "the table is the output of the command")]
fn print(summary: &Summary) {
    println!("A: {}\nB: {}", summary.a, summary.b);
    let percent = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{:.1} %", 100.0 * value));
    let range = |interval: &Option<Interval>, scale: f64| match interval {
        Some(Interval { low, high }) => format!("[{:.1}, {:.1}]", low * scale, high * scale),
        None => "-".to_owned(),
    };
    let number = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:+.1}"));
    for judge in &summary.judges {
        println!("\njudge: {}", judge.judge);
        for (name, rubric) in &judge.rubrics {
            let Counts { wins, ties, losses, unparsable } = rubric.counts;
            println!(
                "{name}: W {wins} T {ties} L {losses}, unparsable {unparsable}, repetitive {}",
                rubric.num_repetitive
            );
            let controlled = rubric.length_controlled.map(|fit| fit.win_rate);
            println!(
                "  win rate {} {}, length-controlled {}, sign test p = {:.4}",
                percent(rubric.win_rate),
                range(&rubric.win_rate_interval, 100.0),
                percent(controlled),
                rubric.sign_test_p
            );
            println!(
                "  delta {} {}, orders disagree {}, first preferred {}",
                number(rubric.delta),
                range(&rubric.delta_interval, 1.0),
                percent(rubric.position_bias),
                percent(rubric.first_preferred)
            );
        }
        println!("Delta-PQ {} {}", number(judge.delta_pq), range(&judge.delta_pq_interval, 1.0));
    }
    if let Some(alpha) = summary.krippendorff_alpha {
        let kappa = summary.cohen_kappa.map_or(String::new(), |kappa| format!(", Cohen's kappa {kappa:.3}"));
        println!("\nbetween judges: Krippendorff's alpha {alpha:.3}{kappa}");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pair(rubric: &str, index: u64, ab: Side, ba: Side) -> Pair {
        let fields = json!({"rubric": rubric, "index": index, "prompt": format!("p{index}"), "response_a": "x",
            "response_b": "y", "words_a": 1, "words_b": 1});
        Pair {
            ab: Verdict::Prefers(ab),
            ba: Verdict::Prefers(ba),
            margin: None,
            fields: fields.as_object().unwrap().clone(),
        }
    }

    fn counted_by(decide: Decide, drop_repetitive: bool) -> WinRate {
        WinRate { judge: Vec::new(), decide, drop_repetitive, seed: 1, out: None }
    }

    #[test]
    fn rates_by_hand() {
        let arguments = counted_by(Decide::Agree, false);
        let mut pairs: Vec<Pair> = (0..3).map(|index| pair("q", index, Side::A, Side::B)).collect();
        pairs.push(pair("q", 3, Side::B, Side::A));
        pairs.push(pair("q", 4, Side::A, Side::A));
        pairs.extend((0..2).map(|index| pair("p", index, Side::A, Side::B)));
        pairs.extend((2..4).map(|index| pair("p", index, Side::B, Side::A)));
        let summary = judge_summary("j", pairs, &arguments);
        let quality = &summary.rubrics["q"];
        assert_eq!((quality.win_rate, quality.delta, quality.position_bias), (Some(0.7), Some(50.0), Some(0.2)));
        assert_eq!((quality.first_preferred, quality.sign_test_p), (Some(0.6), 0.625));
        assert!((quality.length_controlled.unwrap().win_rate - 0.7).abs() < 1e-3);
        assert_eq!(summary.delta_pq, Some(25.0));
        let interval = summary.delta_pq_interval.unwrap();
        assert!(interval.low < 25.0 && interval.high > 25.0);
    }

    #[test]
    fn repetitive_answers_can_be_left_out() {
        let mut looping = pair("q", 0, Side::A, Side::B);
        looping.fields["response_b"] = "I do not know what to say. ".repeat(6).into();
        let pairs = vec![looping, pair("q", 1, Side::B, Side::A)];
        let of = |drop_repetitive| {
            judge_summary("j", pairs.clone(), &counted_by(Decide::Agree, drop_repetitive)).rubrics["q"].clone()
        };
        assert_eq!((of(false).win_rate, of(true).win_rate, of(true).num_repetitive), (Some(0.5), Some(0.0), 1));
    }

    #[test]
    fn the_mean_of_both_orders_decides_where_they_disagree() {
        let first_always = |margin| Pair { margin: Some(margin), ..pair("q", 0, Side::A, Side::A) };
        let pairs = vec![first_always(1.0), first_always(0.5), first_always(-0.1), first_always(0.0)];
        let of = |decide| judge_summary("j", pairs.clone(), &counted_by(decide, false)).rubrics["q"].clone();
        let (agree, mean) = (of(Decide::Agree), of(Decide::Mean));
        assert_eq!((agree.counts.ties, agree.win_rate), (4, Some(0.5)));
        assert_eq!((mean.counts.wins, mean.counts.ties, mean.counts.losses), (2, 1, 1));
        assert_eq!((agree.position_bias, mean.position_bias), (Some(1.0), Some(1.0)), "what the orders said stays");
    }

    #[test]
    fn judges_agree_with_themselves() {
        let verdicts: BTreeMap<String, Outcome> =
            [("a".to_owned(), Outcome::Win), ("b".to_owned(), Outcome::Loss), ("c".to_owned(), Outcome::Unparsable)]
                .into();
        assert_eq!(between(&[verdicts.clone(), verdicts.clone()]), (Some(1.0), Some(1.0)));
        assert_eq!(between(&[verdicts]), (None, None));
    }
}
