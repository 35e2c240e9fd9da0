//! OpenAI's API over HTTP: the same answers as over gRPC, refusals in OpenAI's form, clients that go away.

use std::time::{Duration, Instant};

use bespoke_client::{Persona, PersonaId, PersonaSource, Template};
use bespoke_server::Config;
use serde_json::{Value, json};

use crate::{
    http_call::{Open, get, post, send},
    support::{Running, answer, events, greedy},
};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn over_http(config: &mut Config) {
    config.http.address = Some("127.0.0.1:0".parse().unwrap());
    let novice = (PersonaId::new("novice").unwrap(), Persona::new("The user is new.").unwrap());
    config.personas = [novice].into();
}

fn chunks(events: &[String]) -> Vec<Value> {
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
    events[..events.len() - 1].iter().map(|data| serde_json::from_str(data).unwrap()).collect()
}

#[tokio::test]
async fn a_chat_is_answered_as_over_grpc() {
    let running = Running::tiny(over_http).await;
    let mut generate = greedy("Why?", 30);
    generate.spec.template = Some(Template::Chat);
    generate.spec.persona = PersonaSource::Id(PersonaId::new("novice").unwrap());
    let (want, _) = answer(&events(&running.client, generate).await);
    let mut body = json!({
        "model": running.client.server_info().await.unwrap().model.unwrap().name,
        "messages": [{"role": "user", "content": "Why?"}],
        "persona": {"id": "novice"},
        "temperature": 0,
        "max_completion_tokens": 30,
        "ignore_eos": true,
    });
    let whole = post(running.http(), CHAT, &body).await;
    assert_eq!(whole.status, 200);
    let whole = whole.json().await;
    assert_eq!(whole["choices"][0]["message"]["content"], want);
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
    assert_eq!(whole["usage"]["completion_tokens"], 30);

    body["stream"] = true.into();
    body["stream_options"] = json!({"include_usage": true});
    let stream = post(running.http(), CHAT, &body).await;
    assert_eq!(stream.headers["content-type"], "text/event-stream");
    let chunks = chunks(&stream.events().await);
    let text = |chunk: &Value| chunk["choices"][0]["delta"]["content"].as_str().unwrap_or("").to_owned();
    assert_eq!(chunks.iter().map(text).collect::<String>(), want);
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(chunks.last().unwrap()["usage"]["prompt_tokens"], whole["usage"]["prompt_tokens"]);
}

#[tokio::test]
async fn a_client_that_cannot_be_told_a_name_is_served_under_its_own() {
    let running = Running::tiny(|config| {
        over_http(config);
        config.model_name = Some("gpt-4o-mini".to_owned());
    })
    .await;
    let models = get(running.http(), "/v1/models").await.json().await;
    assert_eq!(models["data"][0]["id"], "gpt-4o-mini");
    let own = running.client.server_info().await.unwrap().model.unwrap().name;
    for (status, name) in [(200, "gpt-4o-mini"), (200, &own), (404, "gpt-x")] {
        let body = json!({"model": name, "messages": [{"role": "user", "content": "a"}], "max_tokens": 1});
        let answer = post(running.http(), CHAT, &body).await;
        assert_eq!(answer.status, status, "{name}");
        if status == 200 {
            assert_eq!(answer.json().await["model"], "gpt-4o-mini");
        }
    }
}

#[tokio::test]
async fn a_completion_is_answered_as_over_grpc() {
    let running = Running::tiny(over_http).await;
    let (want, tokens) = answer(&events(&running.client, greedy("tell me", 20)).await);
    let body = json!({"prompt": "tell me", "temperature": 0, "max_tokens": 20, "ignore_eos": true, "n": 2,
        "logprobs": 3, "echo": true});
    let whole = post(running.http(), COMPLETIONS, &body).await.json().await;
    for index in [0, 1] {
        let choice = &whole["choices"][index];
        assert_eq!(choice["text"], format!("tell me{want}"));
        let logprobs = &choice["logprobs"];
        let num_prompt = whole["usage"]["prompt_tokens"].as_u64().unwrap() as usize;
        assert_eq!(logprobs["tokens"].as_array().unwrap().len(), num_prompt + tokens.len());
        assert!(logprobs["token_logprobs"][0].is_null() && logprobs["token_logprobs"][1].is_f64());
    }
    let seeded = json!({"prompt": "tell me", "max_tokens": 20, "seed": 7, "ignore_eos": true});
    let first = post(running.http(), COMPLETIONS, &seeded).await.json().await;
    let again = post(running.http(), COMPLETIONS, &seeded).await.json().await;
    assert_eq!(first["choices"][0]["text"], again["choices"][0]["text"]);
    assert_eq!(first["bespoke"]["seed"], "7");
}

