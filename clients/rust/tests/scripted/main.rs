//! The client against a scripted server over a real connection.

mod server;

use std::time::{Duration, Instant};

use bespoke_client::{
    Client, ClientError, Code, Continuation, Event, Generate, Priority, Prompt, PromptSpec, Request, ScoreRequest,
    Template, TokenizeRequest,
};
use futures::StreamExt;

async fn client() -> Client {
    Client::connect(server::start().await).await.expect("the server answers")
}

fn ask(text: &str) -> Request {
    Request::try_from(Generate::text(text)).expect("a text is a request")
}

/// Reads a stream to its end.
async fn all(client: &Client, text: &str) -> Vec<Result<Event, ClientError>> {
    client.generate_stream(&ask(text)).await.expect("a stream").collect().await
}

#[tokio::test]
async fn a_stream_brings_all_events_and_ends() {
    let events = all(&client().await, "hello").await;
    let events: Vec<_> = events.into_iter().map(Result::unwrap).collect();
    assert!(matches!(events.first(), Some(Event::Started(started)) if started.model_digest == "none"));
    assert!(matches!(events.last(), Some(Event::Finished(_))));
    let text: String = events
        .iter()
        .filter_map(|event| if let Event::Delta(delta) = event { Some(delta.text.as_str()) } else { None })
        .collect();
    let whole = client().await.generate(&ask("hello")).await.unwrap();
    assert_eq!((text.as_str(), whole.choices[0].text.as_str()), ("Hello, world.", "Hello, world."));
}

#[tokio::test]
async fn a_refusal_keeps_its_code_and_details() {
    let client = client().await;
    let error = client.generate_stream(&ask("full")).await.err().unwrap();
    assert_eq!((error.code(), error.retry_after()), (Some(Code::ResourceExhausted), Some(Duration::from_millis(250))));
    let spec = PromptSpec::new(Prompt::Tokens(vec![1]));
    let error = client.render_prompt(&spec, None).await.unwrap_err();
    let ClientError::Status { code: Code::InvalidArgument, violations, .. } = error else { panic!("{error:?}") };
    assert_eq!(violations[0].field, "spec.token_ids");
}

#[tokio::test]
async fn a_stream_that_goes_wrong_ends_with_one_error() {
    let client = client().await;
    let last = |mut events: Vec<Result<Event, ClientError>>, length| {
        assert_eq!(events.len(), length);
        events.pop().unwrap().unwrap_err()
    };
    assert!(matches!(last(all(&client, "cut").await, 3), ClientError::EndedEarly));
    let error = last(all(&client, "nonsense").await, 2);
    assert!(matches!(&error, ClientError::Response(invalid) if invalid.field == "event"), "{error:?}");
    assert_eq!(last(all(&client, "breaks").await, 3).code(), Some(Code::Internal));
    let error = client.generate(&ask("nonsense")).await.unwrap_err();
    assert!(matches!(&error, ClientError::Response(invalid) if invalid.field == "started"), "{error:?}");
}

#[tokio::test]
async fn the_deadline_is_sent() {
    let client = client().await.with_deadline(Some(Duration::from_secs(60)));
    let generated = client.generate(&ask("hello")).await.unwrap();
    assert_eq!(generated.started.model_digest, "60000000u");
    let forever = client.with_deadline(Some(Duration::MAX));
    assert_eq!(forever.generate(&ask("hello")).await.unwrap().started.model_digest, "none");
}

#[tokio::test]
async fn a_server_that_stalls_does_not_hold_the_client_past_its_deadline() {
    let uri = server::start().await;
    let client = Client::builder(uri).deadline(Duration::from_millis(100)).connect().await.unwrap();
    let start = Instant::now();
    let error = client.generate(&ask("stalls")).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::DeadlineExceeded), "{error:?}");
    let mut events = all(&client, "stalls").await;
    assert_eq!(events.len(), 2);
    assert_eq!(events.pop().unwrap().unwrap_err().code(), Some(Code::DeadlineExceeded));
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn an_address_that_is_wrong_or_silent_is_an_error() {
    for uri in ["not an address", "http://127.0.0.1:1"] {
        assert!(matches!(Client::connect(uri).await, Err(ClientError::Connect(_))), "{uri}");
    }
}

#[tokio::test]
async fn a_message_above_the_limit_is_refused() {
    let uri = server::start().await;
    let client = Client::builder(uri).message_bytes_max(8).connect().await.unwrap();
    assert_eq!(client.generate(&ask("hello")).await.unwrap_err().code(), Some(Code::OutOfRange));
}

#[tokio::test]
async fn a_score_is_read() {
    let request = ScoreRequest {
        request_id: None,
        spec: PromptSpec::new(Prompt::Text("hello".to_owned())),
        continuation: Continuation::Text(" world".to_owned()),
        top: 1,
        priority: Priority::default(),
    };
    let score = client().await.score(&request).await.unwrap();
    assert_eq!((score.tokens.len(), score.total_logprob), (2, -1.0));
}

#[tokio::test]
async fn tokens_and_rendered_prompts_are_read() {
    let client = client().await;
    let text = |text: &str| TokenizeRequest { text: text.to_owned(), ..TokenizeRequest::default() };
    assert_eq!(client.tokenize(text("ab")).await.unwrap().token_ids, [97, 98]);
    assert!(matches!(client.tokenize(text("nonsense")).await, Err(ClientError::Response(_))));
    assert_eq!(client.detokenize(vec![97, 98], false).await.unwrap(), "ab false");
    let spec = PromptSpec { template: Some(Template::Paper), ..PromptSpec::new(Prompt::Text("hello".to_owned())) };
    let rendered = client.render_prompt(&spec, Some(" answer".to_owned())).await.unwrap();
    assert_eq!((rendered.template, rendered.text().as_str()), (Template::Paper, "Prompt: answer"));
    assert_eq!(rendered.tokens, [(9, false), (9, true)]);
}

#[tokio::test]
async fn the_facts_of_the_server_are_read() {
    assert_eq!(client().await.server_info().await.unwrap().version, "0.1.0");
}
