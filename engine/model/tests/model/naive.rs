//! The meaning of the serving pass: one sequence, all positions at once, in `f64` and plain loops.
//!
//! **Source**: `modeling_llama.py`, `modeling_qwen2.py` and `modeling_qwen3.py` of transformers.

use std::collections::BTreeMap;

use bespoke_testkit::{StoredTensor, TinyModel, TinyRope};

pub(crate) struct Naive<'a> {
    model: &'a TinyModel,
    tensors: BTreeMap<String, StoredTensor>,
}

type Rows = Vec<Vec<f64>>;

impl Naive<'_> {
    pub(crate) fn new(model: &TinyModel) -> Naive<'_> {
        Naive { model, tensors: model.tensors() }
    }

    /// Returns the logits after every token.
    pub(crate) fn logits(&self, tokens: &[u32]) -> Rows {
        let embeddings = self.matrix("model.embed_tokens");
        let mut hidden: Rows = tokens.iter().map(|&token| embeddings[token as usize].clone()).collect();
        for layer in 0..self.model.num_layers {
            self.attend(layer, &mut hidden);
            self.feed_forward(layer, &mut hidden);
        }
        let normed = self.norm(&hidden, "model.norm");
        let output = if self.model.tie_embeddings { "model.embed_tokens" } else { "lm_head" };
        self.linear(&normed, output)
    }

    fn attend(&self, layer: usize, hidden: &mut Rows) {
        let (model, prefix) = (self.model, format!("model.layers.{layer}"));
        let normed = self.norm(hidden, &format!("{prefix}.input_layernorm"));
        let project = |name: &str| self.linear(&normed, &format!("{prefix}.self_attn.{name}_proj"));
        let rotate = |rows: Rows, name: &str| -> Vec<Rows> {
            let norm = format!("{prefix}.self_attn.{name}_norm");
            (0..).zip(rows).map(|(position, row)| self.heads(&row, &norm, position)).collect()
        };
        let (q, k, v) = (rotate(project("q"), "q"), rotate(project("k"), "k"), project("v"));
        let group = model.num_heads / model.num_kv_heads;
        let mut joined = Rows::new();
        for (position, heads) in q.iter().enumerate() {
            let first = model.window(layer).map_or(0, |window| (position + 1).saturating_sub(window));
            let mut row = Vec::new();
            for (head, query) in heads.iter().enumerate() {
                let kv_head = head / group;
                let score = |key: &Vec<f64>| dot(query, key) / (model.head_dim as f64).sqrt();
                let scores: Vec<f64> = (first..=position).map(|at| score(&k[at][kv_head]).exp()).collect();
                let total: f64 = scores.iter().sum();
                for i in 0..model.head_dim {
                    let value = |at: usize| v[at][kv_head * model.head_dim + i];
                    row.push((first..=position).zip(&scores).map(|(at, score)| score * value(at)).sum::<f64>() / total);
                }
            }
            joined.push(row);
        }
        add(hidden, &self.linear(&joined, &format!("{prefix}.self_attn.o_proj")));
    }

    fn feed_forward(&self, layer: usize, hidden: &mut Rows) {
        let prefix = format!("model.layers.{layer}");
        let normed = self.norm(hidden, &format!("{prefix}.post_attention_layernorm"));
        let (gate, up) = (
            self.linear(&normed, &format!("{prefix}.mlp.gate_proj")),
            self.linear(&normed, &format!("{prefix}.mlp.up_proj")),
        );
        let silu = |x: &f64| x / (1.0 + (-x).exp());
        let product = |(gate, up): (&Vec<f64>, &Vec<f64>)| gate.iter().zip(up).map(|(g, u)| silu(g) * u).collect();
        let inner: Rows = gate.iter().zip(&up).map(product).collect();
        add(hidden, &self.linear(&inner, &format!("{prefix}.mlp.down_proj")));
    }

    /// Splits a row into heads, normalises them if there is a norm of that name, and rotates them.
    fn heads(&self, row: &[f64], norm: &str, position: usize) -> Rows {
        let heads: Rows = row.chunks(self.model.head_dim).map(<[f64]>::to_vec).collect();
        let heads = if self.tensors.contains_key(&format!("{norm}.weight")) { self.norm(&heads, norm) } else { heads };
        let half = self.model.head_dim / 2;
        let rotate = |head: &Vec<f64>| {
            let mut rotated = head.clone();
            for i in 0..half {
                let (sin, cos) = (position as f64 * self.frequency(i)).sin_cos();
                rotated[i] = head[i] * cos - head[i + half] * sin;
                rotated[i + half] = head[i + half] * cos + head[i] * sin;
            }
            rotated
        };
        heads.iter().map(rotate).collect()
    }

    fn frequency(&self, pair: usize) -> f64 {
        let plain = TinyModel::ROPE_THETA.powf(-2.0 * pair as f64 / self.model.head_dim as f64);
        match self.model.rope {
            TinyRope::Default => plain,
            TinyRope::Linear(factor) => plain / factor,
            TinyRope::Llama3 => {
                let (factor, low, high, original) = (8.0, 1.0, 4.0, 64.0);
                let wavelength = std::f64::consts::TAU / plain;
                if wavelength < original / high {
                    plain
                } else if wavelength > original / low {
                    plain / factor
                } else {
                    let smooth = (original / wavelength - low) / (high - low);
                    (1.0 - smooth) * plain / factor + smooth * plain
                }
            }
        }
    }

    fn norm(&self, rows: &Rows, name: &str) -> Rows {
        let weight = self.vector(&format!("{name}.weight")).unwrap();
        let norm = |row: &Vec<f64>| {
            let mean_square = dot(row, row) / row.len() as f64;
            let scale = 1.0 / (mean_square + TinyModel::NORM_EPS).sqrt();
            row.iter().zip(&weight).map(|(x, w)| x * scale * w).collect()
        };
        rows.iter().map(norm).collect()
    }

    fn linear(&self, rows: &Rows, name: &str) -> Rows {
        let matrix = self.matrix(name);
        let bias = self.vector(&format!("{name}.bias")).unwrap_or_else(|| vec![0.0; matrix.len()]);
        let apply = |row: &Vec<f64>| matrix.iter().zip(&bias).map(|(weights, bias)| dot(weights, row) + bias).collect();
        rows.iter().map(apply).collect()
    }

    fn matrix(&self, name: &str) -> Rows {
        let tensor = &self.tensors[&format!("{name}.weight")];
        let row = |row: &[f32]| row.iter().map(|&x| f64::from(x)).collect();
        tensor.values.chunks(tensor.shape[1]).map(row).collect()
    }

    fn vector(&self, name: &str) -> Option<Vec<f64>> {
        Some(self.tensors.get(name)?.values.iter().map(|&x| f64::from(x)).collect())
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(rows: &mut Rows, more: &Rows) {
    for (row, more) in rows.iter_mut().zip(more) {
        row.iter_mut().zip(more).for_each(|(x, y)| *x += y);
    }
}
