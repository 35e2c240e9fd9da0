//! What browsers need: gRPC-Web, leave for pages of other origins, and the playground.

use bespoke_proto::{GenerateResponse, GenerateStreamRequest, GenerateStreamResponse, generate_stream_response};
use bespoke_server::Config;
use hyper::Request;
use prost::Message;

use crate::{
    http_call::{get, send},
    support::{Running, answer, events, greedy, request},
};

fn over_http(config: &mut Config) {
    config.http.address = Some("127.0.0.1:0".parse().unwrap());
}

/// Calls a method over gRPC-Web and returns the messages and the trailers.
async fn call(running: &Running, method: &str, message: Vec<u8>) -> (Vec<Vec<u8>>, String) {
    let mut frame = vec![0];
    frame.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    frame.extend(message);
    let request = Request::builder().method("POST").uri(format!("/bespoke.v1.GenerationService/{method}"));
    let request = request.header("content-type", "application/grpc-web+proto").body(frame).unwrap();
    let response = send(running.http(), request).await;
    assert_eq!(
        (response.status, &response.headers["content-type"]),
        (200, &"application/grpc-web+proto".parse().unwrap())
    );
    let headers: String =
        response.headers.iter().map(|(name, value)| format!("{name}:{}\r\n", value.to_str().unwrap_or(""))).collect();
    let body = response.rest().await;
    let (mut rest, mut messages, mut trailers) = (body.as_slice(), Vec::new(), headers);
    while let [flag, a, b, c, d, after @ ..] = rest {
        let (data, after) = after.split_at(u32::from_be_bytes([*a, *b, *c, *d]) as usize);
        match flag {
            0 => messages.push(data.to_vec()),
            _ => trailers = String::from_utf8(data.to_vec()).unwrap(),
        }
        rest = after;
    }
    (messages, trailers)
}

#[tokio::test]
async fn grpc_web_answers_as_grpc_does() {
    let running = Running::tiny(over_http).await;
    let (want, _) = answer(&events(&running.client, greedy("hello", 20)).await);
    let wire = GenerateStreamRequest::from(&request(greedy("hello", 20))).encode_to_vec();
    let (messages, trailers) = call(&running, "GenerateStream", wire).await;
    let texts = messages.iter().map(|message| {
        let response = GenerateStreamResponse::decode(message.as_slice()).unwrap();
        match response.event {
            Some(generate_stream_response::Event::Delta(delta)) => delta.text,
            _ => String::new(),
        }
    });
    assert_eq!(texts.collect::<String>(), want);
    assert!(trailers.contains("grpc-status:0"), "{trailers}");

    let wire = bespoke_proto::GenerateRequest::from(&request(greedy("hello", 20))).encode_to_vec();
    let (messages, _) = call(&running, "Generate", wire).await;
    assert_eq!(GenerateResponse::decode(messages[0].as_slice()).unwrap().choices[0].text, want);
    let (messages, trailers) = call(&running, "Generate", Vec::new()).await;
    assert!(messages.is_empty() && trailers.contains("grpc-status:3"), "{trailers}");
}

async fn preflight(running: &Running, origin: &str) -> hyper::HeaderMap {
    let request = Request::builder()
        .method("OPTIONS")
        .uri("/v1/chat/completions")
        .header("origin", origin)
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "content-type,x-grpc-web");
    send(running.http(), request.body(Vec::new()).unwrap()).await.headers.clone()
}

#[tokio::test]
async fn only_listed_origins_may_call() {
    const ORIGIN: &str = "access-control-allow-origin";
    let running = Running::tiny(|config| {
        over_http(config);
        config.http.cors_origins = vec!["https://chat.example".parse().unwrap()];
    })
    .await;
    let listed = preflight(&running, "https://chat.example").await;
    assert_eq!(listed[ORIGIN], "https://chat.example");
    assert_eq!(listed["access-control-allow-headers"], "content-type,x-grpc-web");
    assert!(preflight(&running, "https://other.example").await.get(ORIGIN).is_none());
    let closed = Running::tiny(over_http).await;
    assert!(preflight(&closed, "https://chat.example").await.get(ORIGIN).is_none());
    let open = Running::tiny(|config| {
        over_http(config);
        config.http.cors_origins = vec!["*".parse().unwrap()];
    })
    .await;
    assert_eq!(preflight(&open, "https://chat.example").await[ORIGIN], "*");
}

/// The SHA-256 of `secret`.
const SECRET: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";

#[tokio::test]
async fn the_door_stands_before_http_too() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens.toml");
    std::fs::write(&tokens, format!("[tokens.alice]\nsha256 = \"{SECRET}\"\n")).unwrap();
    let configure = |config: &mut Config| {
        over_http(config);
        config.http.ui = true;
        config.security.tokens = Some(tokens);
    };
    let running = Running::guarded(configure, |builder| builder.token("secret").unwrap()).await;
    let models = |authorization: &str| {
        let request = Request::builder().uri("/v1/models").header("authorization", authorization);
        send(running.http(), request.body(Vec::new()).unwrap())
    };
    assert_eq!(models("Bearer secret").await.status, 200);
    let refused = models("Bearer wrong").await;
    assert_eq!((refused.status, &refused.headers["www-authenticate"]), (401, &"Bearer".parse().unwrap()));
    assert_eq!(refused.json().await["error"]["type"], "authentication_error");
    assert_eq!(get(running.http(), "/").await.status, 200, "the page holds no secret");
    let wire = bespoke_proto::GenerateRequest::from(&request(greedy("hello", 1))).encode_to_vec();
    let (messages, trailers) = call(&running, "Generate", wire).await;
    assert!(messages.is_empty() && trailers.contains("grpc-status:16"), "{trailers}");
}

#[tokio::test]
async fn the_playground_may_load_from_here_alone() {
    let running = Running::tiny(|config| {
        over_http(config);
        config.http.ui = true;
    })
    .await;
    let page = get(running.http(), "/").await;
    assert_eq!((page.status, &page.headers["content-type"]), (200, &"text/html; charset=utf-8".parse().unwrap()));
    let policy = page.headers["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.starts_with("default-src 'none'; script-src 'self'") && !policy.contains("unsafe"), "{policy}");
    assert_eq!(page.headers["x-content-type-options"], "nosniff");
    let script = get(running.http(), "/playground/app.js").await;
    assert_eq!(script.headers["content-type"], "text/javascript; charset=utf-8");
    assert!(!script.rest().await.is_empty());
}
