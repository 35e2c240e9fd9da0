//! How the two kinds of files call the tensors of a layer.
//!
//! **Source**: the modules of `modeling_llama.py` in transformers, and `gguf-py/gguf/constants.py` of llama.cpp.

use bespoke_kernels::RopeStyle;

use crate::Architecture;
use crate::source::ModelFiles;

/// The naming scheme of a file.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Names {
    HuggingFace,
    Gguf,
}

/// One weight of a layer.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Part {
    AttnNorm,
    Q,
    K,
    V,
    O,
    QNorm,
    KNorm,
    FfnNorm,
    Gate,
    Up,
    Down,
}

impl Names {
    pub(crate) fn of(files: &ModelFiles) -> Names {
        match files {
            ModelFiles::HuggingFace(_) => Names::HuggingFace,
            ModelFiles::Gguf(_) => Names::Gguf,
        }
    }

    pub(crate) fn embeddings(self) -> &'static str {
        match self {
            Names::HuggingFace => "model.embed_tokens.weight",
            Names::Gguf => "token_embd.weight",
        }
    }

    pub(crate) fn final_norm(self) -> &'static str {
        match self {
            Names::HuggingFace => "model.norm.weight",
            Names::Gguf => "output_norm.weight",
        }
    }

    pub(crate) fn output(self) -> &'static str {
        match self {
            Names::HuggingFace => "lm_head.weight",
            Names::Gguf => "output.weight",
        }
    }

    pub(crate) fn layer_weight(self, layer: usize, part: Part) -> String {
        format!("{}.weight", self.layer_stem(layer, part))
    }

    pub(crate) fn layer_bias(self, layer: usize, part: Part) -> String {
        format!("{}.bias", self.layer_stem(layer, part))
    }

    /// llama.cpp's converter permutes the rows of q and k of `llama` files, so that neighbours are rotated together.
    pub(crate) fn rope_style(self, architecture: Architecture) -> RopeStyle {
        match (self, architecture) {
            (Names::Gguf, Architecture::Llama | Architecture::Mistral) => RopeStyle::Interleaved,
            (Names::Gguf, Architecture::Qwen2 | Architecture::Qwen3) | (Names::HuggingFace, _) => RopeStyle::Half,
        }
    }

    fn layer_stem(self, layer: usize, part: Part) -> String {
        match self {
            Names::HuggingFace => format!("model.layers.{layer}.{}", part.hugging_face()),
            Names::Gguf => format!("blk.{layer}.{}", part.gguf()),
        }
    }
}

impl Part {
    fn hugging_face(self) -> &'static str {
        match self {
            Part::AttnNorm => "input_layernorm",
            Part::Q => "self_attn.q_proj",
            Part::K => "self_attn.k_proj",
            Part::V => "self_attn.v_proj",
            Part::O => "self_attn.o_proj",
            Part::QNorm => "self_attn.q_norm",
            Part::KNorm => "self_attn.k_norm",
            Part::FfnNorm => "post_attention_layernorm",
            Part::Gate => "mlp.gate_proj",
            Part::Up => "mlp.up_proj",
            Part::Down => "mlp.down_proj",
        }
    }

    fn gguf(self) -> &'static str {
        match self {
            Part::AttnNorm => "attn_norm",
            Part::Q => "attn_q",
            Part::K => "attn_k",
            Part::V => "attn_v",
            Part::O => "attn_output",
            Part::QNorm => "attn_q_norm",
            Part::KNorm => "attn_k_norm",
            Part::FfnNorm => "ffn_norm",
            Part::Gate => "ffn_gate",
            Part::Up => "ffn_up",
            Part::Down => "ffn_down",
        }
    }
}
