//! A sequence's numbers are the same bits however it is cut into steps and whatever runs beside it.

use bespoke_model::KvDType;
use bespoke_testkit::{TinyArchitecture, TinyDtype, TinyModel};
use proptest::prelude::*;

use crate::runner::{Runner, load, table, tokens};

fn runners() -> Vec<Runner> {
    let windowed =
        TinyModel { architecture: TinyArchitecture::Mistral, sliding_window: Some(7), ..TinyModel::default() };
    let quantized = TinyModel { dtype: TinyDtype::Q8_0, ..TinyModel::default() };
    let half = TinyModel { architecture: TinyArchitecture::Qwen3, dtype: TinyDtype::Bf16, ..TinyModel::default() };
    let wide = TinyModel { head_dim: 32, ..TinyModel::default() };
    let with_kv = |model: &TinyModel, dtype| Runner::with_kv(load(model.write_hf().unwrap().path()).unwrap(), dtype);
    vec![
        Runner::new(windowed.write_hf().unwrap().path()),
        Runner::new(quantized.write_gguf().unwrap().path()),
        Runner::new(half.write_gguf().unwrap().path()),
        with_kv(&windowed, KvDType::F16),
        with_kv(&wide, KvDType::Q8_0),
        Runner { answers: true, ..Runner::new(quantized.write_gguf().unwrap().path()) },
        Runner::new(TinyModel { head_dim: 32, ..quantized }.write_gguf().unwrap().path()),
    ]
}

/// Rows of answers and of prompts in one step: each is what it is without the other.
#[test]
fn answers_beside_prompts_equal_both_alone() {
    use bespoke_model::{Step, StepRow};
    let tiny = TinyModel { dtype: TinyDtype::Q8_0, head_dim: 32, ..TinyModel::default() };
    let folder = tiny.write_gguf().unwrap();
    let mut runner = Runner::new(folder.path());
    let (answer, prompt) = (tokens(20, 3), tokens(50, 4));
    let (answer_table, prompt_table) = (table(20, 1), table(50, 2));
    let as_prompt = runner.logits(&answer, [answer.len()]);
    let expected_prompt = runner.logits(&prompt, [prompt.len()]);
    runner.answers = true;
    let expected_answer = runner.logits(&answer, [answer.len()]);
    assert_eq!(runner.model.prompts_differ(), as_prompt != expected_answer);
    let row =
        |sequence| move |(position, &token): (u32, &u32)| StepRow { token, position, sequence, wants_logits: true };
    let rows: Vec<StepRow> = (0..).zip(&answer).map(row(0)).chain((0..).zip(&prompt).map(row(1))).collect();
    let step = Step { rows: &rows, num_answer_rows: 20, block_tables: &[&answer_table, &prompt_table] };
    runner.model.forward(&step, &mut runner.cache, &mut runner.workspace).unwrap();
    let found: Vec<Vec<f32>> = runner.workspace.logits().map(<[f32]>::to_vec).collect();
    assert!(found == [expected_answer, expected_prompt].concat());
}

