//! Writes a tiny model as a GGUF v3 file, as llama.cpp's converter would.

use crate::stored::{StoredTensor, TinyDtype};
use crate::tiny_model::{TinyArchitecture, TinyModel, TinyRope};
use crate::tokenizer;

const ALIGNMENT: usize = 32;
/// Value types of the metadata.
const TYPE_U32: u32 = 4;
const TYPE_I32: u32 = 5;
const TYPE_F32: u32 = 6;
const TYPE_BOOL: u32 = 7;
const TYPE_STRING: u32 = 8;
const TYPE_ARRAY: u32 = 9;
/// `LLAMA_TOKEN_TYPE_NORMAL` and `LLAMA_TOKEN_TYPE_CONTROL`.
const TOKEN_NORMAL: i32 = 1;
const TOKEN_CONTROL: i32 = 3;

pub(crate) fn file_bytes(model: &TinyModel) -> Vec<u8> {
    let mut writer = GgufWriter::default();
    write_metadata(model, &mut writer);
    for (name, tensor) in tensors(model) {
        let dtype = if tensor.shape.len() == 1 { TinyDtype::F32 } else { model.dtype };
        writer.tensor(&name, &tensor, dtype);
    }
    writer.finish()
}

/// The two halves of a file while it grows: metadata and tensors.
#[derive(Default)]
struct GgufWriter {
    num_keys: u64,
    metadata: Vec<u8>,
    num_tensors: u64,
    tensor_infos: Vec<u8>,
    data: Vec<u8>,
}

impl GgufWriter {
    fn finish(self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(3u32.to_le_bytes());
        file.extend(self.num_tensors.to_le_bytes());
        file.extend(self.num_keys.to_le_bytes());
        file.extend(self.metadata);
        file.extend(self.tensor_infos);
        pad(&mut file);
        file.extend(self.data);
        file
    }

    fn key(&mut self, key: &str, type_id: u32) {
        self.num_keys += 1;
        put_string(&mut self.metadata, key);
        self.metadata.extend(type_id.to_le_bytes());
    }

    fn u32(&mut self, key: &str, value: usize) {
        self.key(key, TYPE_U32);
        self.metadata.extend(u32::try_from(value).expect("invariant: a tiny model has small numbers").to_le_bytes());
    }

    fn f32(&mut self, key: &str, value: f64) {
        self.key(key, TYPE_F32);
        self.metadata.extend((value as f32).to_le_bytes());
    }

    fn bool(&mut self, key: &str, value: bool) {
        self.key(key, TYPE_BOOL);
        self.metadata.push(u8::from(value));
    }

    fn string(&mut self, key: &str, value: &str) {
        self.key(key, TYPE_STRING);
        put_string(&mut self.metadata, value);
    }

    fn strings(&mut self, key: &str, values: &[String]) {
        self.array(key, TYPE_STRING, values.len());
        values.iter().for_each(|value| put_string(&mut self.metadata, value));
    }

    fn i32s(&mut self, key: &str, values: &[i32]) {
        self.array(key, TYPE_I32, values.len());
        values.iter().for_each(|value| self.metadata.extend(value.to_le_bytes()));
    }

    fn array(&mut self, key: &str, type_id: u32, len: usize) {
        self.key(key, TYPE_ARRAY);
        self.metadata.extend(type_id.to_le_bytes());
        self.metadata.extend((len as u64).to_le_bytes());
    }

    fn tensor(&mut self, name: &str, tensor: &StoredTensor, dtype: TinyDtype) {
        let type_id: u32 = match dtype {
            TinyDtype::F32 => 0,
            TinyDtype::F16 => 1,
            TinyDtype::Q8_0 => 8,
            TinyDtype::Bf16 => 30,
        };
        pad(&mut self.data);
        self.num_tensors += 1;
        put_string(&mut self.tensor_infos, name);
        self.tensor_infos.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|&size| self.tensor_infos.extend((size as u64).to_le_bytes()));
        self.tensor_infos.extend(type_id.to_le_bytes());
        self.tensor_infos.extend((self.data.len() as u64).to_le_bytes());
        self.data.extend(dtype.encode(&tensor.values));
    }
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
}

