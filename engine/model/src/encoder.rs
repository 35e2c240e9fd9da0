//! The encoder: a BERT that turns texts into vectors, such as all-MiniLM-L6-v2.
//!
//! Place in the flow: texts become word pieces ([`EncoderTokenizer`]), one step takes several texts without padding
//! ([`Encoder::embed`]), and what the last layer has for a text is pooled to one vector. It shares the kernels of the serving
//! pass; every place of a text sees all places of it. A text's vector does not depend on the other texts of its step, bit for
//! bit.

mod config;
mod pass;
mod tokenizer;
mod weights;

use std::path::Path;

use bespoke_kernels::Kernels;

use crate::{ModelError, ModelSource};

pub use config::EncoderConfig;
use config::{Pooling, config_from_folder};
pub use pass::EncoderWorkspace;
pub use tokenizer::{EncoderTokenizer, WordPieces};
use weights::EncoderWeights;

/// A loaded encoder: configuration, weights and the kernels that run it.
pub struct Encoder {
    name: String,
    digest: String,
    config: EncoderConfig,
    weights: EncoderWeights,
    kernels: Kernels,
}

impl Encoder {
    /// Loads a folder with `config.json` and `model.safetensors` of a BERT, as sentence-transformers writes it.
    ///
    /// **Errors**: every variant of [`ModelError`] that does not speak of a step.
    pub fn load(path: &Path, num_threads: usize) -> Result<Encoder, ModelError> {
        let source = ModelSource::open(path)?;
        let config = config_from_folder(source.path())?;
        let weights = EncoderWeights::load(&source, &config)?;
        let kernels = Kernels::new(num_threads)?;
        Ok(Encoder { name: source.name(), digest: source.digest()?, config, weights, kernels })
    }

    /// Returns the configuration.
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// Returns the name of its folder.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the digest that [`ModelSource::digest`] defines.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Computes one vector for each text of a step, of unit length where `normalize` asks for it.
    ///
    /// **Shapes**: `out` `(texts, D)`.
    ///
    /// **Errors**: `StepTooLarge`, `TokenOutOfRange`, `PositionOutOfRange`. **Panics**: if `out` has another length, a text has no
    /// token, or the workspace was made for another configuration.
    pub fn embed(
        &self,
        texts: &[&[u32]],
        normalize: bool,
        workspace: &mut EncoderWorkspace,
        out: &mut [f32],
    ) -> Result<(), ModelError> {
        let width = self.config.hidden_size;
        assert_eq!(out.len(), texts.len() * width, "vectors of {} texts", texts.len());
        let hidden = self.forward(texts, workspace)?;
        let mut first = 0;
        for (text, out) in texts.iter().zip(out.chunks_exact_mut(width)) {
            pool(self.config.pooling, &hidden[first * width..(first + text.len()) * width], out);
            if normalize {
                to_unit_length(out);
            }
            first += text.len();
        }
        Ok(())
    }
}

/// Makes one vector of those of a text's places.
fn pool(pooling: Pooling, hidden: &[f32], out: &mut [f32]) {
    match pooling {
        Pooling::FirstToken => out.copy_from_slice(&hidden[..out.len()]),
        Pooling::Mean => {
            out.fill(0.0);
            for row in hidden.chunks_exact(out.len()) {
                out.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
            let num_rows = (hidden.len() / out.len()) as f32;
            out.iter_mut().for_each(|sum| *sum /= num_rows);
        }
    }
}

fn to_unit_length(vector: &mut [f32]) {
    /// **Source**: the least divisor of `torch.nn.functional.normalize`.
    const LENGTH_MIN: f64 = 1e-12;
    let length = vector.iter().map(|value| f64::from(*value) * f64::from(*value)).sum::<f64>().sqrt();
    let factor = 1.0 / length.max(LENGTH_MIN);
    vector.iter_mut().for_each(|value| *value = (f64::from(*value) * factor) as f32);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pooling_by_hand() {
        let hidden = [1.0, 2.0, 3.0, 6.0];
        let mut out = [0.0; 2];
        pool(Pooling::Mean, &hidden, &mut out);
        assert_eq!(out, [2.0, 4.0]);
        pool(Pooling::FirstToken, &hidden, &mut out);
        assert_eq!(out, [1.0, 2.0]);
        let mut vector = [3.0, 4.0];
        to_unit_length(&mut vector);
        assert_eq!(vector, [0.6, 0.8]);
        let mut zero = [0.0; 2];
        to_unit_length(&mut zero);
        assert_eq!(zero, [0.0; 2]);
    }
}
