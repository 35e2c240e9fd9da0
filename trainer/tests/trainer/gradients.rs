//! Every factor gets a gradient, and each is the slope of the loss, on every architecture and storage of the base.

use bespoke_model::ModelSource;
use bespoke_testkit::{TinyArchitecture, TinyModel, TinyModelDir};
use bespoke_trainer::{Adapted, Base, BaseDtype, Batch, Compute, Dropout, Lora, LoraShape, Numbers, Pass};

fn base_of(dir: &TinyModelDir, numbers: impl Into<Numbers>) -> Base {
    Base::load(&ModelSource::open(dir.path()).unwrap(), numbers, 2, 256).unwrap()
}

/// An adapter on every module whose `B` is not zero.
fn adapter(base: &Base) -> Lora {
    adapter_on(base, &["all-linear"])
}

/// Modules without factors need their rows in one form alone, so that products in bf16 take other ways around them.
const MODULES: [&[&str]; 6] =
    [&["all-linear"], &["q_proj", "v_proj"], &["o_proj"], &["down_proj"], &["gate_proj"], &["up_proj"]];

fn adapter_on(base: &Base, modules: &[&str]) -> Lora {
    let target_modules = modules.iter().map(|&module| module.to_owned()).collect();
    let mut lora = Lora::new(&base.config, LoraShape { r: 4, alpha: 8.0, rslora: true, target_modules }, 3).unwrap();
    for (place, value) in lora.values.iter_mut().enumerate() {
        *value += ((place * 7919 % 101) as f32 - 50.0) * 2e-3;
    }
    lora
}

fn batch() -> Batch {
    let tokens = |seed: u32, len: u32| (0..len).map(|i| (i * 37 + seed * 101) % 290 + 5).collect::<Vec<u32>>();
    let mut batch = Batch::default();
    batch.push_sequence(&tokens(1, 9), &[true; 9]);
    batch.push_pair(&tokens(2, 5), [&tokens(3, 6), &tokens(4, 3)]);
    batch
}

/// A different factor for each prediction, so that no gradient cancels.
fn factors(batch: &Batch) -> Vec<f32> {
    (0..batch.scored.len()).map(|place| 0.3 - 0.11 * (place % 5) as f32).collect()
}

fn loss(pass: &mut Pass<'_>, adapted: Adapted<'_>, batch: &Batch) -> f64 {
    let logprobs = pass.logprobs(batch, Some(adapted));
    logprobs.iter().zip(factors(batch)).map(|(x, f)| f64::from(*x) * f64::from(f)).sum()
}

fn gradients(pass: &mut Pass<'_>, adapted: Adapted<'_>, batch: &Batch) -> Vec<f32> {
    let mut gradients = vec![0.0; adapted.lora.values.len()];
    pass.forward(batch, Some(adapted));
    pass.backward(batch, adapted, &factors(batch), &mut gradients);
    gradients
}

/// Compares slopes along a random direction within each factor: single values are too small for single precision.
fn assert_slopes(base: &Base, dropout: Option<Dropout>) {
    let (lora, batch) = (adapter(base), batch());
    let mut pass = Pass::new(base, false);
    let found = gradients(&mut pass, Adapted { lora: &lora, dropout }, &batch);
    for place in lora.factors() {
        for range in [place.a.clone(), place.b.clone()] {
            let norm = found[range.clone()].iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
            assert!(norm > 1e-6, "layer {} {:?} gets no gradient", place.layer, place.target);
            // Along the gradient the slope is its norm.
            let step = 2e-2 / norm.max(1.0);
            let mut moved = |by: f64| {
                let mut lora = lora.clone();
                for at in range.clone() {
                    lora.values[at] += (by * f64::from(found[at]) / norm) as f32;
                }
                loss(&mut pass, Adapted { lora: &lora, dropout }, &batch)
            };
            let slope = (moved(step) - moved(-step)) / (2.0 * step);
            let bound = 2e-2 * norm + 2e-3;
            let what = (place.layer, place.target);
            assert!((slope - norm).abs() < bound, "{what:?}: slope {slope}, gradient {norm}");
        }
    }
}

#[test]
fn every_factor_gets_the_slope_of_the_loss() {
    for architecture in
        [TinyArchitecture::Llama, TinyArchitecture::Mistral, TinyArchitecture::Qwen2, TinyArchitecture::Qwen3]
    {
        let sliding_window = (architecture == TinyArchitecture::Mistral).then_some(4);
        let dir = TinyModel { architecture, sliding_window, ..TinyModel::default() }.write_hf().unwrap();
        assert_slopes(&base_of(&dir, BaseDtype::F32), None);
    }
}

#[test]
fn every_storage_of_the_base_gives_its_own_slopes() {
    let dir = TinyModel::default().write_hf().unwrap();
    for dtype in [BaseDtype::Bf16, BaseDtype::Q8_0, BaseDtype::Q4_0] {
        assert_slopes(&base_of(&dir, dtype), None);
    }
}

#[test]
fn dropped_inputs_get_no_gradient_and_masks_are_repeated() {
    let dir = TinyModel::default().write_hf().unwrap();
    let base = base_of(&dir, BaseDtype::F32);
    assert_slopes(&base, Some(Dropout::new(0.3, 1, 2, 3)));
}

