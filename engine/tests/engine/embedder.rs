//! The embedder: order, cancellation, deadlines, bounds and the end.

use std::time::{Duration, Instant};

use bespoke_engine::{Embedder, EngineError};
use bespoke_testkit::TinyEncoder;
use futures::executor::block_on;

fn embedder(options: &TinyEncoder, queue_max: usize) -> Embedder {
    let dir = options.write().unwrap();
    // The weights are mapped; the folder may go.
    Embedder::load(dir.path(), 1, queue_max).unwrap()
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

#[test]
fn vectors_come_in_the_order_of_the_texts() {
    let embedder = embedder(&TinyEncoder::default(), 4);
    let asked = texts(&["how do you cook rice?", "", "fix the bike", &"rice ".repeat(100)]);
    let all = block_on(embedder.start(&asked, true, None).unwrap().wait()).unwrap();
    assert_eq!(all.iter().map(|text| text.num_tokens).collect::<Vec<_>>(), [8, 2, 5, 40]);
    assert_eq!(all.iter().map(|text| text.truncated).collect::<Vec<_>>(), [false, false, false, true]);
    for (text, expected) in asked.iter().zip(&all) {
        let alone = block_on(embedder.start(std::slice::from_ref(text), true, None).unwrap().wait()).unwrap();
        assert_eq!(alone, std::slice::from_ref(expected));
    }
    let plain = block_on(embedder.start(&asked[..1], false, None).unwrap().wait()).unwrap();
    let length = |values: &[f32]| values.iter().map(|value| value * value).sum::<f32>().sqrt();
    assert!((length(&all[0].values) - 1.0).abs() < 1e-5 && (length(&plain[0].values) - 1.0).abs() > 1e-3);
    assert_eq!((embedder.info().dimension, embedder.info().tokens_max), (64, 40));
}

#[test]
fn what_is_wrong_is_refused_by_its_name() {
    let embedder = embedder(&TinyEncoder::default(), 1);
    let error = |texts: &[String], deadline| match embedder.start(texts, true, deadline) {
        Err(error) => error,
        Ok(embedding) => block_on(embedding.wait()).unwrap_err(),
    };
    assert!(error(&[], None).to_string().contains("`texts`"));
    assert!(error(&vec![String::new(); 257], None).to_string().contains("must be 1 to 256"));
    assert!(error(&texts(&["a", &"x".repeat(70_000)]), None).to_string().contains("`texts[1]`"));
    assert!(matches!(error(&texts(&["a"]), Some(Instant::now())), EngineError::DeadlineExceeded(_)));
    embedder.close();
    assert!(matches!(error(&texts(&["a"]), None), EngineError::Stopping));
}

#[test]
fn a_full_queue_refuses_and_dropping_cancels() {
    let slow = TinyEncoder { hidden_size: 128, intermediate_size: 256, num_layers: 4, ..TinyEncoder::default() };
    let embedder = embedder(&slow, 1);
    // Some twenty steps, so that whatever follows comes before its end.
    let many = vec!["rice ".repeat(60); 256];
    let running = embedder.start(&many, true, None).unwrap();
    // One job runs or waits; at most one more fits.
    let short = texts(&["rice"]);
    let waiting: Vec<_> = (0..3).map(|_| embedder.start(&short, true, None)).collect();
    assert!(waiting.iter().any(|result| matches!(result, Err(EngineError::QueueFull { limit: 1, .. }))));
    drop(running);
    drop(waiting);
    let answer = loop {
        match embedder.start(&short, true, None) {
            Ok(embedding) => break block_on(embedding.wait()),
            Err(EngineError::QueueFull { .. }) => std::thread::sleep(Duration::from_millis(1)),
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(answer.unwrap().len(), 1);
    let running = embedder.start(&many, true, None).unwrap();
    embedder.stop();
    assert!(matches!(block_on(running.wait()), Err(EngineError::Stopping)));
}
