//! What the server refuses or ends, and with which status and details.

use std::time::{Duration, Instant};

use bespoke_client::{ClientError, Code, Persona, PersonaId, PersonaSource};
use bespoke_domain::Invalid;
use futures::StreamExt;

use crate::support::{BULKY_CHOICES, Running, bulky, events, greedy, request};

fn status(error: ClientError) -> (Code, Vec<Invalid>, Option<Duration>) {
    match error {
        ClientError::Status { code, violations, retry_after, .. } => (code, violations, retry_after),
        other => panic!("not a status: {other}"),
    }
}

#[tokio::test]
async fn overload_answers_resource_exhausted_with_retry_info() {
    let running = Running::slow(|config| {
        config.sequences_max = 1;
        config.queue_max = 1;
    })
    .await;
    let held = running.client.generate_stream(&request(greedy("first", 200))).await.unwrap();
    running.runs(1).await;
    let waits = running.client.generate_stream(&request(greedy("second", 1))).await.unwrap();
    let begun = Instant::now();
    let (code, _, retry_after) = status(running.client.generate(&request(greedy("third", 1))).await.unwrap_err());
    assert_eq!(code, Code::ResourceExhausted);
    assert!(retry_after.is_some_and(|after| after > Duration::ZERO));
    assert!(begun.elapsed() < Duration::from_secs(2), "a refusal is immediate");
    drop((held, waits));
    running.idle().await;
}

#[tokio::test]
async fn an_expired_deadline_ends_the_stream() {
    let running = Running::slow(|config| config.sequences_max = 1).await;
    let mut held = running.client.generate_stream(&request(greedy("first", 200))).await.unwrap();
    held.next().await.unwrap().unwrap();
    let hasty = running.client.with_deadline(Some(Duration::from_millis(30)));
    // The first one holds the only place, so these cannot start in time.
    let mut stream = hasty.generate_stream(&request(greedy("late", 1))).await.unwrap();
    let error = stream.next().await.unwrap().unwrap_err();
    assert_eq!(error.code(), Some(Code::DeadlineExceeded), "{error}");
    let error = hasty.generate(&request(greedy("late", 1))).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::DeadlineExceeded), "{error}");
    drop(held);
    running.idle().await;
}

#[tokio::test]
async fn a_dropped_stream_frees_its_blocks() {
    let running = Running::tiny(|_| {}).await;
    for read in 0..4 {
        let mut stream = running.client.generate_stream(&request(greedy("gone", 200))).await.unwrap();
        for _ in 0..read {
            stream.next().await.unwrap().unwrap();
        }
        drop(stream);
        running.idle().await;
    }
}

#[tokio::test]
async fn a_stalled_stream_does_not_slow_the_others() {
    let running = Running::tiny(|config| config.sequences_max = 20).await;
    let mut stalled = bulky(&running.address).await;
    stalled.next().await.unwrap().unwrap();
    for _ in 0..3 {
        assert_eq!(events(&running.client, greedy("fast", 100)).await.len(), 102);
    }
    assert_eq!(stalled.count().await, 200 * BULKY_CHOICES as usize + 1, "all tokens and the end are still to be had");
}

#[tokio::test]
async fn wrong_fields_are_named_as_on_the_wire() {
    let running = Running::tiny(|config| {
        let novice = (PersonaId::new("novice").unwrap(), Persona::new("The user is new.").unwrap());
        config.personas = [novice].into();
    })
    .await;
    let field = async |generate| {
        let (code, violations, _) = status(running.client.generate(&request(generate)).await.unwrap_err());
        assert_eq!(code, Code::InvalidArgument);
        violations[0].field.clone()
    };
    let mut generate = greedy("x", 1);
    generate.spec.prompt = bespoke_client::Prompt::Tokens(vec![1, 1 << 30]);
    assert_eq!(field(generate).await, "spec.token_ids[1]");
    let mut generate = greedy("x", 1);
    generate.stop.tokens = vec![1 << 30];
    assert_eq!(field(generate).await, "params.stop.token_ids[0]");
    assert_eq!(field(greedy(&"long ".repeat(400), 1)).await, "spec.prompt");

    let mut generate = greedy("x", 1);
    generate.spec.template = Some(bespoke_client::Template::Paper);
    generate.spec.persona = PersonaSource::Id(PersonaId::new("absent").unwrap());
    let unknown = async |generate| running.client.generate(&request(generate)).await.unwrap_err();
    let error = unknown(generate.clone()).await;
    assert!(
        matches!(error, ClientError::Status { code: Code::NotFound, resource: Some(ref found), .. } if found.name == "absent")
    );
    generate.spec.persona = PersonaSource::System;
    assert_eq!(unknown(generate.clone()).await.code(), Some(Code::NotFound));
    generate.spec.persona = PersonaSource::Id(PersonaId::new("novice").unwrap());
    let generated = running.client.generate(&request(generate)).await.unwrap();
    assert_eq!(generated.started.persona.unwrap().as_str(), "The user is new.");
}

#[tokio::test]
async fn many_cancels_at_once_harm_no_other_stream() {
    let running = Running::slow(|config| config.sequences_max = 4).await;
    let mut survivor = running.client.generate_stream(&request(greedy("long", 60))).await.unwrap();
    survivor.next().await.unwrap().unwrap();
    let gone = request(greedy("gone", 50));
    let start = || running.client.generate_stream(&gone);
    let cancelled =
        futures::future::join_all((0..100).map(|_| tokio::time::timeout(Duration::from_millis(5), start()))).await;
    drop(cancelled);
    let rest: Vec<_> = survivor.collect().await;
    assert!(rest.iter().all(Result::is_ok), "{:?}", rest.last());
    assert_eq!(rest.len(), 61);
    running.idle().await;
}

#[tokio::test]
async fn deadlines_hold_where_no_token_is_generated() {
    let running = Running::tiny(|_| {}).await;
    let hasty = running.client.with_deadline(Some(Duration::from_micros(1)));
    let text = bespoke_client::TokenizeRequest { text: "word ".repeat(10_000), ..Default::default() };
    let error = hasty.tokenize(text).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::DeadlineExceeded), "{error}");
}
