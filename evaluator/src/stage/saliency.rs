//! `saliency`: which words tell the personas of chosen answers from those of rejected ones? (Paper, table 1.)
//!
//! Pure but for the file: the first sentence of each persona, cut where it speaks of what the user does not prefer, its words
//! reduced to Snowball stems in place of lemmas, each counted once a persona; p(label | stem) for stems that come often enough.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use anyhow::Result;
use clap::Args;
use rust_stemmers::{Algorithm, Stemmer};
use serde::Serialize;

use super::infer::{Direction, InferRow, STAGE as INFER};
use crate::{
    dataset::read_all,
    run_folder::{SUMMARY, read_run, write_atomically},
};

/// Arguments of `saliency`.
#[derive(Args, Debug)]
pub(crate) struct Saliency {
    /// Folder of a finished `infer` run.
    #[arg(long, value_name = "DIR", required_unless_present = "data")]
    pub(crate) infer: Option<PathBuf>,
    /// JSON lines with the columns chosen_persona_gold and rejected_persona_gold, instead of a run.
    #[arg(long, value_name = "FILE", conflicts_with = "infer")]
    pub(crate) data: Option<PathBuf>,
    /// Words in fewer personas than this are left out.
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub(crate) cutoff: u64,
    /// Words to show for each label.
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub(crate) top: usize,
    /// Where to write the table. Default: saliency/summary.json in the run's folder, else nowhere.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

/// A word and how it divides.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Word {
    /// The most frequent form of the stem.
    word: String,
    /// The share of its personas that are of this label.
    p: f64,
    num_personas: u64,
}

/// What `saliency` concludes.
#[derive(Debug, PartialEq, Serialize)]
struct Summary {
    chosen: Vec<Word>,
    rejected: Vec<Word>,
    num_chosen: usize,
    num_rejected: usize,
    cutoff: u64,
}

/// Behind these words a persona says what the user does not prefer. **Source**: paper, table 1.
const CONTRASTS: [&str; 5] = ["rather than", "over", "versus", "compared to", "instead of"];
/// Words that stand in any sentence and say nothing about a person.
const STOP_WORDS: &str = "a an and are as at be but by for from has have in into is it its of on or that the their them they \
    this to user users was who with prefer prefers preferring more most than while when where which not no over so such can \
    will may also being individual person someone likely";

/// Runs the stage.
pub(crate) fn saliency(arguments: &Saliency) -> Result<()> {
    let mut personas: Vec<(Direction, String)> = Vec::new();
    if let Some(data) = &arguments.data {
        for row in read_all(data)? {
            personas.push((Direction::Chosen, row.chosen_persona_gold));
            personas.push((Direction::Rejected, row.rejected_persona_gold));
        }
    }
    if let Some(infer) = &arguments.infer {
        let (_, rows) = read_run::<InferRow>(infer, INFER)?;
        personas.extend(rows.into_iter().map(|row| (row.direction, row.persona)));
    }
    personas.retain(|(_, persona)| !persona.is_empty());
    let summary = summary(&personas, arguments.cutoff, arguments.top);
    let default = arguments.infer.as_ref().map(|infer| infer.join("saliency").join(SUMMARY));
    if let Some(out) = arguments.out.clone().or(default) {
        write_atomically(&out, (serde_json::to_string_pretty(&summary)? + "\n").as_bytes())?;
    }
    print(&summary);
    Ok(())
}

