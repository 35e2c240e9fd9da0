//! The encoder against plain loops in `f64`, against golden vectors of the real all-MiniLM-L6-v2, and broken files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bespoke_model::{Encoder, EncoderTokenizer, EncoderWorkspace, ModelError};
use bespoke_testkit::{StoredTensor, TinyDtype, TinyEncoder};

type Rows = Vec<Vec<f64>>;

/// The meaning of the encoder: one text, all places at once.
///
/// **Source**: `modeling_bert.py` of transformers.
struct NaiveEncoder<'a> {
    options: &'a TinyEncoder,
    tensors: BTreeMap<String, StoredTensor>,
}

impl NaiveEncoder<'_> {
    fn vector(&self, name: &str) -> Vec<f64> {
        self.tensors[name].values.iter().map(|&value| value.into()).collect()
    }

    fn row(&self, name: &str, row: usize) -> Vec<f64> {
        let width = self.options.hidden_size;
        self.vector(name)[row * width..(row + 1) * width].to_vec()
    }

    fn affine(&self, name: &str, rows: &Rows) -> Rows {
        let (weight, bias) = (self.vector(&format!("{name}.weight")), self.vector(&format!("{name}.bias")));
        let dot = |weight: &[f64], row: &[f64]| weight.iter().zip(row).map(|(w, x)| w * x).sum::<f64>();
        let out = |row: &Vec<f64>| weight.chunks(row.len()).zip(&bias).map(|(w, b)| dot(w, row) + b).collect();
        rows.iter().map(out).collect()
    }

    fn norm(&self, name: &str, rows: &mut Rows) {
        let (weight, bias) = (self.vector(&format!("{name}.weight")), self.vector(&format!("{name}.bias")));
        for row in rows {
            let mean = row.iter().sum::<f64>() / row.len() as f64;
            let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / row.len() as f64;
            let factor = 1.0 / (variance + TinyEncoder::NORM_EPS).sqrt();
            for ((x, weight), bias) in row.iter_mut().zip(&weight).zip(&bias) {
                *x = (*x - mean) * factor * weight + bias;
            }
        }
    }

    fn attend(&self, [q, k, v]: [&Rows; 3]) -> Rows {
        let head_dim = self.options.hidden_size / self.options.num_heads;
        let mut out = vec![vec![0.0; self.options.hidden_size]; q.len()];
        for (query, out) in q.iter().zip(&mut out) {
            for head in 0..self.options.num_heads {
                let part = head * head_dim..(head + 1) * head_dim;
                let dot = |key: &[f64]| query[part.clone()].iter().zip(key).map(|(a, b)| a * b).sum::<f64>();
                let scale = (head_dim as f64).sqrt();
                let scores: Vec<f64> = k.iter().map(|key| (dot(&key[part.clone()]) / scale).exp()).collect();
                let total: f64 = scores.iter().sum();
                for (score, value) in scores.iter().zip(v) {
                    out[part.clone()].iter_mut().zip(&value[part.clone()]).for_each(|(o, v)| *o += score / total * v);
                }
            }
        }
        out
    }

    fn add(rows: &mut Rows, others: &Rows) {
        rows.iter_mut().zip(others).for_each(|(row, other)| row.iter_mut().zip(other).for_each(|(x, y)| *x += y));
    }

    fn vector_of(&self, ids: &[u32]) -> Vec<f64> {
        let mut hidden: Rows = ids
            .iter()
            .enumerate()
            .map(|(place, &id)| {
                let mut rows = vec![self.row("embeddings.word_embeddings.weight", id as usize)];
                Self::add(&mut rows, &vec![self.row("embeddings.position_embeddings.weight", place)]);
                Self::add(&mut rows, &vec![self.row("embeddings.token_type_embeddings.weight", 0)]);
                rows.remove(0)
            })
            .collect();
        self.norm("embeddings.LayerNorm", &mut hidden);
        for layer in 0..self.options.num_layers {
            let name = |rest: &str| format!("encoder.layer.{layer}.{rest}");
            let [q, k, v] =
                ["query", "key", "value"].map(|part| self.affine(&name(&format!("attention.self.{part}")), &hidden));
            Self::add(&mut hidden, &self.affine(&name("attention.output.dense"), &self.attend([&q, &k, &v])));
            self.norm(&name("attention.output.LayerNorm"), &mut hidden);
            let mut wide = self.affine(&name("intermediate.dense"), &hidden);
            wide.iter_mut().flatten().for_each(|x| *x = *x / 2.0 * (1.0 + erf(*x / 2.0_f64.sqrt())));
            Self::add(&mut hidden, &self.affine(&name("output.dense"), &wide));
            self.norm(&name("output.LayerNorm"), &mut hidden);
        }
        let num_rows = if self.options.pools_first_token { 1 } else { hidden.len() };
        (0..self.options.hidden_size)
            .map(|column| hidden[..num_rows].iter().map(|row| row[column]).sum::<f64>() / num_rows as f64)
            .collect()
    }
}