fn write_metadata(model: &TinyModel, writer: &mut GgufWriter) {
    let architecture = match model.architecture {
        TinyArchitecture::Llama | TinyArchitecture::Mistral => "llama",
        TinyArchitecture::Qwen2 => "qwen2",
        TinyArchitecture::Qwen3 => "qwen3",
    };
    let full = |key: &str| format!("{architecture}.{key}");
    writer.string("general.architecture", architecture);
    writer.string("general.name", "Tiny");
    writer.u32("general.alignment", ALIGNMENT);
    writer.u32(&full("context_length"), model.context_length);
    writer.u32(&full("embedding_length"), model.hidden_size);
    writer.u32(&full("block_count"), model.num_layers);
    writer.u32(&full("feed_forward_length"), model.intermediate_size);
    writer.u32(&full("attention.head_count"), model.num_heads);
    writer.u32(&full("attention.head_count_kv"), model.num_kv_heads);
    writer.u32(&full("attention.key_length"), model.head_dim);
    writer.u32(&full("attention.value_length"), model.head_dim);
    writer.u32(&full("rope.dimension_count"), model.head_dim);
    writer.f32(&full("attention.layer_norm_rms_epsilon"), TinyModel::NORM_EPS);
    writer.f32(&full("rope.freq_base"), TinyModel::ROPE_THETA);
    if let TinyRope::Linear(factor) = model.rope {
        writer.string(&full("rope.scaling.type"), "linear");
        writer.f32(&full("rope.scaling.factor"), factor);
    }
    if let (TinyArchitecture::Mistral, Some(window)) = (model.architecture, model.sliding_window) {
        writer.u32(&full("attention.sliding_window"), window);
    }
    let tokens = tokenizer::tokens();
    let num_special = tokenizer::SPECIAL_TOKENS.len();
    let types: Vec<i32> =
        (0..tokens.len()).map(|id| if id < num_special { TOKEN_CONTROL } else { TOKEN_NORMAL }).collect();
    writer.string("tokenizer.ggml.model", "gpt2");
    writer.string("tokenizer.ggml.pre", "smollm");
    writer.strings("tokenizer.ggml.tokens", &tokens);
    writer.i32s("tokenizer.ggml.token_type", &types);
    writer.strings("tokenizer.ggml.merges", &tokenizer::merges());
    writer.u32("tokenizer.ggml.bos_token_id", tokenizer::BOS_ID as usize);
    writer.u32("tokenizer.ggml.eos_token_id", tokenizer::EOS_ID as usize);
    writer.u32("tokenizer.ggml.padding_token_id", tokenizer::END_OF_TEXT_ID as usize);
    writer.bool("tokenizer.ggml.add_bos_token", false);
    writer.string("tokenizer.chat_template", tokenizer::CHAT_TEMPLATE);
}

/// Returns the tensors under their GGUF names, q and k of a Llama permuted.
fn tensors(model: &TinyModel) -> Vec<(String, StoredTensor)> {
    let is_llama = matches!(model.architecture, TinyArchitecture::Llama | TinyArchitecture::Mistral);
    let mut tensors: Vec<_> = model
        .tensors()
        .into_iter()
        .map(|(name, tensor)| {
            let num_heads = match (is_llama, name.contains("q_proj"), name.contains("k_proj")) {
                (true, true, _) => Some(model.num_heads),
                (true, _, true) => Some(model.num_kv_heads),
                _ => None,
            };
            (gguf_name(&name), num_heads.map_or_else(|| tensor.clone(), |heads| tensor.permuted(heads)))
        })
        .collect();
    if model.rope == TinyRope::Llama3 {
        tensors.push(("rope_freqs.weight".to_owned(), rope_divisors(model)));
    }
    tensors
}

fn gguf_name(name: &str) -> String {
    const NAMES: [(&str, &str); 15] = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers", "blk"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    NAMES.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

/// The divisors that stand for Llama 3.1's scaling.
///
/// **Source**: `LlamaModel.generate_extra_tensors` in llama.cpp `convert_hf_to_gguf.py`.
fn rope_divisors(model: &TinyModel) -> StoredTensor {
    let (factor, low, high, original) = (8.0, 1.0, 4.0, 64.0);
    let divisor = |pair: usize| {
        let frequency = TinyModel::ROPE_THETA.powf(-2.0 * pair as f64 / model.head_dim as f64);
        let wavelength = std::f64::consts::TAU / frequency;
        if wavelength < original / high {
            1.0
        } else if wavelength > original / low {
            factor as f32
        } else {
            let smooth = (original / wavelength - low) / (high - low);
            (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
        }
    };
    StoredTensor { shape: vec![model.head_dim / 2], values: (0..model.head_dim / 2).map(divisor).collect() }
}