fn summary(personas: &[(Direction, String)], cutoff: u64, top: usize) -> Summary {
    let stemmer = Stemmer::create(Algorithm::English);
    let mut counts: BTreeMap<String, [u64; 2]> = BTreeMap::new();
    let mut forms: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
    let mut totals = [0usize; 2];
    for (direction, persona) in personas {
        let label = usize::from(*direction == Direction::Rejected);
        totals[label] += 1;
        let mut seen = BTreeSet::new();
        for word in words(persona) {
            let stem = stemmer.stem(&word).into_owned();
            *forms.entry(stem.clone()).or_default().entry(word).or_default() += 1;
            if seen.insert(stem.clone()) {
                counts.entry(stem).or_default()[label] += 1;
            }
        }
    }
    let table = |label: usize| {
        let often = counts.iter().filter(|(_, [chosen, rejected])| chosen + rejected >= cutoff);
        let mut words: Vec<Word> = often
            .map(|(stem, of)| {
                let num_personas = of[0] + of[1];
                // The most frequent form; of equal ones the first in the alphabet.
                let form = forms[stem].iter().max_by_key(|(form, count)| (**count, std::cmp::Reverse((*form).clone())));
                let word = form.map_or_else(|| stem.clone(), |(form, _)| form.clone());
                Word { word, p: of[label] as f64 / num_personas as f64, num_personas }
            })
            .collect();
        words.sort_by(|a, b| b.p.total_cmp(&a.p).then(b.num_personas.cmp(&a.num_personas)).then(a.word.cmp(&b.word)));
        words.truncate(top);
        words
    };
    Summary { chosen: table(0), rejected: table(1), num_chosen: totals[0], num_rejected: totals[1], cutoff }
}

/// Returns the words of the first sentence that speak of what the user prefers, in lower case.
fn words(persona: &str) -> Vec<String> {
    let sentence = persona.split_inclusive(['.', '!', '?']).next().unwrap_or_default().to_lowercase();
    let letters: String = sentence.chars().map(|c| if c.is_alphanumeric() || c == '-' { c } else { ' ' }).collect();
    let all: Vec<&str> = letters.split_whitespace().collect();
    let starts_contrast = |place: usize| {
        CONTRASTS.iter().any(|contrast| {
            let contrast: Vec<&str> = contrast.split(' ').collect();
            all[place..].starts_with(&contrast)
        })
    };
    let end = (0..all.len()).find(|place| starts_contrast(*place)).unwrap_or(all.len());
    let said = |word: &&&str| !STOP_WORDS.split_whitespace().any(|stop| stop == **word) && word.len() > 1;
    all[..end].iter().filter(said).map(|word| (*word).to_owned()).collect()
}

#[expect(clippy::print_stdout, reason = "the table is the output of the command")]
fn print(summary: &Summary) {
    let Summary { chosen, rejected, num_chosen, num_rejected, cutoff } = summary;
    println!("{num_chosen} chosen and {num_rejected} rejected personas, words in at least {cutoff} of them");
    for (label, words) in [("chosen", chosen), ("rejected", rejected)] {
        let words: Vec<String> =
            words.iter().map(|word| format!("{} {:.2} ({})", word.word, word.p, word.num_personas)).collect();
        println!("{label}: {}", words.join(", "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_preferred_in_the_first_sentence_counts() {
        let persona = "The user is detail-oriented and prefers thorough answers over brief summaries. The user is shy.";
        assert_eq!(words(persona), ["detail-oriented", "thorough", "answers"]);
        assert_eq!(words("Prefers facts rather than tales"), ["facts"]);
        assert_eq!(words("Values an overview of things instead of depth"), ["values", "overview", "things"]);
    }

    #[test]
    fn shares_by_hand() {
        let mut personas = vec![(Direction::Chosen, "Thorough answers.".to_owned()); 3];
        personas.push((Direction::Rejected, "A thoroughly brief answer.".to_owned()));
        personas.push((Direction::Rejected, "Brief.".to_owned()));
        let summary = summary(&personas, 2, 10);
        assert_eq!(summary.rejected[0], Word { word: "brief".to_owned(), p: 1.0, num_personas: 2 });
        let answers = summary.chosen.iter().find(|word| word.word == "answers").unwrap();
        assert_eq!((answers.p, answers.num_personas), (0.75, 4));
        assert!(summary.chosen.iter().all(|word| word.word != "shy"));
    }
}