/// What is kept in fewer bits moves the logits a little, and not at all where it is kept as it is.
#[test]
fn a_smaller_cache_is_close_to_the_exact_one() {
    let tiny = TinyModel { head_dim: 32, ..TinyModel::default() };
    let (folder, tokens) = (tiny.write_hf().unwrap(), tokens(40, 9));
    let logits = |dtype| Runner::with_kv(load(folder.path()).unwrap(), dtype).logits(&tokens, [tokens.len()]).concat();
    let exact = logits(KvDType::F32);
    let largest = exact.iter().fold(0.0_f32, |largest, logit| largest.max(logit.abs()));
    for (dtype, bound) in [(KvDType::F16, 4e-3), (KvDType::Bf16, 3e-2), (KvDType::Q8_0, 6e-2)] {
        let difference = exact.iter().zip(logits(dtype)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(difference > 0.0 && difference <= bound * largest, "{dtype}: {difference} of {largest}");
    }
}

#[test]
fn heads_that_a_format_cannot_hold_are_an_error() {
    let folder = TinyModel::default().write_hf().unwrap();
    let model = load(folder.path()).unwrap();
    let error = bespoke_model::KvCache::new(model.config(), KvDType::Q8_0, 1, 16).err().unwrap().to_string();
    assert!(error.starts_with("keys and values of") && error.ends_with("cannot be kept as Q8_0"), "{error}");
}

#[test]
fn chunked_prefill_equals_whole() {
    let tokens = tokens(61, 3);
    for mut runner in runners() {
        let whole = runner.logits(&tokens, [tokens.len()]);
        for chunk in [1, 2, 5, 13, 60] {
            let chunked = runner.logits(&tokens, std::iter::repeat_n(chunk, tokens.len().div_ceil(chunk)));
            assert!(chunked == whole, "chunks of {chunk}");
        }
    }
}

#[test]
fn batched_equals_alone() {
    for mut runner in runners() {
        let sequences: Vec<Vec<u32>> = vec![tokens(40, 5), tokens(23, 6), tokens(31, 7)];
        let alone: Vec<_> = sequences.iter().map(|tokens| runner.logits(tokens, [tokens.len()])).collect();
        let tables: Vec<_> = (0u32..).zip(&sequences).map(|(lane, tokens)| table(tokens.len(), lane + 1)).collect();
        // Prefill of one, in pieces, beside the decoding of the others.
        let mut batched = vec![Vec::new(); sequences.len()];
        let mut done = [0usize; 3];
        for round in 0.. {
            let takes: [usize; 3] =
                std::array::from_fn(|i| [7, 1, 3][(round + i) % 3].min(sequences[i].len() - done[i]));
            if takes == [0; 3] {
                break;
            }
            let parts: Vec<_> = (0..3)
                .map(|i| (&sequences[i][done[i]..done[i] + takes[i]], done[i] as u32, tables[i].as_slice()))
                .collect();
            let mut rows = runner.step(&parts).into_iter();
            for i in 0..3 {
                batched[i].extend(rows.by_ref().take(takes[i]));
                done[i] += takes[i];
            }
        }
        assert!(batched == alone);
    }
}

#[test]
fn logits_come_only_for_the_rows_that_want_them() {
    use bespoke_model::{Step, StepRow};
    let mut runner = Runner::new(TinyModel::default().write_hf().unwrap().path());
    let tokens = tokens(9, 2);
    let all = runner.logits(&tokens, [tokens.len()]);
    let rows: Vec<StepRow> = (0u32..)
        .zip(&tokens)
        .map(|(position, &token)| StepRow { token, position, sequence: 0, wants_logits: position % 4 == 0 })
        .collect();
    let table = table(tokens.len(), 0);
    let step = Step { rows: &rows, num_answer_rows: 0, block_tables: &[&table] };
    runner.model.forward(&step, &mut runner.cache, &mut runner.workspace).unwrap();
    let wanted: Vec<&[f32]> = runner.workspace.logits().collect();
    assert_eq!(wanted, [&all[0][..], &all[4], &all[8]]);
    let empty = Step { rows: &[], num_answer_rows: 0, block_tables: &[] };
    runner.model.forward(&empty, &mut runner.cache, &mut runner.workspace).unwrap();
    assert_eq!(runner.workspace.logits().len(), 0);
}

#[test]
fn greedy_text_of_a_tiny_model_varies() {
    for tie_embeddings in [false, true] {
        let tiny = TinyModel { tie_embeddings, ..TinyModel::default() };
        let mut runner = Runner::new(tiny.write_hf().unwrap().path());
        let table = table(65, 0);
        let mut ids = vec![bespoke_testkit::BOS_ID];
        for position in 0..64 {
            let logits = runner.step(&[(&ids[position..], position as u32, &table)]);
            ids.push(bespoke_kernels::argmax(&logits[0]) as u32);
        }
        let distinct: std::collections::HashSet<_> = ids.iter().collect();
        assert!(distinct.len() > 10, "{ids:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn any_chunks_equal_whole(chunks in proptest::collection::vec(1usize..20, 1..10), seed in 0u32..100) {
        let mut runner = Runner::new(TinyModel::default().write_hf().unwrap().path());
        let tokens = tokens(chunks.iter().sum(), seed);
        let whole = runner.logits(&tokens, [tokens.len()]);
        prop_assert!(runner.logits(&tokens, chunks) == whole);
    }
}
