//! Model files, tokenizer, KV cache and the serving pass.
//!
//! Shape letters, used by every **Shapes** line of this crate: `T` rows of a step, `D` hidden size, `F` intermediate size, `V`
//! vocabulary, `H` query heads, `K` key/value heads, `E` head dimension, `L` layers, `B` KV blocks, `S` slots of a block.

mod config;
mod detokenizer;
mod encoder;
mod error;
pub mod gguf;
mod kv_cache;
mod mapping;
mod quantize;
mod safetensors_folder;
mod serving;
mod source;
mod tensor;
mod tokenizer;
mod weights;

pub use bespoke_kernels::{KvDType, argmax};
pub use config::{Architecture, ModelConfig, RopeScaling};
pub use detokenizer::{Detokenizer, DetokenizerOptions, DetokenizerOutput};
pub use encoder::{Encoder, EncoderConfig, EncoderTokenizer, EncoderWorkspace, WordPieces};
pub use error::ModelError;
pub use kv_cache::KvCache;
pub use quantize::{
    Quantization, QuantizeOptions, QuantizeProgress, QuantizeSummary, Replacement, encode_matrix, quantize_model,
};
pub use serving::{LoadOptions, Model, Step, StepRow, Workspace};
pub use source::ModelSource;
pub use tokenizer::{Encoded, Tokenizer, hugging_face_tokenizer};
pub use weights::{LayerWeights, Linear, Weight, Weights};
