//! Comparisons: a judge sees two things in both orders; the two tasks of a pair, and the verdicts read back from their rows.
//!
//! Place in the flow: `accuracy`, `prefs`, `judge` and `agreement` make [`Comparison`]s, the batch runs their two tasks, and
//! [`pairs`] puts the rows of both orders together again.

use anyhow::{Result, ensure};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{
    batch::Task,
    case::{Case, CasePrompt},
    judging::{Outcome, Side, Verdict, parse_relative},
    options::{ModelOptions, VerdictMode},
    prompts::PromptTemplate,
    run_folder::Record,
};

/// A question about two things.
pub(crate) struct Comparison {
    /// Names the pair within the run.
    pub(crate) key: String,
    pub(crate) first: String,
    pub(crate) second: String,
    /// What else the prompt takes.
    pub(crate) filling: Value,
    /// What else both rows hold.
    pub(crate) fields: Map<String, Value>,
}

/// How comparisons are put to a judge.
pub(crate) struct Asking<'a> {
    pub(crate) template: &'a PromptTemplate,
    pub(crate) mode: VerdictMode,
    pub(crate) model: &'a ModelOptions,
}

/// Room for a comparison of a few sentences and the verdict.
const FEEDBACK_TOKENS: u32 = 320;
/// Room for `[RESULT] A` in any tokenizer.
const SHORT_TOKENS: u32 = 12;
/// What every verdict begins with.
const MARKER: &str = "[RESULT]";
/// What the engine scores behind the marker.
const OPTIONS: [&str; 2] = [" A", " B"];

impl Asking<'_> {
    /// Returns the task of one prompt.
    pub(crate) fn task(&self, key: String, filling: Value, fields: Map<String, Value>) -> Result<Task> {
        let feedback = self.mode == VerdictMode::Feedback;
        let text = self.template.fill(with(filling, json!({"feedback": feedback})))?;
        let can_start = self.model.can_start_answer();
        ensure!(
            can_start || self.mode != VerdictMode::Logprob,
            "`--verdict logprob` needs our engine: use short or feedback"
        );
        let answer_start = if feedback { "" } else { MARKER }.to_owned();
        let settings = self.model.settings(if feedback { FEEDBACK_TOKENS } else { SHORT_TOKENS });
        let options = match self.mode {
            VerdictMode::Logprob => OPTIONS.map(str::to_owned).to_vec(),
            VerdictMode::Feedback | VerdictMode::Short => Vec::new(),
        };
        Ok(Task { key, case: Case { prompt: CasePrompt::Instruct { text, answer_start }, settings }, options, fields })
    }

    /// Returns the two tasks of a comparison.
    pub(crate) fn tasks(&self, comparison: Comparison) -> Result<[Task; 2]> {
        let Comparison { key, first, second, filling, fields } = comparison;
        let one = |order: &str, response_a: &str, response_b: &str| {
            let mut fields = fields.clone();
            fields.insert("pair".to_owned(), key.clone().into());
            fields.insert("order".to_owned(), order.into());
            let filling = with(filling.clone(), json!({"response_a": response_a, "response_b": response_b}));
            self.task(format!("{key}/{order}"), filling, fields)
        };
        Ok([one("ab", &first, &second)?, one("ba", &second, &first)?])
    }
}

/// Returns both objects as one.
pub(crate) fn with(mut filling: Value, more: Value) -> Value {
    if let (Value::Object(filling), Value::Object(more)) = (&mut filling, more) {
        filling.extend(more);
    }
    filling
}

/// Adds `verdict` to a row of a comparison: `A`, `B`, or null where there is none.
pub(crate) fn annotate(row: &mut Record) {
    let verdict = match verdict_of(row) {
        Verdict::Prefers(Side::A) => Value::from("A"),
        Verdict::Prefers(Side::B) => Value::from("B"),
        Verdict::Unparsable => Value::Null,
    };
    row.insert("verdict".to_owned(), verdict);
}

/// Returns the log-probabilities of the verdicts A and B, where the row has them.
fn logprobs_of(row: &Record) -> Option<[f64; 2]> {
    let [a, b] = row.get("logprobs")?.as_array()?.as_slice() else { return None };
    Some([a.as_f64()?, b.as_f64()?])
}

fn verdict_of(row: &Record) -> Verdict {
    match logprobs_of(row) {
        Some([a, b]) if a > b => Verdict::Prefers(Side::A),
        Some([a, b]) if b > a => Verdict::Prefers(Side::B),
        Some(_) => Verdict::Unparsable,
        // The marker is put before the answer of our engine; an answer that has it anyway is read as it is.
        _ => parse_relative(row.get("answer").and_then(Value::as_str).unwrap_or_default()),
    }
}

/// One row of a comparison as later stages read it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct OrderRow {
    pub(crate) pair: String,
    order: String,
    verdict: Option<Side>,
    /// What else the row holds.
    #[serde(flatten)]
    pub(crate) fields: Map<String, Value>,
}

