//! The numbers of both sides, run by run, and what they come to.

use std::fmt::Write;

use serde_json::{Value, json};

/// Which of two numbers is the better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Better {
    Higher,
    Lower,
}

/// Whose number it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Ours,
    /// Of llama.cpp.
    Theirs,
    Mistralrs,
}

/// What is compared, in the order in which it was first measured.
#[derive(Default)]
pub(super) struct Comparison {
    measures: Vec<Measure>,
}

struct Measure {
    name: String,
    better: Better,
    ours: Vec<f64>,
    theirs: Vec<f64>,
    mistralrs: Vec<f64>,
}

impl Comparison {
    /// Adds the number of one run. The name ends with the unit.
    pub(super) fn add(&mut self, name: &str, better: Better, side: Side, number: f64) {
        let index = self.measures.iter().position(|measure| measure.name == name).unwrap_or_else(|| {
            let [ours, theirs, mistralrs] = [const { Vec::new() }; 3];
            self.measures.push(Measure { name: name.to_owned(), better, ours, theirs, mistralrs });
            self.measures.len() - 1
        });
        let measure = &mut self.measures[index];
        match side {
            Side::Ours => measure.ours.push(number),
            Side::Theirs => measure.theirs.push(number),
            Side::Mistralrs => measure.mistralrs.push(number),
        }
    }

    /// Returns the medians and their ratios as a Markdown table, with columns of mistralrs where it was measured.
    pub(super) fn table(&self) -> String {
        let has_mistralrs = self.measures.iter().any(|measure| !measure.mistralrs.is_empty());
        let (more, rule) = if has_mistralrs { (" mistralrs | ours / mistralrs |", "--:|--:|") } else { ("", "") };
        let mut table =
            format!("| measure | better | ours | llama.cpp | ours / theirs |{more}\n|---|---|--:|--:|--:|{rule}\n");
        for Measure { name, better, ours, theirs, mistralrs } in &self.measures {
            let better = match better {
                Better::Higher => "higher",
                Better::Lower => "lower",
            };
            let ratio = |others: &[f64]| {
                let ratio = median(ours).zip(median(others)).map(|(ours, others)| ours / others);
                ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}"))
            };
            let (all, over) = ([spread(ours), spread(theirs)].join(" | "), ratio(theirs));
            let more =
                if has_mistralrs { format!(" {} | {} |", spread(mistralrs), ratio(mistralrs)) } else { String::new() };
            // Writing to a string cannot fail.
            let _ = writeln!(table, "| {name} | {better} | {all} | {over} |{more}");
        }
        table
    }

    /// Returns every number.
    pub(super) fn to_json(&self) -> Value {
        let measure = |measure: &Measure| {
            let Measure { name, ours, theirs, mistralrs, .. } = measure;
            json!({
                "name": name,
                "ours": ours,
                "theirs": theirs,
                "mistralrs": mistralrs,
                "ours_median": median(ours),
                "theirs_median": median(theirs),
            })
        };
        self.measures.iter().map(measure).collect()
    }
}

/// Returns the median, and of several numbers the least and the greatest.
fn spread(numbers: &[f64]) -> String {
    let Some(median) = median(numbers) else { return "-".to_owned() };
    let least = numbers.iter().copied().fold(f64::INFINITY, f64::min);
    let most = numbers.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if numbers.len() == 1 { format!("{median:.1}") } else { format!("{median:.1} ({least:.1} to {most:.1})") }
}

/// Returns the middle number, of an even count the mean of the middle two.
fn median(numbers: &[f64]) -> Option<f64> {
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = sorted.get(middle)?;
    Some(if sorted.len() % 2 == 1 { *upper } else { (sorted[middle - 1] + upper) / 2.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 4.0]), Some(4.0));
        assert_eq!(median(&[9.0, 1.0, 4.0, 6.0]), Some(5.0));
    }

    #[test]
    fn the_table_has_medians_and_ratios_in_order() {
        let mut comparison = Comparison::default();
        for (ours, theirs) in [(10.0, 4.0), (30.0, 5.0), (20.0, 6.0)] {
            comparison.add("prefill, tokens/s", Better::Higher, Side::Ours, ours);
            comparison.add("prefill, tokens/s", Better::Higher, Side::Theirs, theirs);
        }
        comparison.add("memory, MiB", Better::Lower, Side::Ours, 1.0);
        let table = comparison.table();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[2], "| prefill, tokens/s | higher | 20.0 (10.0 to 30.0) | 5.0 (4.0 to 6.0) | 4.00 |");
        assert_eq!(lines[3], "| memory, MiB | lower | 1.0 | - | - |");
        comparison.add("prefill, tokens/s", Better::Higher, Side::Mistralrs, 2.0);
        let table = comparison.table();
        let line = table.lines().nth(2).unwrap();
        assert_eq!(
            line,
            "| prefill, tokens/s | higher | 20.0 (10.0 to 30.0) | 5.0 (4.0 to 6.0) | 4.00 | 2.0 | 10.00 |"
        );
        assert_eq!(comparison.to_json()[0]["ours"], json!([10.0, 30.0, 20.0]));
        assert_eq!(comparison.to_json()[1]["theirs_median"], Value::Null);
    }
}