#[tokio::test]
async fn a_stop_string_ends_an_answer() {
    let running = Running::tiny(over_http).await;
    let mut body = json!({"prompt": "tell me", "temperature": 0, "max_tokens": 40, "ignore_eos": true});
    let whole = post(running.http(), COMPLETIONS, &body).await.json().await;
    let text = whole["choices"][0]["text"].as_str().unwrap().to_owned();
    let stop: String = text.chars().skip(text.chars().count() / 2).take(3).collect();
    body["stop"] = json!([stop]);
    body["stream"] = true.into();
    let chunks = chunks(&post(running.http(), COMPLETIONS, &body).await.events().await);
    let streamed: String = chunks.iter().map(|chunk| chunk["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(streamed, text[..text.find(&stop).unwrap()]);
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn refusals_name_the_field() {
    let running = Running::tiny(over_http).await;
    let chat = |extra: Value| {
        let mut body = json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 1});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    };
    let bad = [
        (400, "temperature", json!({"temperature": -1})),
        (400, "tools", json!({"tools": [{"type": "function"}]})),
        (400, "n", json!({"n": 99})),
        (400, "stop[0]", json!({"stop": [""]})),
        (400, "max_tokens", json!({"max_tokens": 0})),
        (400, "persona", json!({"persona": " "})),
        (400, "logit_bias[99999999]", json!({"logit_bias": {"99999999": 1}})),
        (400, "temprature", json!({"temprature": 1})),
        (404, "model", json!({"model": "gpt-x"})),
        (404, "persona", json!({"persona": {"id": "absent"}})),
        (404, "persona", json!({"persona": {"system": true}})),
    ];
    for (status, param, extra) in bad {
        let response = post(running.http(), CHAT, &chat(extra)).await;
        assert_eq!(response.status, status, "{param}");
        let body = response.json().await;
        assert_eq!(body["error"]["param"], param, "{body}");
        assert_eq!(body["error"]["type"], "invalid_request_error");
    }
    let long = json!({"prompt": "long ".repeat(400)});
    let body = post(running.http(), COMPLETIONS, &long).await.json().await;
    assert_eq!(
        (&body["error"]["param"], &body["error"]["code"]),
        (&json!("prompt"), &json!("context_length_exceeded"))
    );
}

#[tokio::test]
async fn what_is_no_request_is_refused() {
    let running = Running::tiny(|config| {
        over_http(config);
        config.message_bytes_max = 2000;
    })
    .await;
    let send = async |method: &str, path: &str, kind: &str, body: &str| {
        let request = hyper::Request::builder().method(method).uri(path).header("content-type", kind);
        let response = send(running.http(), request.body(body.as_bytes().to_vec()).unwrap()).await;
        let status = response.status;
        (status, response.json().await["error"]["message"].as_str().unwrap().to_owned())
    };
    const JSON: &str = "application/json; charset=utf-8";
    assert_eq!(send("POST", CHAT, JSON, "{").await.0, 400);
    assert_eq!(send("POST", CHAT, JSON, &"[".repeat(1000)).await.0, 400);
    assert_eq!(send("POST", CHAT, "text/plain", "{}").await.0, 415);
    assert_eq!(send("POST", CHAT, JSON, &" ".repeat(2001)).await.0, 413);
    assert_eq!(send("GET", CHAT, JSON, "").await.0, 405);
    assert_eq!(send("GET", "/v1/files", JSON, "").await.0, 404);
    assert_eq!(send("GET", "/", JSON, "").await.0, 404);
}

#[tokio::test]
async fn models_are_listed() {
    let running = Running::tiny(over_http).await;
    let list = get(running.http(), "/v1/models").await.json().await;
    let id = list["data"][0]["id"].as_str().unwrap();
    assert_eq!(list["data"][0]["bespoke"]["persona_ids"], json!(["novice"]));
    assert_eq!(get(running.http(), &format!("/v1/models/{id}")).await.json().await["id"], id);
    assert_eq!(get(running.http(), "/v1/models/gpt-x").await.status, 404);
}

/// Starts an answer that takes long.
async fn long(running: &Running, is_stream: bool) -> Open {
    let body = json!({"prompt": "gone", "max_tokens": 100, "ignore_eos": true, "n": 16, "stream": is_stream});
    post(running.http(), COMPLETIONS, &body).await
}

#[tokio::test]
async fn a_client_that_goes_away_frees_its_blocks() {
    let running = Running::slow(over_http).await;
    let mut stream = long(&running, true).await;
    stream.piece().await.unwrap();
    drop(stream);
    running.idle().await;
    // One who waits for the whole answer goes away before there is a response.
    let waits = tokio::time::timeout(Duration::from_millis(300), long(&running, false)).await;
    assert!(waits.is_err());
    let begun = Instant::now();
    running.idle().await;
    // The answer itself would take several times as long.
    assert!(begun.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn overload_and_drain_say_when_to_try_again() {
    let mut running = Running::slow(|config| {
        over_http(config);
        config.sequences_max = 16;
        config.queue_max = 1;
        config.grace = Duration::from_secs(20);
    })
    .await;
    let mut held = long(&running, true).await;
    held.piece().await.unwrap();
    // One waits, and the next is refused; on a loaded machine the first may be over by then, and the one that waited runs.
    let mut waits = Vec::new();
    let full = loop {
        let next = long(&running, true).await;
        if next.status != 200 {
            break next;
        }
        waits.push(next);
        assert!(waits.len() < 20, "the queue is never full");
    };
    assert_eq!((full.status, full.headers["retry-after"].to_str().unwrap()), (429, "1"));
    assert_eq!(full.json().await["error"]["code"], "queue_full");
    let http = running.http().to_owned();
    let drained = running.drain();
    let stopping = loop {
        let response = post(&http, COMPLETIONS, &json!({"prompt": "a", "max_tokens": 1})).await;
        if response.status != 429 {
            break response;
        }
    };
    drop(waits);
    assert_eq!((stopping.status, stopping.headers["retry-after"].to_str().unwrap()), (503, "1"));
    let rest = held.events().await;
    assert_eq!(rest.last().map(String::as_str), Some("[DONE]"), "what was taken in ends well");
    tokio::time::timeout(Duration::from_secs(20), drained).await.unwrap().unwrap();
}