#[test]
fn checkpointing_changes_no_bit() {
    let dir = TinyModel::default().write_hf().unwrap();
    for (compute, modules) in [Compute::F32, Compute::Bf16].into_iter().flat_map(|c| MODULES.map(|m| (c, m))) {
        let base = base_of(&dir, Numbers { dtype: BaseDtype::Auto, compute });
        let (lora, batch) = (adapter_on(&base, modules), batch());
        let adapted = Adapted { lora: &lora, dropout: Some(Dropout::new(0.1, 1, 2, 3)) };
        let kept = gradients(&mut Pass::new(&base, false), adapted, &batch);
        let mut pass = Pass::new(&base, true);
        for _ in 0..2 {
            assert!(gradients(&mut pass, adapted, &batch) == kept, "{compute:?}, {modules:?}");
        }
    }
}

/// So a preference run begins where its reference is.
#[test]
fn a_new_adapter_changes_no_bit() {
    let dir = TinyModel::default().write_hf().unwrap();
    for (compute, modules) in [Compute::F32, Compute::Bf16].into_iter().flat_map(|c| MODULES.map(|m| (c, m))) {
        let base = base_of(&dir, Numbers { dtype: BaseDtype::Auto, compute });
        let target_modules = modules.iter().map(|&module| module.to_owned()).collect();
        let lora = Lora::new(&base.config, LoraShape { r: 4, alpha: 8.0, rslora: true, target_modules }, 3).unwrap();
        let mut pass = Pass::new(&base, false);
        let alone = pass.logprobs(&batch(), None);
        assert!(pass.logprobs(&batch(), Some(Adapted::plain(&lora))) == alone, "{compute:?}, {modules:?}");
    }
}

/// A pair whose answers share the rows of their prompt against two plain sequences.
#[test]
fn a_shared_prompt_changes_nothing() {
    let dir = TinyModel::default().write_hf().unwrap();
    for (compute, bound) in [(Compute::F32, 1e-5), (Compute::Bf16, 1e-2)] {
        check_shared_prompt(&base_of(&dir, Numbers { dtype: BaseDtype::Auto, compute }), bound);
    }
}

fn check_shared_prompt(base: &Base, bound: f32) {
    let lora = adapter(base);
    let (prompt, answers) = (vec![7, 8, 9, 10, 11], [vec![20, 21, 22], vec![30, 31, 32, 33]]);
    let mut shared = Batch::default();
    shared.push_pair(&prompt, [&answers[0], &answers[1]]);
    let mut apart = Batch::default();
    for answer in &answers {
        let tokens = [prompt.as_slice(), answer].concat();
        let trained: Vec<bool> = (0..tokens.len()).map(|place| place >= prompt.len()).collect();
        apart.push_sequence(&tokens, &trained);
    }
    assert_eq!((shared.num_rows(), apart.num_rows(), shared.num_tokens), (10, 15, apart.num_tokens));
    let mut pass = Pass::new(base, false);
    let (a, b) =
        (pass.logprobs(&shared, Some(Adapted::plain(&lora))), pass.logprobs(&apart, Some(Adapted::plain(&lora))));
    assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < bound), "{a:?} {b:?}");
    let (a, b) =
        (gradients(&mut pass, Adapted::plain(&lora), &shared), gradients(&mut pass, Adapted::plain(&lora), &apart));
    let off: f32 = a.iter().zip(&b).map(|(a, b)| (a - b).powi(2)).sum();
    let size: f32 = a.iter().map(|a| a * a).sum();
    assert!((off / size).sqrt() < bound, "{off} of {size}");
}

#[test]
fn a_gguf_base_trains_in_the_order_of_hugging_face() {
    let model = TinyModel::default();
    let (folder, file) = (model.write_hf().unwrap(), model.write_gguf().unwrap());
    let (from_folder, from_file) = (base_of(&folder, BaseDtype::F32), base_of(&file, BaseDtype::F32));
    let (lora, batch) = (adapter(&from_folder), batch());
    let a = gradients(&mut Pass::new(&from_folder, false), Adapted::plain(&lora), &batch);
    let b = gradients(&mut Pass::new(&from_file, false), Adapted::plain(&lora), &batch);
    assert!(a == b);
}

/// Each factor's gradient, relative to its norm: bf16 keeps 8 bits, and a gradient passes up to fourteen roundings here.
#[test]
fn gradients_in_bf16_are_near_those_in_f32() {
    for architecture in [TinyArchitecture::Llama, TinyArchitecture::Qwen2] {
        let dir = TinyModel { architecture, ..TinyModel::default() }.write_hf().unwrap();
        let [exact, rounded] =
            [Compute::F32, Compute::Bf16].map(|compute| base_of(&dir, Numbers { dtype: BaseDtype::Auto, compute }));
        for modules in MODULES {
            check_rounded(&exact, &rounded, modules);
        }
    }
}

fn check_rounded(exact: &Base, rounded: &Base, modules: &[&str]) {
    let lora = adapter_on(exact, modules);
    let [exact, rounded] =
        [exact, rounded].map(|base| gradients(&mut Pass::new(base, false), Adapted::plain(&lora), &batch()));
    for place in lora.factors() {
        for range in [place.a.clone(), place.b.clone()] {
            let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>().sqrt();
            let size = norm(&mut exact[range.clone()].iter().copied());
            let off = norm(&mut exact[range.clone()].iter().zip(&rounded[range]).map(|(a, b)| a - b));
            assert!(off > 0.0 && off < 0.1 * size, "layer {} {:?}: {}", place.layer, place.target, off / size);
        }
    }
}
