//! What must not matter does not: pieces of a step, storage of the base, the place of the adapter.

use std::sync::atomic::AtomicBool;

use bespoke_model::{KvCache, KvDType, LoadOptions, Model, ModelSource, Step, StepRow, Workspace};
use bespoke_testkit::{TinyArchitecture, TinyModel, TinyModelDir};
use bespoke_trainer::{
    AdamSettings, AdamW, Adapted, Base, BaseDtype, Batch, Compute, DpoLoss, Example, Item, Lora, LoraShape,
    MergedDtype, Numbers, Objective, Pass, Preference, StepSettings, merge, run_items,
};

/// Nobody stops these steps.
static GO: AtomicBool = AtomicBool::new(false);

fn base_of(dir: &TinyModelDir, numbers: impl Into<Numbers>) -> Base {
    Base::load(&ModelSource::open(dir.path()).unwrap(), numbers, 2, 256).unwrap()
}

fn adapter(base: &Base) -> Lora {
    let shape = LoraShape { r: 4, alpha: 8.0, rslora: false, target_modules: vec!["all-linear".to_owned()] };
    let mut lora = Lora::new(&base.config, shape, 3).unwrap();
    for (place, value) in lora.values.iter_mut().enumerate() {
        *value += ((place * 7919 % 101) as f32 - 50.0) * 2e-3;
    }
    lora
}

fn tokens(seed: u32, len: u32) -> Vec<u32> {
    (0..len).map(|i| (i * 37 + seed * 101 + i * i) % 290 + 5).collect()
}

fn examples(pairs: bool) -> Vec<Example> {
    let sequence = |seed| {
        let tokens = tokens(seed, 5 + seed * 3 % 11);
        Example::Sequence { trained: vec![true; tokens.len()], tokens }
    };
    let pair = |seed| Example::Pair {
        prompt: tokens(seed, 4),
        chosen: tokens(seed + 50, 3 + seed % 4),
        rejected: tokens(seed + 90, 2 + seed % 5),
    };
    (0..8).map(|seed| if pairs { pair(seed) } else { sequence(seed) }).collect()
}

#[test]
fn one_batch_of_eight_is_eight_of_one() {
    let dir = TinyModel::default().write_hf().unwrap();
    let base = base_of(&dir, BaseDtype::F32);
    let lora = adapter(&base);
    let preference = Preference { kind: DpoLoss::Sigmoid, beta: 0.1, label_smoothing: 0.0 };
    for objective in [Objective::Likelihood, Objective::Preference(preference)] {
        let examples = examples(objective != Objective::Likelihood);
        let items: Vec<Item<'_>> = examples.iter().map(|example| Item { example, reference: [-9.0, -8.0] }).collect();
        let mut results = Vec::new();
        for batch_tokens in [1, 30, 10_000] {
            let mut gradients = vec![0.0; lora.values.len()];
            let settings = StepSettings { objective, batch_tokens, dropout: None, stop: &GO };
            let means =
                run_items(&mut Pass::new(&base, false), &lora, &items, &settings, Some(&mut gradients)).unwrap();
            results.push((means, gradients));
        }
        for (means, gradients) in &results[1..] {
            assert!((means.loss - results[0].0.loss).abs() < 1e-6);
            assert_eq!(means.num_tokens, results[0].0.num_tokens);
            let size: f32 = results[0].1.iter().map(|g| g * g).sum();
            let off: f32 = gradients.iter().zip(&results[0].1).map(|(a, b)| (a - b).powi(2)).sum();
            assert!((off / size).sqrt() < 1e-5, "{objective:?}: {}", (off / size).sqrt());
        }
    }
}

/// Log-probabilities of a text under the serving pass.
fn served(folder: &std::path::Path, ids: &[u32]) -> Vec<f32> {
    let model = Model::load(folder, LoadOptions { num_threads: 2, ..LoadOptions::default() }).unwrap();
    let mut cache = KvCache::new(model.config(), KvDType::F32, 4, 64).unwrap();
    let mut workspace = Workspace::new(&model, ids.len(), ids.len());
    let row = |(position, &token): (usize, &u32)| StepRow {
        token,
        position: position as u32,
        sequence: 0,
        wants_logits: true,
    };
    let rows: Vec<StepRow> = ids.iter().enumerate().map(row).collect();
    model
        .forward(&Step { rows: &rows, num_answer_rows: 0, block_tables: &[&[0, 1, 2, 3]] }, &mut cache, &mut workspace)
        .unwrap();
    let logits = workspace.logits().zip(&ids[1..]);
    logits.map(|(logits, &next)| logits[next as usize] - bespoke_kernels::log_sum_exp(logits)).collect()
}

#[test]
fn the_merged_model_serves_what_base_and_adapter_say() {
    for (architecture, gguf) in [
        (TinyArchitecture::Llama, false),
        (TinyArchitecture::Llama, true),
        (TinyArchitecture::Qwen2, false),
        (TinyArchitecture::Qwen2, true),
        (TinyArchitecture::Qwen3, true),
    ] {
        let model = TinyModel { architecture, ..TinyModel::default() };
        let dir = if gguf { model.write_gguf().unwrap() } else { model.write_hf().unwrap() };
        let source = ModelSource::open(dir.path()).unwrap();
        let base = base_of(&dir, BaseDtype::F32);
        let lora = adapter(&base);
        let ids = tokens(5, 40);
        let mut batch = Batch::default();
        batch.push_sequence(&ids, &[true; 40]);
        let expected = Pass::new(&base, false).logprobs(&batch, Some(Adapted::plain(&lora)));
        let output = tempfile::tempdir().unwrap();
        let merged = output.path().join("merged");
        merge(&source, &lora, MergedDtype::F32, &merged).unwrap();
        for (expected, found) in expected.iter().zip(served(&merged, &ids)) {
            assert!((expected - found).abs() < 2e-4, "{architecture:?} gguf {gguf}: {expected} not {found}");
        }
    }
}

/// Thirty steps with the base in half the bits, and with products in bf16 too, stay near those in full precision.
#[test]
fn bf16_learns_like_f32() {
    let dir = TinyModel::default().write_hf().unwrap();
    let examples = examples(false);
    let items: Vec<Item<'_>> = examples.iter().map(|example| Item { example, reference: [0.0; 2] }).collect();
    let curve = |compute: Compute, dtype: BaseDtype| -> Vec<f64> {
        let base = base_of(&dir, Numbers { dtype, compute });
        let mut lora = adapter(&base);
        let mut optimizer = AdamW::new(AdamSettings::default(), lora.values.len());
        let mut pass = Pass::new(&base, false);
        let settings = StepSettings { objective: Objective::Likelihood, batch_tokens: 1000, dropout: None, stop: &GO };
        let mut step = || {
            let mut gradients = vec![0.0; lora.values.len()];
            let means = run_items(&mut pass, &lora, &items, &settings, Some(&mut gradients)).unwrap();
            optimizer.update(&mut lora.values, &gradients, 3e-3);
            means.loss
        };
        (0..30).map(|_| step()).collect()
    };
    let full = curve(Compute::F32, BaseDtype::F32);
    assert!(full[29] < full[0] - 0.5, "{full:?}");
    let (stored, computed) = (curve(Compute::F32, BaseDtype::Bf16), curve(Compute::Bf16, BaseDtype::Auto));
    assert_ne!(stored, computed);
    for half in [stored, computed] {
        for (full, half) in full.iter().zip(&half) {
            assert!((full - half).abs() < 0.03, "{full} and {half}");
        }
    }
}
