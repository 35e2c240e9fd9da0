//! Every family and file form against the naive pass.

use bespoke_model::{Architecture, RopeScaling};
use bespoke_testkit::{
    BOS_ID, END_OF_TEXT_ID, EOS_ID, TinyArchitecture, TinyDtype, TinyModel, TinyModelDir, TinyRope, VOCAB_SIZE,
};

use crate::naive::Naive;
use crate::runner::{Runner, rounds_activations, tokens};

/// Largest difference of a logit. The logits have a deviation of about 2.5, `f32` keeps 7 digits, sums are of 64 to 96 terms.
const TOLERANCE: f64 = 1e-4;

/// The same where products with weights in bf16 round their activations: each is off by up to a 512th of itself. The largest
/// difference found is 0.13.
const BF16_TOLERANCE: f64 = 0.3;

fn tolerance(tiny: &TinyModel) -> f64 {
    if rounds_activations(tiny) { BF16_TOLERANCE } else { TOLERANCE }
}

fn largest_difference(tiny: &TinyModel, written: &TinyModelDir) -> f64 {
    let tokens = tokens(70, 1);
    let expected = Naive::new(tiny).logits(&tokens);
    let found = Runner::new(written.path()).logits(&tokens, [tokens.len()]);
    let differences = expected.iter().flatten().zip(found.iter().flatten()).map(|(e, f)| (e - f64::from(*f)).abs());
    assert!(found.iter().flatten().all(|logit| logit.is_finite()));
    differences.fold(0.0, f64::max)
}

fn check_hf(tiny: TinyModel) {
    let difference = largest_difference(&tiny, &tiny.write_hf().unwrap());
    assert!(difference < tolerance(&tiny), "{difference} for {tiny:?}");
}

fn check_gguf(tiny: TinyModel) {
    let difference = largest_difference(&tiny, &tiny.write_gguf().unwrap());
    assert!(difference < tolerance(&tiny), "{difference} for {tiny:?}");
}

fn of(architecture: TinyArchitecture) -> TinyModel {
    TinyModel { architecture, ..TinyModel::default() }
}

#[test]
fn llama_matches_the_naive_pass() {
    check_hf(TinyModel::default());
    check_hf(TinyModel { tie_embeddings: true, transformers5: true, ..TinyModel::default() });
    check_hf(TinyModel { attention_bias: true, num_kv_heads: 4, ..TinyModel::default() });
    // Heads need not be as wide together as the hidden state, nor odd numbers of them a problem.
    check_hf(TinyModel { num_heads: 9, num_kv_heads: 3, head_dim: 32, hidden_size: 96, ..TinyModel::default() });
}

#[test]
fn rope_scaling_matches_the_naive_pass() {
    check_hf(TinyModel { rope: TinyRope::Llama3, ..TinyModel::default() });
    check_hf(TinyModel { rope: TinyRope::Llama3, transformers5: true, ..TinyModel::default() });
    check_hf(TinyModel { rope: TinyRope::Linear(4.0), ..TinyModel::default() });
    check_gguf(TinyModel { rope: TinyRope::Llama3, ..TinyModel::default() });
    check_gguf(TinyModel { rope: TinyRope::Linear(4.0), ..TinyModel::default() });
}

#[test]
fn qwen_matches_the_naive_pass() {
    for architecture in [TinyArchitecture::Qwen2, TinyArchitecture::Qwen3] {
        check_hf(TinyModel { tie_embeddings: true, ..of(architecture) });
        check_hf(TinyModel { sliding_window: Some(9), ..of(architecture) });
        check_gguf(of(architecture));
    }
    check_hf(TinyModel { attention_bias: true, ..of(TinyArchitecture::Qwen3) });
}

#[test]
fn a_sliding_window_hides_what_lies_before_it() {
    let mistral = TinyModel { sliding_window: Some(8), ..of(TinyArchitecture::Mistral) };
    check_hf(mistral.clone());
    check_gguf(mistral);
    check_hf(TinyModel { sliding_window: Some(1), ..of(TinyArchitecture::Mistral) });
}

#[test]
fn half_precision_shards_match_the_naive_pass() {
    check_hf(TinyModel { dtype: TinyDtype::Bf16, num_shards: 3, ..TinyModel::default() });
    check_hf(TinyModel { dtype: TinyDtype::F16, num_shards: 2, ..of(TinyArchitecture::Qwen2) });
}

#[test]
fn gguf_matches_the_naive_pass() {
    check_gguf(TinyModel::default());
    check_gguf(TinyModel { tie_embeddings: true, attention_bias: true, ..TinyModel::default() });
    check_gguf(TinyModel { dtype: TinyDtype::F16, ..TinyModel::default() });
    check_gguf(TinyModel { dtype: TinyDtype::Bf16, ..of(TinyArchitecture::Qwen3) });
}

/// Activations of quantized weights have 8 bits: each is off by up to a 254th of the largest of its 32, 0.5 % of its size on
/// average, which the random layers make some percent of the logits' deviation of 2.5.
#[test]
fn quantized_weights_match_the_naive_pass_within_the_error_of_their_activations() {
    let tiny = TinyModel { dtype: TinyDtype::Q8_0, ..TinyModel::default() };
    let tokens = tokens(70, 1);
    let expected = Naive::new(&tiny).logits(&tokens);
    let found = Runner::new(tiny.write_gguf().unwrap().path()).logits(&tokens, [tokens.len()]);
    let squares = expected.iter().flatten().zip(found.iter().flatten()).map(|(e, f)| (e - f64::from(*f)).powi(2));
    let squares: Vec<f64> = squares.collect();
    let rms = (squares.iter().sum::<f64>() / squares.len() as f64).sqrt();
    assert!(rms < 0.15, "{rms}");
}

#[test]
fn both_file_forms_give_the_same_configuration() {
    let tiny = TinyModel::default();
    let (hf, gguf) = (tiny.write_hf().unwrap(), tiny.write_gguf().unwrap());
    let (hf, gguf) = (Runner::new(hf.path()).model, Runner::new(gguf.path()).model);
    assert_eq!(hf.config().norm_eps, gguf.config().norm_eps);
    assert_eq!(hf.config(), gguf.config());
    let config = hf.config();
    assert_eq!((config.architecture, config.vocab_size), (Architecture::Llama, VOCAB_SIZE));
    assert_eq!((config.num_layers, config.context_length, config.rope_scaling), (2, 256, RopeScaling::None));
    assert_eq!(config.bos_token_id, Some(BOS_ID));
    assert_eq!(config.eos_token_ids, [END_OF_TEXT_ID, EOS_ID]);
    assert_eq!(gguf.name(), "Tiny");
    assert_eq!(hf.num_parameters(), gguf.num_parameters());
    let expected: usize = tiny.tensors().values().map(|tensor| tensor.values.len()).sum();
    assert_eq!(hf.num_parameters(), expected as u64);
    assert_eq!(hf.dtype().to_string(), "F32");
}

#[test]
fn the_digest_is_of_the_content() {
    let digest = |seed| {
        Runner::new(TinyModel { seed, ..TinyModel::default() }.write_hf().unwrap().path()).model.digest().to_owned()
    };
    assert_eq!(digest(1), digest(1));
    assert_ne!(digest(1), digest(2));
    assert_eq!(digest(1).len(), 64);
}
