//! The text format of Prometheus, as far as the server writes it. Pure.

use std::collections::BTreeMap;

use anyhow::{Context, bail};

/// One page: values by name and labels.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Samples(BTreeMap<String, Vec<Sample>>);

/// A value and its labels.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sample {
    labels: BTreeMap<String, String>,
    /// The value.
    pub(super) value: f64,
}

impl Sample {
    /// Returns a label, empty where there is none.
    pub(super) fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

impl Samples {
    /// Reads a page.
    ///
    /// **Errors**: a line that is none of the format; a page without the server's own metrics.
    pub(super) fn parse(page: &str) -> anyhow::Result<Self> {
        let mut samples = Self::default();
        for line in page.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (name, sample) = parse_line(line).with_context(|| format!("the line `{line}` makes no sense"))?;
            samples.0.entry(name).or_default().push(sample);
        }
        if samples.0.is_empty() {
            bail!("the model is still being loaded");
        }
        if !samples.0.contains_key("bespoke_uptime_seconds") {
            bail!("it has other metrics");
        }
        Ok(samples)
    }

    /// Returns all values of a name.
    pub(super) fn all(&self, name: &str) -> &[Sample] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    /// Returns the sum of a name's values, 0 where there is none.
    pub(super) fn sum(&self, name: &str) -> f64 {
        self.all(name).iter().map(|sample| sample.value).sum()
    }

    /// Returns a place in the distribution of a histogram since `last`: what a share of its times did not pass, in seconds.
    /// `None` where nothing came since.
    pub(super) fn quantile(&self, last: Option<&Self>, histogram: &str, share: f64) -> Option<f64> {
        let name = format!("{histogram}_bucket");
        let before = |bucket: &Sample| {
            let buckets = last.map_or(&[][..], |last| last.all(&name));
            let same = buckets.iter().find(|other| other.labels == bucket.labels);
            same.map_or(0.0, |same| same.value)
        };
        let mut buckets = Vec::new();
        for bucket in self.all(&name) {
            buckets.push((bucket.label("le").parse::<f64>().ok()?, bucket.value - before(bucket)));
        }
        let wanted = share * buckets.last()?.1;
        let (mut lower, mut below) = (0.0, 0.0);
        for (upper, upto) in buckets {
            if upto >= wanted && upto > below {
                // Evenly spread within a bucket; beyond the last bound it alone is known.
                let part = (wanted - below) / (upto - below);
                return Some(if upper.is_finite() { lower + (upper - lower) * part } else { lower });
            }
            (lower, below) = (upper, upto);
        }
        None
    }
}

/// Reads `name{label="value",...} number`.
fn parse_line(line: &str) -> Option<(String, Sample)> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once("=\"")?;
            let (value, after) = quoted(after)?;
            labels.insert(label.to_owned(), value);
            rest = after.strip_prefix(',').unwrap_or(after);
        }
        rest = rest.strip_prefix('}')?;
    }
    let value = rest.split_ascii_whitespace().next()?.parse().ok()?;
    Some((name.to_owned(), Sample { labels, value }))
}

/// Reads up to the closing quote; returns what follows it too.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match letters.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_labels_and_values_are_read() {
        let page =
            "# TYPE x counter\nx_total{method=\"/a\",code=\"say \\\"}\\\"\"} 3\nbespoke_uptime_seconds 1.5\n# EOF\n";
        let samples = Samples::parse(page).unwrap();
        assert_eq!(samples.sum("x_total"), 3.0);
        assert_eq!(samples.all("x_total")[0].label("code"), "say \"}\"");
        assert_eq!((samples.sum("bespoke_uptime_seconds"), samples.sum("absent")), (1.5, 0.0));
    }

    #[test]
    fn other_pages_are_refused() {
        for page in ["<html>", "x{a=\"b} 1", "x{", "x", "x one", "", "x 1"] {
            assert!(Samples::parse(page).is_err(), "{page}");
        }
    }

    #[test]
    fn a_quantile_is_of_what_came_since() {
        let page = |counts: [u32; 3]| {
            let lines = ["1.0", "2.0", "+Inf"].iter().zip(counts);
            let lines: String = lines.map(|(le, count)| format!("t_bucket{{le=\"{le}\"}} {count}\n")).collect();
            Samples::parse(&(lines + "bespoke_uptime_seconds 1\n")).unwrap()
        };
        let (first, second) = (page([0, 10, 10]), page([10, 20, 21]));
        assert_eq!(first.quantile(None, "t", 0.5), Some(1.5));
        assert_eq!(second.quantile(Some(&first), "t", 0.5), Some(0.55));
        assert_eq!(second.quantile(Some(&first), "t", 1.0), Some(2.0), "beyond the last bound only it is known");
        assert_eq!(second.quantile(Some(&second), "t", 0.5), None);
        assert_eq!(second.quantile(None, "absent", 0.5), None);
    }
}
