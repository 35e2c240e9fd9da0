//! The checked configuration of a model, the same whichever kind of file it comes from.

mod from_gguf;
mod from_hugging_face;
mod json;

use std::path::Path;

use crate::ModelError;

pub(crate) use from_gguf::config_from_gguf;
pub(crate) use from_hugging_face::config_from_folder;

/// Bounds that no real model exceeds; they keep products of dimensions far from overflow, and the tables that are made before
/// any weight is read (rotary angles) below 2 GiB.
const VOCAB_SIZE_MAX: usize = 1 << 24;
const WIDTH_MAX: usize = 1 << 20;
const NUM_LAYERS_MAX: usize = 1 << 12;
const HEAD_DIM_MAX: usize = 1 << 9;
const CONTEXT_LENGTH_MAX: usize = 1 << 20;

/// The model families that the serving pass knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// Llama 2 and 3.x, TinyLlama, SmolLM2; GGUF files of Mistral call themselves `llama` too.
    Llama,
    /// Mistral: Llama with a sliding window.
    Mistral,
    /// Qwen2 and Qwen2.5: biases on q, k and v.
    Qwen2,
    /// Qwen3: RMS norms on the heads of q and k.
    Qwen3,
}

impl std::fmt::Display for Architecture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Architecture::Llama => "llama",
            Architecture::Mistral => "mistral",
            Architecture::Qwen2 => "qwen2",
            Architecture::Qwen3 => "qwen3",
        })
    }
}

/// How the rotary frequencies are stretched for long contexts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All of them divided by a factor.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Low ones divided by a factor, high ones kept, those between blended.
    ///
    /// **Source**: `_compute_llama3_parameters` in transformers 4.57 `modeling_rope_utils.py`.
    Llama3 {
        /// The divisor of the low frequencies.
        factor: f64,
        /// Original context over the longest wavelength that is kept unblended at the low end.
        low_freq_factor: f64,
        /// Original context over the wavelength below which nothing is changed.
        high_freq_factor: f64,
        /// Context of the model before it was stretched, in tokens.
        original_context_length: f64,
    },
}

/// The dimensions and switches of a model; every value has passed the checks of this module.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The family.
    pub architecture: Architecture,
    /// `V`.
    pub vocab_size: usize,
    /// `D`.
    pub hidden_size: usize,
    /// `F`.
    pub intermediate_size: usize,
    /// `L`.
    pub num_layers: usize,
    /// `H`.
    pub num_heads: usize,
    /// `K`; divides `H`.
    pub num_kv_heads: usize,
    /// `E`; even.
    pub head_dim: usize,
    /// Added to the mean square in every RMS norm.
    pub norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Stretching of the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// Positions the model may see, in tokens.
    pub context_length: usize,
    /// The output matrix is the embedding matrix.
    pub tie_embeddings: bool,
    /// q, k and v have biases.
    pub qkv_bias: bool,
    /// The attention output has a bias.
    pub output_bias: bool,
    /// Heads of q and k are normalised before the rotation.
    pub qk_norm: bool,
    /// For each layer, how many of the latest positions a row sees (itself included); `None` is all.
    pub layer_windows: Vec<Option<usize>>,
    /// The token that starts a sequence.
    pub bos_token_id: Option<u32>,
    /// The tokens that end an answer, without repetition.
    pub eos_token_ids: Vec<u32>,
}

