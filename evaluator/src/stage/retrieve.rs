//! `retrieve`: fills the columns chosen_persona_retr and rejected_persona_retr with the personas of the training row whose
//! prompt is most like the row's own.
//!
//! Similarity is the cosine of TF-IDF vectors, which needs no model, or of embeddings.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};
use bespoke_domain::Row;
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::{
    dataset::read_all,
    options::ModelOptions,
    progress::Progress,
    provider::{Keys, Provider},
    run_folder::write_jsonl,
};

/// Arguments of `retrieve`.
#[derive(Args, Debug)]
pub(crate) struct Retrieve {
    /// The rows to fill, JSON lines.
    #[arg(long, value_name = "FILE")]
    pub(crate) data: PathBuf,
    /// Rows with personas to take them from, JSON lines; may be given repeatedly.
    #[arg(long, value_name = "FILE", required = true)]
    pub(crate) train: Vec<PathBuf>,
    /// JSON lines file to write: all rows with both columns.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// How prompts are compared.
    #[arg(long, value_enum, default_value = "embeddings")]
    pub(crate) method: Method,
    #[command(flatten)]
    pub(crate) model: ModelOptions,
}

/// The ways to compare prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Method {
    /// Words, weighted by how rare they are.
    TfIdf,
    /// Vectors of an embedding model: our engine's `serve --embedding-model`, or an OpenAI-compatible service.
    Embeddings,
}

/// Texts of one request for embeddings.
const EMBED_BATCH: usize = 64;
/// How many of the most similar rows count as found for the second share.
const TOP: usize = 5;

/// Runs the stage.
pub(crate) async fn retrieve(arguments: &Retrieve) -> Result<()> {
    let mut rows = read_all(&arguments.data)?;
    let mut train = Vec::new();
    for file in &arguments.train {
        train.extend(read_all(file)?);
    }
    train.retain(|row| !row.chosen_persona_gold.is_empty() && !row.rejected_persona_gold.is_empty());
    ensure!(!train.is_empty(), "no training row has both personas");
    let texts = |rows: &[Row]| rows.iter().map(|row| clean(&row.prompt).to_owned()).collect::<Vec<String>>();
    let (queries, documents) = (texts(&rows), texts(&train));
    let ranks = match arguments.method {
        Method::TfIdf => rank_sparse(&tf_idf(&documents, &queries), documents.len()),
        Method::Embeddings => {
            arguments.model.check()?;
            let provider = Provider::open(&arguments.model.endpoint(), &Keys::load()?).await?;
            let documents = embed(&provider, &documents).await?;
            rank_dense(&documents, &embed(&provider, &queries).await?)
        }
    };
    let shares = shares(&rows, &train, &ranks);
    for (row, ranks) in rows.iter_mut().zip(&ranks) {
        let found = &train[ranks[0]];
        row.chosen_persona_retr = found.chosen_persona_gold.clone();
        row.rejected_persona_retr = found.rejected_persona_gold.clone();
    }
    write_jsonl(&arguments.out, &rows)?;
    print(&arguments.out, rows.len(), shares);
    Ok(())
}

/// Takes off what the HHH prompts begin with.
fn clean(prompt: &str) -> &str {
    let prompt = prompt.trim();
    prompt.strip_prefix("Human:").unwrap_or(prompt).trim()
}

async fn embed(provider: &Provider, texts: &[String]) -> Result<Vec<Vec<f32>>> {
    let progress = Progress::new("retrieve");
    progress.start(texts.len(), 0);
    let mut embeddings = Vec::with_capacity(texts.len());
    for batch in texts.chunks(EMBED_BATCH) {
        embeddings.extend(provider.embed(batch).await?);
        batch.iter().for_each(|_| progress.step());
    }
    let length = embeddings.first().map_or(0, Vec::len);
    ensure!(length > 0 && embeddings.iter().all(|one| one.len() == length), "the embeddings have not one length");
    Ok(embeddings)
}

/// The words of a text with their weights, by word number; of unit length.
type Sparse = BTreeMap<usize, f64>;

/// Weighs words by `tf (ln((1 + n) / (1 + df)) + 1)` over the documents, as scikit-learn does.
fn tf_idf(documents: &[String], queries: &[String]) -> (Vec<Sparse>, Vec<Sparse>) {
    let words = |text: &str| -> Vec<String> {
        let lower = text.to_lowercase();
        let parts = lower.split(|c: char| !c.is_alphanumeric()).filter(|word| word.chars().count() > 1);
        parts.map(str::to_owned).collect()
    };
    let mut numbers: HashMap<String, usize> = HashMap::new();
    let mut frequencies: Vec<f64> = Vec::new();
    for document in documents {
        for word in words(document).into_iter().collect::<HashSet<_>>() {
            let number = *numbers.entry(word).or_insert_with(|| {
                frequencies.push(0.0);
                frequencies.len() - 1
            });
            frequencies[number] += 1.0;
        }
    }
    let n = documents.len() as f64;
    let vector = |text: &String| {
        let mut vector = Sparse::new();
        for number in words(text).iter().filter_map(|word| numbers.get(word)) {
            *vector.entry(*number).or_default() += ((1.0 + n) / (1.0 + frequencies[*number])).ln() + 1.0;
        }
        let norm = vector.values().map(|weight| weight * weight).sum::<f64>().sqrt();
        vector.values_mut().for_each(|weight| *weight /= norm);
        vector
    };
    (documents.iter().map(vector).collect(), queries.iter().map(vector).collect())
}

