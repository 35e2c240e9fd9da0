//! `EmbeddingService` over real gRPC.

use std::time::Duration;

use bespoke_client::{ClientError, Code, EmbedRequest};

use crate::support::Running;

fn asking(texts: &[&str]) -> EmbedRequest {
    EmbedRequest { texts: texts.iter().map(ToString::to_string).collect(), normalize: None }
}

#[tokio::test]
async fn texts_become_vectors() {
    let running = Running::with_encoder(|_| {}).await;
    let texts = ["how do you cook rice?", "", &"rice ".repeat(100)];
    let response = running.client.embed(asking(&texts)).await.unwrap();
    let vectors = &response.embeddings;
    assert_eq!(
        vectors.iter().map(|vector| (vector.num_tokens, vector.truncated)).collect::<Vec<_>>(),
        [(8, false), (2, false), (40, true)]
    );
    for vector in vectors {
        let length = vector.values.iter().map(|value| value * value).sum::<f32>();
        assert!(vector.values.len() == 64 && (length - 1.0).abs() < 1e-5, "{length}");
    }
    let alone = running.client.embed(asking(&texts[..1])).await.unwrap();
    assert_eq!((&alone.embeddings[0], alone.model_digest.len()), (&vectors[0], 64));
    let plain = EmbedRequest { normalize: Some(false), ..asking(&texts[..1]) };
    assert_ne!(running.client.embed(plain).await.unwrap().embeddings[0], vectors[0]);
}

#[tokio::test]
async fn what_is_wrong_has_its_status() {
    let running = Running::with_encoder(|config| config.queue_max = 1).await;
    let refused = |error: ClientError| match error {
        ClientError::Status { code, violations, retry_after, .. } => {
            (code, violations.first().map(|invalid| invalid.field.clone()), retry_after)
        }
        other => panic!("not a status: {other}"),
    };
    let error = refused(running.client.embed(asking(&[])).await.unwrap_err());
    assert_eq!(error, (Code::InvalidArgument, Some("texts".to_owned()), None));
    let error = refused(running.client.embed(asking(&["a", &"x".repeat(70_000)])).await.unwrap_err());
    assert_eq!(error, (Code::InvalidArgument, Some("texts[1]".to_owned()), None));
    let many = asking(&["rice rice rice rice rice rice rice rice rice rice rice rice"; 256]);
    let hasty = running.client.with_deadline(Some(Duration::from_millis(3)));
    let error = refused(hasty.embed(many.clone()).await.unwrap_err());
    assert_eq!(error.0, Code::DeadlineExceeded);
    let calls = (0..64).map(|_| running.client.embed(many.clone()));
    let outcomes = futures::future::join_all(calls).await;
    let errors: Vec<_> = outcomes.into_iter().filter_map(Result::err).map(refused).collect();
    assert!(errors.iter().all(|(code, _, after)| *code == Code::ResourceExhausted && after.is_some()), "{errors:?}");
    assert!(!errors.is_empty());
}

#[tokio::test]
async fn a_server_without_an_encoder_says_so() {
    let running = Running::tiny(|_| {}).await;
    let error = running.client.embed(asking(&["a"])).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::Unimplemented));
    assert!(error.to_string().contains("--embedding-model"), "{error}");
}

#[tokio::test]
async fn a_drain_lets_embeddings_end() {
    let mut running = Running::with_encoder(|_| {}).await;
    let (client, many) = (running.client.clone(), asking(&["rice rice rice rice"; 200]));
    let call = tokio::spawn(async move { client.embed(many).await });
    // Early enough to find the call under way, or already answered.
    tokio::time::sleep(Duration::from_millis(5)).await;
    running.drain().await.unwrap();
    match call.await.unwrap() {
        Ok(response) => assert_eq!(response.embeddings.len(), 200),
        Err(error) => assert_eq!(error.code(), Some(Code::Unavailable), "{error}"),
    }
}