/// Both orders of a comparison.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub(crate) ab: Verdict,
    pub(crate) ba: Verdict,
    /// How much more likely the verdict for the first is than that for the second, in log-odds, the mean of both orders: what
    /// a judge likes about a place is in both with opposite signs. None without log-probabilities.
    pub(crate) margin: Option<f64>,
    pub(crate) fields: Map<String, Value>,
}

impl Pair {
    /// A win needs both orders.
    pub(crate) fn outcome(&self) -> Outcome {
        Outcome::of_orders(self.ab, self.ba)
    }

    /// The mean of both orders decides.
    pub(crate) fn outcome_of_mean(&self) -> Outcome {
        match self.margin {
            Some(margin) if margin > 0.0 => Outcome::Win,
            Some(margin) if margin < 0.0 => Outcome::Loss,
            Some(_) => Outcome::Tie,
            None => Outcome::Unparsable,
        }
    }

    /// Returns a text of the rows; empty where there is none.
    pub(crate) fn text(&self, name: &str) -> &str {
        self.fields.get(name).and_then(Value::as_str).unwrap_or_default()
    }
}

/// Puts the rows of both orders together, in the order of the rows.
///
/// **Errors**: a pair with one order only.
pub(crate) fn pairs(rows: Vec<OrderRow>) -> Result<Vec<Pair>> {
    let mut pairs = Vec::with_capacity(rows.len() / 2);
    let mut rows = rows.into_iter();
    while let Some(ab) = rows.next() {
        let ba = rows.next();
        let ba = ba.filter(|ba| ba.pair == ab.pair && ab.order == "ab" && ba.order == "ba");
        let Some(ba) = ba else { anyhow::bail!("pair `{}` has not both orders", ab.pair) };
        let verdict = |row: &OrderRow| row.verdict.map_or(Verdict::Unparsable, Verdict::Prefers);
        let margin = |row: &OrderRow| logprobs_of(&row.fields).map(|[a, b]| a - b);
        let margin = margin(&ab).zip(margin(&ba)).map(|(ab, ba)| (ab - ba) / 2.0);
        pairs.push(Pair { ab: verdict(&ab), ba: verdict(&ba), margin, fields: ab.fields });
    }
    Ok(pairs)
}

/// Reads rows that are still in memory, as [`pairs`] reads those of a file.
pub(crate) fn pairs_of_records(rows: &[Record]) -> Result<Vec<Pair>> {
    let rows = rows.iter().map(|row| serde_json::from_value(Value::Object(row.clone())));
    pairs(rows.collect::<Result<Vec<OrderRow>, _>>()?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn annotated(row: Value) -> Value {
        let Value::Object(mut row) = row else { panic!("an object") };
        annotate(&mut row);
        row["verdict"].clone()
    }

    #[test]
    fn verdicts_come_from_text_or_from_log_probabilities() {
        assert_eq!(annotated(json!({"answer": "x [RESULT] B"})), json!("B"));
        assert_eq!(annotated(json!({"answer": " A"})), json!("A"));
        assert_eq!(annotated(json!({"answer": "Both."})), Value::Null);
        assert_eq!(annotated(json!({"answer": "", "logprobs": [-0.1, -3.0]})), json!("A"));
        assert_eq!(annotated(json!({"answer": "", "logprobs": [-1.0, -1.0]})), Value::Null);
    }

    #[test]
    fn both_orders_make_a_pair() {
        let row = |pair: &str, order: &str, verdict: Value| {
            json!({"pair": pair, "order": order, "verdict": verdict, "prompt": "q"}).as_object().unwrap().clone()
        };
        let rows = [
            row("1", "ab", json!("A")),
            row("1", "ba", json!("B")),
            row("2", "ab", json!("A")),
            row("2", "ba", json!(null)),
        ];
        let pairs = pairs_of_records(&rows).unwrap();
        assert_eq!(pairs.iter().map(Pair::outcome).collect::<Vec<_>>(), [Outcome::Win, Outcome::Unparsable]);
        assert_eq!(pairs[0].text("prompt"), "q");
        assert!(pairs_of_records(&rows[..3]).is_err());
    }

    #[test]
    fn the_mean_of_both_orders_sees_past_a_liking_for_a_place() {
        let row = |order: &str, logprobs: [f64; 2]| {
            let row = json!({"pair": "1", "order": order, "verdict": "A", "logprobs": logprobs});
            row.as_object().unwrap().clone()
        };
        // What stands first is always better, but the first response by more.
        let pairs = pairs_of_records(&[row("ab", [-0.25, -2.25]), row("ba", [-0.5, -1.0])]).unwrap();
        assert_eq!((pairs[0].outcome(), pairs[0].margin), (Outcome::Tie, Some(0.75)));
        assert_eq!(pairs[0].outcome_of_mean(), Outcome::Win);
        let pairs = pairs_of_records(&[row("ab", [-0.5, -1.0]), row("ba", [-0.25, -2.25])]).unwrap();
        assert_eq!(pairs[0].outcome_of_mean(), Outcome::Loss);
    }
}
