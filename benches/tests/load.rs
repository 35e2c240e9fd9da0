//! The load generator against servers in this process: ours over gRPC, and a scripted one that speaks as llama-server does.

#![expect(clippy::unwrap_used, reason = "a test that fails may panic")]

use bespoke_benches::{LoadOptions, Mode, OverloadOptions, Protocol, SoakOptions, overload, run, soak};
use bespoke_engine::Engine;
use bespoke_server::{Config, Server};
use bespoke_testkit::TinyModel;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// Starts our server on the tiny model; it runs until the test's runtime ends.
async fn ours(queue_max: usize) -> String {
    // Its words have several tokens: room for prompts of hundreds of characters.
    let folder = TinyModel { context_length: 1024, ..TinyModel::default() }.write_hf().unwrap();
    let engine = Engine::builder().model(folder.path()).num_threads(1).sequences_max(1).queue_max(queue_max);
    let listen = "127.0.0.1:0".parse().unwrap();
    let config = Config { listen, sequences_max: 1, queue_max, ..Config::default() };
    let listener = TcpListener::bind(config.listen).await.unwrap();
    let server = Server::new(engine.build().unwrap(), config, listener).unwrap();
    let address = format!("http://{}", server.address());
    tokio::spawn(server.run(std::future::pending()));
    address
}

fn options(target: String) -> LoadOptions {
    LoadOptions {
        target,
        clients: 3,
        requests: 7,
        prompt_tokens: 60,
        shared_tokens: 40,
        new_tokens: 5,
        ..LoadOptions::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_loop_finishes_every_request() {
    let report = run(&options(ours(64).await)).await.unwrap();
    assert_eq!((report.num_finished, report.output_tokens), (7, 35));
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    // Words of the tiny model have several tokens, so sizes are met only nearly.
    assert!((50.0..70.0).contains(&report.prompt_tokens_mean), "{}", report.prompt_tokens_mean);
    assert!(report.ttft_ms.p50 > 0.0 && report.ttft_ms.p99 >= report.ttft_ms.p50);
    assert!((0.0..1.0).contains(&report.cached_share));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_loop_counts_what_a_full_queue_refuses() {
    let target = ours(1).await;
    let options = LoadOptions { mode: Mode::Open, rate: Some(1e6), requests: 24, new_tokens: 64, ..options(target) };
    let report = run(&options).await.unwrap();
    assert!(report.num_finished >= 1 && report.errors["ResourceExhausted"] >= 1, "{report}");
    assert_eq!(report.num_finished + report.errors.values().sum::<usize>(), 24);
}

#[tokio::test]
async fn what_cannot_be_sent_is_said() {
    let nowhere = LoadOptions { target: "http://127.0.0.1:1".to_owned(), ..LoadOptions::default() };
    assert!(format!("{:#}", run(&nowhere).await.unwrap_err()).contains("127.0.0.1:1"));
    let openai = LoadOptions { protocol: Protocol::Openai, ..nowhere };
    assert!(format!("{:#}", run(&openai).await.unwrap_err()).contains("127.0.0.1:1"));
    let longer = LoadOptions { shared_tokens: 201, ..LoadOptions::default() };
    assert!(run(&longer).await.unwrap_err().to_string().contains("share"));
}

#[tokio::test]
async fn an_openai_server_is_driven_alike() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(answer(stream));
        }
    });
    let report = run(&LoadOptions { protocol: Protocol::Openai, ..options(target) }).await.unwrap();
    assert_eq!((report.num_finished, report.output_tokens), (7, 21));
    assert_eq!((report.prompt_tokens_mean, report.cached_share), (60.0, 0.5));
}

/// Answers one request: a token for each byte, three tokens of answer, half of the prompt from the cache.
async fn answer(mut stream: TcpStream) {
    let request = read_request(&mut stream).await;
    let path = request.split(' ').nth(1).unwrap();
    let body = request.split_once("\r\n\r\n").unwrap().1;
    let (kind, answer) = match path {
        "/v1/models" => ("application/json", r#"{"data":[{"id":"scripted"}]}"#.to_owned()),
        "/tokenize" => {
            let start = body.find("\"content\":\"").unwrap() + "\"content\":\"".len();
            let num_words = body[start..].split('"').next().unwrap().split_whitespace().count();
            ("application/json", format!("{{\"tokens\":{:?}}}", vec![1; num_words]))
        }
        "/v1/completions" => {
            assert!(body.contains("\"model\":\"scripted\"") && body.contains("\"stream\":true"), "{body}");
            let text = "data: {\"choices\":[{\"text\":\"x\"}]}\n\n".repeat(3);
            let usage =
                "{\"completion_tokens\":3,\"prompt_tokens\":60,\"prompt_tokens_details\":{\"cached_tokens\":30}}";
            let end = format!("data: {{\"choices\":[{{\"text\":\"\"}}],\"usage\":{usage}}}\n\ndata: [DONE]\n\n");
            ("text/event-stream", text + &end)
        }
        _ => panic!("{path}"),
    };
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n", answer.len());
    stream.write_all((head + &answer).as_bytes()).await.unwrap();
}

async fn read_request(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    loop {
        stream.read_buf(&mut bytes).await.unwrap();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let header =
            head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ").map(str::to_owned));
        if body.len() >= header.map_or(0, |length| length.parse().unwrap()) {
            return text;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_soak_leaves_nothing_behind() {
    let options = SoakOptions {
        target: ours(64).await,
        pid: Some(std::process::id()),
        clients: 4,
        seconds: 3,
        warmup_seconds: 0,
        prompt_words_max: 9,
        seed: 1,
    };
    let report = soak(&options).await.unwrap();
    assert!(report.num_finished > 0 && report.num_cancelled > 0 && report.left == 0, "{report:?}");
    assert!(report.failures.is_empty(), "{:?}", report.failures);
    assert!(report.rss_end_bytes > Some(1 << 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_capacity_the_rest_is_refused_at_once() {
    let target = ours(2).await;
    let options = OverloadOptions { target, capacity_seconds: 1, seconds: 1, factor: 4.0, new_tokens: 30, seed: 1 };
    let report = overload(&options).await.unwrap();
    assert!(report.capacity.num_finished > 0 && report.overload.num_finished > 0, "{report:?}");
    assert!(report.capacity.failures.is_empty() && report.overload.failures.is_empty(), "{report:?}");
    assert!(report.overload.num_refused > 0, "{report:?}");
    assert_eq!(report.overload.num_refused_with_retry, report.overload.num_refused);
}