fn rank_sparse((documents, queries): &(Vec<Sparse>, Vec<Sparse>), num_documents: usize) -> Vec<Vec<usize>> {
    let mut postings: HashMap<usize, Vec<(usize, f64)>> = HashMap::new();
    for (place, document) in documents.iter().enumerate() {
        document.iter().for_each(|(word, weight)| postings.entry(*word).or_default().push((place, *weight)));
    }
    let scores = queries.iter().map(|query| {
        let mut scores = vec![0.0; num_documents];
        for (word, weight) in query {
            for (place, other) in postings.get(word).into_iter().flatten() {
                scores[*place] += weight * other;
            }
        }
        scores
    });
    scores.map(|scores| best(&scores)).collect()
}

fn rank_dense(documents: &[Vec<f32>], queries: &[Vec<f32>]) -> Vec<Vec<usize>> {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
    let norms: Vec<f64> = documents.iter().map(|document| dot(document, document).sqrt().max(1e-12)).collect();
    let scores = |query: &Vec<f32>| -> Vec<f64> {
        documents.iter().zip(&norms).map(|(document, norm)| dot(query, document) / norm).collect()
    };
    queries.iter().map(|query| best(&scores(query))).collect()
}

/// The places of the best scores, best first; of equal ones the first.
fn best(scores: &[f64]) -> Vec<usize> {
    let mut places: Vec<usize> = (0..scores.len()).collect();
    places.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
    places.truncate(TOP);
    places
}

/// How often the personas that the rows had before are those of the first row found, or of one of the first five.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Shares {
    num_known: usize,
    top_1: usize,
    top_5: usize,
}

fn shares(rows: &[Row], train: &[Row], ranks: &[Vec<usize>]) -> Shares {
    let mut shares = Shares { num_known: 0, top_1: 0, top_5: 0 };
    let pairs: HashSet<(&str, &str)> =
        train.iter().map(|row| (row.chosen_persona_gold.as_str(), row.rejected_persona_gold.as_str())).collect();
    for (row, ranks) in rows.iter().zip(ranks) {
        let wanted = (row.chosen_persona_retr.as_str(), row.rejected_persona_retr.as_str());
        if !pairs.contains(&wanted) {
            continue;
        }
        let is_wanted = |place: &usize| {
            (train[*place].chosen_persona_gold.as_str(), train[*place].rejected_persona_gold.as_str()) == wanted
        };
        shares.num_known += 1;
        shares.top_1 += usize::from(ranks.first().is_some_and(is_wanted));
        shares.top_5 += usize::from(ranks.iter().any(is_wanted));
    }
    shares
}

#[expect(clippy::print_stdout, reason = "the counts are the output of the command")]
fn print(out: &Path, num_rows: usize, shares: Shares) {
    println!("{num_rows} rows in {}", out.display());
    if shares.num_known > 0 {
        let Shares { num_known, top_1, top_5 } = shares;
        println!(
            "as the data had it: {top_1} first and {top_5} among the first {TOP}, of {num_known} with a known row"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_similar_prompt_is_found() {
        let documents = ["How do I cook rice?", "How do I fix a bike?", "What is a bike lock?"].map(str::to_owned);
        let queries = ["my bike is broken, fix it", "rice"].map(str::to_owned);
        let ranks = rank_sparse(&tf_idf(&documents, &queries), 3);
        assert_eq!((ranks[0][0], ranks[1][0]), (1, 0));
    }

    #[test]
    fn weights_by_hand() {
        let documents = ["aa bb", "aa cc"].map(str::to_owned);
        let (documents, _) = tf_idf(&documents, &[]);
        // aa weighs 1, bb ln(3/2) + 1 = 1.40547; the norm is 1.72490.
        let mut weights: Vec<f64> = documents[0].values().copied().collect();
        weights.sort_by(f64::total_cmp);
        assert!((weights[0] - 0.57974).abs() < 1e-4 && (weights[1] - 0.81480).abs() < 1e-4, "{weights:?}");
    }

    #[test]
    fn dense_vectors_rank_by_cosine() {
        let documents = [vec![10.0, 0.0], vec![0.5, 0.5], vec![0.0, 1.0]];
        assert_eq!(rank_dense(&documents, &[vec![1.0, 1.0]])[0], [1, 0, 2]);
        assert_eq!(best(&[1.0, 1.0]), [0, 1]);
    }
}
