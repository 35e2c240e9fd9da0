//! Against the numbers of PyTorch and transformers, where the shared fixtures are on this machine.

use std::path::Path;

use bespoke_kernels::{argmax, log_sum_exp};
use bespoke_testkit::shared_fixture;
use serde_json::Value;

use crate::runner::{Runner, table};

/// What issue 2 asks for: logits and log-probabilities within this of the reference.
const TOLERANCE: f32 = 1e-4;

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn lora_tiny_logits_equal_pytorch() {
    let Some(folder) = shared_fixture("lora-tiny") else { return };
    let inputs = read_json(&folder.join("inputs.json"));
    let expected = read_json(&folder.join("expected_f32.json"));
    let file = std::fs::read(folder.join("logits_f32.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
    let mut runner = Runner::new(&folder);
    for (index, sequence) in inputs["sequences"].as_array().unwrap().iter().enumerate() {
        let tokens = ids(&sequence["input_ids"]);
        let found = runner.logits(&tokens, [tokens.len()]);
        let reference = tensors.tensor(&format!("logits_{index}")).unwrap();
        let reference: Vec<f32> =
            reference.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect();
        assert_eq!(reference.len(), found.len() * runner.model.config().vocab_size);
        for (expected, found) in reference.iter().zip(found.iter().flatten()) {
            assert!((expected - found).abs() < TOLERANCE, "sequence {index}: {found} is not {expected}");
        }
        let logprobs = expected["base"][index]["next_token_logprob"].as_array().unwrap();
        for ((row, &next), expected) in found.iter().zip(&tokens[1..]).zip(logprobs) {
            let logprob = row[next as usize] - log_sum_exp(row);
            assert!((logprob - expected.as_f64().unwrap() as f32).abs() < TOLERANCE);
        }
    }
}

#[test]
fn stories260k_greedy_ids_equal_the_golden_ones() {
    let Some(folder) = shared_fixture("stories260k") else { return };
    let golden = ids(&read_json(&folder.join("golden_greedy.json"))["ids"]);
    let mut runner = Runner::new(&folder);
    let table = table(golden.len(), 0);
    let mut found = vec![runner.model.config().bos_token_id.unwrap()];
    while found.len() < golden.len() {
        let position = found.len() - 1;
        let logits = runner.step(&[(&found[position..], position as u32, &table)]);
        found.push(argmax(&logits[0]) as u32);
    }
    assert_eq!(found, golden);
}