impl ModelConfig {
    /// Returns the width of q, `H * E`.
    pub fn query_size(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Returns the width of k and of v, `K * E`.
    pub fn kv_size(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// Computes the rotary frequencies, one for each pair of a head; `divisors` is the `rope_freqs` tensor of a GGUF file.
    ///
    /// **Shapes**: `(E / 2)`.
    pub fn inverse_frequencies(&self, divisors: Option<&[f32]>) -> Vec<f32> {
        let num_pairs = self.head_dim / 2;
        let frequency = |pair: usize| {
            let exponent = 2.0 * pair as f64 / self.head_dim as f64;
            let scaled = self.rope_scaling.apply(1.0 / self.rope_theta.powf(exponent));
            (scaled / divisors.map_or(1.0, |divisors| f64::from(divisors[pair]))) as f32
        };
        (0..num_pairs).map(frequency).collect()
    }

    /// Checks every dimension; `file` names the source in errors.
    fn check(self, file: &Path) -> Result<ModelConfig, ModelError> {
        let fail = |field: &str, reason: String| {
            Err(ModelError::Config { file: file.to_path_buf(), field: field.to_owned(), reason })
        };
        let dimensions = [
            ("vocab_size", self.vocab_size, VOCAB_SIZE_MAX),
            ("hidden_size", self.hidden_size, WIDTH_MAX),
            ("intermediate_size", self.intermediate_size, WIDTH_MAX),
            ("num_hidden_layers", self.num_layers, NUM_LAYERS_MAX),
            ("num_attention_heads", self.num_heads, WIDTH_MAX),
            ("num_key_value_heads", self.num_kv_heads, WIDTH_MAX),
            ("head_dim", self.head_dim, HEAD_DIM_MAX),
            ("max_position_embeddings", self.context_length, CONTEXT_LENGTH_MAX),
        ];
        for (field, value, limit) in dimensions {
            if value == 0 || value > limit {
                return fail(field, format!("{value} is not between 1 and {limit}"));
            }
        }
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            let (heads, kv_heads) = (self.num_heads, self.num_kv_heads);
            return fail("num_key_value_heads", format!("{heads} heads do not divide into groups of {kv_heads}"));
        }
        if !self.head_dim.is_multiple_of(2) {
            return fail("head_dim", format!("{} is odd", self.head_dim));
        }
        if self.query_size() > WIDTH_MAX {
            return fail("num_attention_heads", format!("heads are {} wide together", self.query_size()));
        }
        if !(self.norm_eps.is_finite() && self.norm_eps >= 0.0) {
            return fail("rms_norm_eps", format!("{} is not a small positive number", self.norm_eps));
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            return fail("rope_theta", format!("{} is not a positive number", self.rope_theta));
        }
        if let Some(reason) = self.rope_scaling.fault() {
            return fail("rope_scaling", reason);
        }
        if self.layer_windows.contains(&Some(0)) {
            return fail("sliding_window", "a window of 0 sees nothing".to_owned());
        }
        if let Some(id) =
            self.eos_token_ids.iter().chain(&self.bos_token_id).find(|&&id| id as usize >= self.vocab_size)
        {
            return fail(
                "bos_token_id or eos_token_id",
                format!("{id} is outside the vocabulary of {}", self.vocab_size),
            );
        }
        Ok(self)
    }
}

impl RopeScaling {
    /// Returns the stretched frequency.
    pub(crate) fn apply(self, frequency: f64) -> f64 {
        match self {
            RopeScaling::None => frequency,
            RopeScaling::Linear { factor } => frequency / factor,
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context_length } => {
                let turns = original_context_length * frequency / std::f64::consts::TAU;
                if turns < low_freq_factor {
                    frequency / factor
                } else if turns > high_freq_factor {
                    frequency
                } else {
                    let smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
        }
    }

    fn fault(self) -> Option<String> {
        let positive = |value: f64| value.is_finite() && value > 0.0;
        match self {
            RopeScaling::None => None,
            RopeScaling::Linear { factor } => (!positive(factor)).then(|| format!("factor {factor} is not positive")),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context_length } => {
                let all_positive =
                    [factor, low_freq_factor, high_freq_factor, original_context_length].into_iter().all(positive);
                (!all_positive || low_freq_factor >= high_freq_factor).then(|| {
                    format!(
                        "factor {factor}, frequency factors {low_freq_factor} and {high_freq_factor} and original context \
                         {original_context_length} must be positive, the second below the third"
                    )
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ModelConfig {
        ModelConfig {
            architecture: Architecture::Llama,
            vocab_size: 32,
            hidden_size: 16,
            intermediate_size: 24,
            num_layers: 1,
            num_heads: 4,
            num_kv_heads: 2,
            head_dim: 4,
            norm_eps: 1e-5,
            rope_theta: 10_000.0,
            rope_scaling: RopeScaling::None,
            context_length: 64,
            tie_embeddings: true,
            qkv_bias: false,
            output_bias: false,
            qk_norm: false,
            layer_windows: vec![None],
            bos_token_id: Some(1),
            eos_token_ids: vec![2],
        }
    }

    fn fault(change: impl FnOnce(&mut ModelConfig)) -> String {
        let mut config = config();
        change(&mut config);
        match config.check(Path::new("config.json")) {
            Err(ModelError::Config { field, .. }) => field,
            other => panic!("expected a configuration error, got {other:?}"),
        }
    }

    #[test]
    fn the_example_passes() {
        assert!(config().check(Path::new("config.json")).is_ok());
    }

    #[test]
    fn every_impossible_value_names_its_field() {
        assert_eq!(fault(|c| c.vocab_size = 0), "vocab_size");
        assert_eq!(fault(|c| c.hidden_size = usize::MAX), "hidden_size");
        assert_eq!(fault(|c| c.num_kv_heads = 3), "num_key_value_heads");
        assert_eq!(fault(|c| c.head_dim = 5), "head_dim");
        assert_eq!(fault(|c| c.norm_eps = f32::NAN), "rms_norm_eps");
        assert_eq!(fault(|c| c.rope_theta = -1.0), "rope_theta");
        assert_eq!(fault(|c| c.rope_scaling = RopeScaling::Linear { factor: 0.0 }), "rope_scaling");
        assert_eq!(fault(|c| c.layer_windows = vec![Some(0)]), "sliding_window");
        assert_eq!(fault(|c| c.eos_token_ids = vec![32]), "bos_token_id or eos_token_id");
    }

    #[test]
    fn llama3_scaling_keeps_high_and_divides_low_frequencies() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context_length: 8192.0,
        };
        assert_eq!(scaling.apply(1.0), 1.0);
        assert_eq!(scaling.apply(1e-6), 1e-6 / 8.0);
        // Half way between the two factors, 2.5 turns, the two frequencies are averaged.
        let middle = 2.5 * std::f64::consts::TAU / 8192.0;
        assert!((scaling.apply(middle) - middle * (1.0 + 1.0 / 8.0) / 2.0).abs() < 1e-15);
    }

    #[test]
    fn divisors_divide_their_own_frequency() {
        let plain = config().inverse_frequencies(None);
        let divided = config().inverse_frequencies(Some(&[1.0, 4.0]));
        assert_eq!(divided[0], plain[0]);
        assert_eq!(divided[1], plain[1] / 4.0);
    }
}
