//! Right answers through the whole way: golden values, stream and unary alike, scores, tokens, prompts.

use bespoke_client::{
    Continuation, Event, Persona, PersonaSource, Prompt, PromptSpec, ScoreRequest, Template, TokenizeRequest,
};
use bespoke_testkit::shared_fixture;
use serde_json::Value;

use crate::support::{Running, answer, events, greedy, request};

fn read(path: &std::path::Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[tokio::test]
async fn golden_stories_come_over_grpc() {
    let Some(folder) = shared_fixture("stories260k") else {
        println!("skipped: shared/fixtures/stories260k is absent");
        return;
    };
    let golden = read(&folder.join("golden_greedy.json"));
    let want = ids(&golden["ids"]);
    let running = Running::on(&folder).await;
    let (text, token_ids) = answer(&events(&running.client, greedy("", want.len() as u32 - 1)).await);
    assert_eq!(token_ids, want[1..]);
    assert_eq!(text, golden["text"].as_str().unwrap());
}

#[tokio::test]
async fn scores_equal_pytorchs() {
    let Some(folder) = shared_fixture("lora-tiny") else {
        println!("skipped: shared/fixtures/lora-tiny is absent");
        return;
    };
    let expected = read(&folder.join("expected_f32.json"));
    let inputs = read(&folder.join("inputs.json"));
    let running = Running::on(&folder).await;
    for (sequence, base) in inputs["sequences"].as_array().unwrap().iter().zip(expected["base"].as_array().unwrap()) {
        let ids = ids(&sequence["input_ids"]);
        let score = ScoreRequest {
            request_id: None,
            spec: PromptSpec::new(Prompt::Tokens(ids[..1].to_vec())),
            continuation: Continuation::Tokens(ids[1..].to_vec()),
            top: 5,
            priority: Default::default(),
        };
        let score = running.client.score(&score).await.unwrap();
        for (token, want) in score.tokens.iter().zip(base["next_token_logprob"].as_array().unwrap()) {
            assert!((f64::from(token.logprob.unwrap()) - want.as_f64().unwrap()).abs() < 1e-4);
            assert_eq!(token.top.len(), 5);
        }
    }
}

#[tokio::test]
async fn streamed_equals_unary() {
    let running = Running::tiny(|_| {}).await;
    let mut generate = greedy("tell me", 40);
    generate.n = 3;
    generate.logprobs.sampled = true;
    generate.logprobs.prompt = true;
    generate.echo = true;
    let streamed = events(&running.client, generate.clone()).await;
    assert!(matches!(streamed[0], Event::Started(_)) && matches!(streamed.last(), Some(Event::Finished(_))));
    let unary = running.client.generate(&request(generate)).await.unwrap();
    assert_eq!((unary.choices[0].text.clone(), unary.choices[0].token_ids.clone()), answer(&streamed));
    assert!(unary.choices[0].text.starts_with("tell me"));
    assert_eq!(unary.choices.len(), 3);
    assert_eq!(unary.choices[0].logprobs.len(), 40);
    assert_eq!(unary.prompt_logprobs.len(), unary.started.prompt_tokens as usize);
}

#[tokio::test]
async fn tokens_and_prompts_are_shown_as_the_model_sees_them() {
    let running = Running::tiny(|_| {}).await;
    let client = &running.client;
    let text = "hello <|im_end|> wörld";
    let tokenize = |parse_control| TokenizeRequest { text: text.to_owned(), add_special: false, parse_control };
    let plain = client.tokenize(tokenize(false)).await.unwrap();
    let parsed = client.tokenize(tokenize(true)).await.unwrap();
    assert!(parsed.token_ids.len() < plain.token_ids.len());
    assert_eq!(plain.pieces.concat(), text.as_bytes());
    assert_eq!(client.detokenize(plain.token_ids, true).await.unwrap(), text);
    assert_eq!(client.detokenize(parsed.token_ids.clone(), false).await.unwrap(), text);
    assert_eq!(client.detokenize(parsed.token_ids, true).await.unwrap(), "hello  wörld");

    let mut spec = PromptSpec::new(Prompt::Text("Why?".to_owned()));
    spec.template = Some(Template::Paper);
    spec.persona = PersonaSource::Text(Persona::new("The user is terse.").unwrap());
    let rendered = client.render_prompt(&spec, None).await.unwrap();
    assert_eq!(rendered.text(), "Prompt: Why?\nPersona: The user is terse.\nResponse:");
    let row = client.render_prompt(&spec, Some("So.".to_owned())).await.unwrap();
    assert!(row.tokens.iter().any(|(_, trained)| *trained) && rendered.tokens.iter().all(|(_, trained)| !*trained));
    // The prompt of a training row begins with the tokens that are served.
    assert_eq!(row.tokens[..rendered.tokens.len()], rendered.tokens);
}

#[tokio::test]
async fn the_server_tells_about_itself() {
    let running = Running::tiny(|config| config.queue_max = 7).await;
    let info = running.client.server_info().await.unwrap();
    let (model, limits) = (info.model.unwrap(), info.limits.unwrap());
    assert_eq!((model.architecture.as_str(), model.has_chat_template), ("llama", true));
    assert!(!model.digest.is_empty() && model.num_parameters > 0 && model.context_length > 0);
    assert_eq!(limits.waiting_max, 7);
    assert!(limits.kv_tokens_max > 0 && !info.kernels.is_empty());
}

#[tokio::test]
async fn a_score_by_text_has_the_tokens_of_the_whole_text() {
    let Some(folder) = shared_fixture("stories260k") else {
        println!("skipped: shared/fixtures/stories260k is absent");
        return;
    };
    let running = Running::on(&folder).await;
    let spec = |text: &str| PromptSpec { template: Some(Template::None), ..PromptSpec::new(Prompt::Text(text.into())) };
    let whole = running.client.render_prompt(&spec("Once upon a time"), None).await.unwrap();
    for (prompt, continuation) in [("Once", " upon a time"), ("Once upon a", " time"), ("Once up", "on a time")] {
        let num_prompt = running.client.render_prompt(&spec(prompt), None).await.unwrap().tokens.len();
        let score = ScoreRequest {
            request_id: None,
            spec: spec(prompt),
            continuation: Continuation::Text(continuation.to_owned()),
            top: 0,
            priority: Default::default(),
        };
        let scored: Vec<_> =
            running.client.score(&score).await.unwrap().tokens.iter().map(|token| token.token).collect();
        let text = running.client.detokenize(scored.clone(), true).await.unwrap();
        assert_eq!(text.trim_start(), continuation.trim_start());
        if prompt != "Once up" {
            let want: Vec<_> = whole.tokens[num_prompt..].iter().map(|(id, _)| *id).collect();
            assert_eq!(scored, want, "{prompt:?} + {continuation:?}");
        } else {
            assert!(!running.client.detokenize(scored, true).await.unwrap().starts_with(' '));
        }
    }
}