/// The series of the error function, and 1 where it is that to 9 digits and the series would lose its own.
fn erf(x: f64) -> f64 {
    if x.abs() > 4.5 {
        return x.signum();
    }
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while term.abs() > 1e-17 * sum.abs() {
        n += 1.0;
        term *= -x * x / n;
        sum += term / (2.0 * n + 1.0);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

fn embed(path: &Path, num_threads: usize, texts: &[&[u32]], normalize: bool) -> Vec<Vec<f32>> {
    let encoder = Encoder::load(path, num_threads).unwrap();
    let mut workspace = EncoderWorkspace::new(encoder.config(), 300, 16);
    let width = encoder.config().hidden_size;
    let mut out = vec![f32::NAN; texts.len() * width];
    encoder.embed(texts, normalize, &mut workspace, &mut out).unwrap();
    out.chunks(width).map(<[f32]>::to_vec).collect()
}

fn ids(len: usize, seed: u32) -> Vec<u32> {
    (0..len as u32).map(|i| (i * 37 + seed * 101 + i * i * 3) % TinyEncoder::vocab_size() as u32).collect()
}

#[test]
fn vectors_are_those_of_plain_loops() {
    let default = TinyEncoder::default();
    let options = [
        default.clone(),
        TinyEncoder { pools_first_token: true, prefix: "bert.", seed: 2, ..default.clone() },
        TinyEncoder { dtype: TinyDtype::Bf16, hidden_size: 96, num_heads: 3, num_layers: 3, seed: 3, ..default },
    ];
    for options in options {
        let dir = options.write().unwrap();
        let naive = NaiveEncoder { options: &options, tensors: options.tensors() };
        let text = ids(37, options.seed as u32);
        let found = embed(dir.path(), 2, &[&text], false);
        let expected = naive.vector_of(&text);
        let error = found[0].iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
        assert!(error < 2e-5, "{options:?}: {error}");
    }
}

#[test]
fn a_text_has_the_same_bits_alone_and_in_any_company() {
    let dir = TinyEncoder::default().write().unwrap();
    let texts: Vec<Vec<u32>> = [1, 16, 17, 5, 40, 33].iter().map(|&len| ids(len, len as u32)).collect();
    let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    let alone: Vec<Vec<f32>> = texts.iter().flat_map(|text| embed(dir.path(), 1, &[text], true)).collect();
    for num_threads in [1, 3] {
        assert_eq!(embed(dir.path(), num_threads, &texts, true), alone);
    }
    let reversed: Vec<&[u32]> = texts.iter().rev().copied().collect();
    assert_eq!(embed(dir.path(), 2, &reversed, true), alone.iter().rev().cloned().collect::<Vec<_>>());
    for vector in &alone {
        let length = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
        assert!((length - 1.0).abs() < 1e-6);
    }
}

#[test]
fn word_pieces_are_cut_at_the_end_and_controls_stay_text() {
    let dir = TinyEncoder::default().write().unwrap();
    let tokenizer = EncoderTokenizer::load(dir.path()).unwrap();
    let encode = |text: &str| tokenizer.encode(text).unwrap();
    // [CLS] how do [SEP]: ids 2, 4, 5, 3.
    assert_eq!((encode("How DO").ids, encode("How DO").truncated), (vec![2, 4, 5, 3], false));
    assert_eq!(encode("").ids, [2, 3]);
    let spelled = encode("[SEP]").ids;
    assert_eq!(spelled.iter().filter(|&&id| id == 3).count(), 1, "{spelled:?}");
    let long = encode(&"rice ".repeat(100));
    assert_eq!((long.ids.len(), long.truncated, long.ids[39]), (40, true, 3));
    assert!(!encode(&"rice ".repeat(38)).truncated);
    let error = tokenizer.encode(&"x".repeat(70_000)).unwrap_err();
    assert!(matches!(error, ModelError::PromptTooLong { bytes: 70_000, .. }), "{error}");
}

#[test]
fn what_is_wrong_is_named() {
    let broken = |name: &str, from: &str, to: &str| {
        let dir = TinyEncoder::default().write().unwrap();
        let file = dir.path().join(name);
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(file, text.replace(from, to)).unwrap();
        Encoder::load(dir.path(), 1).map(|_| ()).unwrap_err().to_string()
    };
    assert!(broken("config.json", "\"bert\"", "\"roberta\"").contains("architecture `roberta`"));
    assert!(broken("config.json", "\"gelu\"", "\"relu\"").contains("`hidden_act`"));
    assert!(broken("config.json", "\"absolute\"", "\"relative\"").contains("`position_embedding_type`"));
    assert!(broken("config.json", "\"num_attention_heads\": 4", "\"num_attention_heads\": 5").contains("5 heads"));
    assert!(broken("config.json", "\"vocab_size\": ", "\"vocab_size\": 1").contains("word_embeddings"));
    assert!(broken("1_Pooling/config.json", "max_tokens\": false", "max_tokens\": true").contains("pooling_mode"));
    let dir = TinyEncoder::default().write().unwrap();
    let encoder = Encoder::load(dir.path(), 1).unwrap();
    let mut workspace = EncoderWorkspace::new(encoder.config(), 0, 1);
    let mut embed = |texts: &[&[u32]]| {
        let mut out = vec![0.0; texts.len() * 64];
        encoder.embed(texts, true, &mut workspace, &mut out).unwrap_err()
    };
    assert!(matches!(embed(&[&[9999]]), ModelError::TokenOutOfRange { token: 9999, .. }));
    assert!(matches!(embed(&[&[1], &[1]]), ModelError::StepTooLarge { rows: "texts", .. }));
    assert!(matches!(embed(&[&[1; 41]]), ModelError::StepTooLarge { rows: "rows", .. }));
    let mut roomy = EncoderWorkspace::new(encoder.config(), 100, 1);
    let error = encoder.embed(&[&[1; 65]], true, &mut roomy, &mut [0.0; 64]).unwrap_err();
    assert!(matches!(error, ModelError::PositionOutOfRange { position: 64, .. }), "{error}");
}

/// The folder of the real model, where this machine has it.
fn minilm() -> Option<PathBuf> {
    let cache = std::env::var_os("BESPOKE_CACHE").map(PathBuf::from);
    let cache = cache.or_else(|| Some(std::env::home_dir()?.join(".cache/bespoke")))?;
    let path = cache.join("models/all-minilm-l6-v2");
    if !path.join("manifest.json").is_file() {
        eprintln!("skipped: all-minilm-l6-v2 is not in the cache");
        return None;
    }
    Some(path)
}

#[test]
fn the_real_minilm_gives_the_golden_vectors() {
    let Some(path) = minilm() else { return };
    let golden: serde_json::Value = serde_json::from_str(include_str!("minilm.json")).unwrap();
    let tokenizer = EncoderTokenizer::load(&path).unwrap();
    let golden = golden["texts"].as_array().unwrap();
    let pieces: Vec<_> =
        golden.iter().map(|entry| tokenizer.encode(entry["text"].as_str().unwrap()).unwrap()).collect();
    let texts: Vec<&[u32]> = pieces.iter().map(|pieces| pieces.ids.as_slice()).collect();
    for ((entry, pieces), vector) in golden.iter().zip(&pieces).zip(embed(&path, 2, &texts, true)) {
        let expected: Vec<u32> = serde_json::from_value(entry["ids"].clone()).unwrap();
        assert_eq!(pieces.ids, expected);
        let expected: Vec<f64> = serde_json::from_value(entry["vector"].clone()).unwrap();
        let cosine: f64 = vector.iter().zip(&expected).map(|(a, b)| f64::from(*a) * b).sum();
        assert!(cosine > 0.999_999, "{cosine}: {}", entry["text"]);
    }
}
