//! A small BERT with seeded random weights and a WordPiece tokenizer, as sentence-transformers writes one.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::hugging_face::{write_json, write_shard};
use crate::random::Random;
use crate::stored::{StoredTensor, TinyDtype};
use crate::tiny_model::TinyModelDir;

/// Deviation of the weights.
const DEVIATION: f32 = 0.2;
/// The control tokens in the order of their ids.
const CONTROLS: [&str; 4] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"];
/// Whole words beside the letters.
const WORDS: [&str; 8] = ["how", "do", "you", "cook", "rice", "bike", "the", "fix"];

/// Options of a tiny encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct TinyEncoder {
    /// Length of the vectors; a multiple of `num_heads`.
    pub hidden_size: usize,
    /// Width of the feed-forward block.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_layers: usize,
    /// Number of heads.
    pub num_heads: usize,
    /// Positions that have an embedding.
    pub num_positions: usize,
    /// The longest text in tokens, as `sentence_bert_config.json` says it.
    pub tokens_max: usize,
    /// Whether `[CLS]` stands for the text instead of the mean.
    pub pools_first_token: bool,
    /// Format of the matrices.
    pub dtype: TinyDtype,
    /// Put before the name of every tensor.
    pub prefix: &'static str,
    /// Seed of the weights.
    pub seed: u64,
}

impl Default for TinyEncoder {
    fn default() -> TinyEncoder {
        TinyEncoder {
            hidden_size: 64,
            intermediate_size: 96,
            num_layers: 2,
            num_heads: 4,
            num_positions: 64,
            tokens_max: 40,
            pools_first_token: false,
            dtype: TinyDtype::F32,
            prefix: "",
            seed: 1,
        }
    }
}

impl TinyEncoder {
    /// Added to the variance in its norms.
    pub const NORM_EPS: f64 = 1e-12;

    /// Returns the number of word pieces.
    pub fn vocab_size() -> usize {
        pieces().len()
    }

    /// Writes a folder.
    pub fn write(&self) -> Result<TinyModelDir> {
        let dir = TinyModelDir::new(tempfile::tempdir().context("making a folder for a tiny encoder")?);
        let folder = dir.path();
        std::fs::create_dir(folder.join("1_Pooling"))?;
        let files = [
            ("config.json", self.config()),
            ("tokenizer.json", tokenizer()),
            ("sentence_bert_config.json", json!({"max_seq_length": self.tokens_max, "do_lower_case": false})),
            (
                "1_Pooling/config.json",
                json!({"word_embedding_dimension": self.hidden_size, "pooling_mode_cls_token": self.pools_first_token,
                    "pooling_mode_mean_tokens": !self.pools_first_token, "pooling_mode_max_tokens": false,
                    "pooling_mode_mean_sqrt_len_tokens": false}),
            ),
        ];
        for (name, value) in files {
            write_json(&folder.join(name), &value)?;
        }
        let tensors = self.tensors();
        let named: BTreeMap<String, StoredTensor> =
            tensors.into_iter().map(|(name, tensor)| (format!("{}{name}", self.prefix), tensor)).collect();
        write_shard(&folder.join("model.safetensors"), named.iter(), self.dtype)?;
        Ok(dir)
    }

    fn config(&self) -> Value {
        json!({
            "architectures": ["BertModel"],
            "model_type": "bert",
            "hidden_act": "gelu",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "layer_norm_eps": Self::NORM_EPS,
            "max_position_embeddings": self.num_positions,
            "num_attention_heads": self.num_heads,
            "num_hidden_layers": self.num_layers,
            "position_embedding_type": "absolute",
            "type_vocab_size": 2,
            "vocab_size": Self::vocab_size(),
        })
    }

    /// Returns every tensor under its name in `BertModel`, with the values that its file holds.
    pub fn tensors(&self) -> BTreeMap<String, StoredTensor> {
        let mut random = Random::new(self.seed);
        let (hidden, wide) = (self.hidden_size, self.intermediate_size);
        let mut tensors = BTreeMap::new();
        let mut matrix = |name: String, rows: usize, cols: usize, random: &mut Random| {
            let values = random.normals(rows * cols, DEVIATION);
            tensors.insert(name, StoredTensor::matrix(rows, cols, &values, self.dtype));
        };
        matrix("embeddings.word_embeddings.weight".to_owned(), Self::vocab_size(), hidden, &mut random);
        matrix("embeddings.position_embeddings.weight".to_owned(), self.num_positions, hidden, &mut random);
        matrix("embeddings.token_type_embeddings.weight".to_owned(), 2, hidden, &mut random);
        let mut affines = Vec::new();
        let mut norms = vec!["embeddings.LayerNorm".to_owned()];
        for layer in 0..self.num_layers {
            let name = |rest: &str| format!("encoder.layer.{layer}.{rest}");
            for part in ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"]
            {
                affines.push((name(part), hidden, hidden));
            }
            affines.push((name("intermediate.dense"), wide, hidden));
            affines.push((name("output.dense"), hidden, wide));
            norms.extend([name("attention.output.LayerNorm"), name("output.LayerNorm")]);
        }
        for (name, rows, cols) in &affines {
            matrix(format!("{name}.weight"), *rows, *cols, &mut random);
        }
        for (name, rows, _) in affines {
            tensors.insert(format!("{name}.bias"), StoredTensor::vector(random.normals(rows, DEVIATION)));
        }
        for name in norms {
            let weight = random.normals(hidden, DEVIATION).into_iter().map(|value| 1.0 + value).collect();
            tensors.insert(format!("{name}.weight"), StoredTensor::vector(weight));
            tensors.insert(format!("{name}.bias"), StoredTensor::vector(random.normals(hidden, DEVIATION)));
        }
        tensors
    }
}

/// Every piece in the order of its id.
fn pieces() -> Vec<String> {
    let letters = || ('a'..='z').chain('0'..='9');
    let controls = CONTROLS.iter().chain(&WORDS).map(ToString::to_string);
    let marks = ["?", "[", "]", "."].map(str::to_owned);
    let starts = letters().map(|letter| letter.to_string());
    controls.chain(marks).chain(starts).chain(letters().map(|letter| format!("##{letter}"))).collect()
}

/// `tokenizer.json` as that of a BERT without case.
fn tokenizer() -> Value {
    let id = |token: &str| CONTROLS.iter().position(|control| *control == token).unwrap_or_default();
    let added = CONTROLS.iter().enumerate().map(|(id, content)| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true})
    });
    let vocab: serde_json::Map<String, Value> =
        pieces().into_iter().enumerate().map(|(id, piece)| (piece, json!(id))).collect();
    let special = |token: &str| json!({"id": token, "ids": [id(token)], "tokens": [token]});
    let (cls, sep) = (
        json!({"SpecialToken": {"id": "[CLS]", "type_id": 0}}),
        json!({"SpecialToken": {"id": "[SEP]", "type_id": 0}}),
    );
    let text = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    json!({
        "version": "1.0",
        // Both are what training left behind, and must not matter.
        "truncation": {"direction": "Right", "max_length": 7, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 7}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null,
            "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [cls.clone(), text("A"), sep.clone()],
            "pair": [cls, text("A"), sep.clone(), text("B"), sep],
            "special_tokens": {"[CLS]": special("[CLS]"), "[SEP]": special("[SEP]")},
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocab},
    })
}
