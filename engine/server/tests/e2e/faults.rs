//! Faults: what breaks, and that the rest goes on.

use std::{
    fs::OpenOptions,
    process::Stdio,
    time::{Duration, Instant},
};

use bespoke_client::{Client, Code, Event};
use bespoke_testkit::TinyModel;
use futures::StreamExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{Process, Running, greedy, request};

/// HTTP/2's preface.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// An empty SETTINGS frame.
const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];

async fn raw(running: &Running, bytes: &[u8]) -> TcpStream {
    let address = running.address.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

/// Waits until the server closes a connection; returns what it said before.
async fn closed(mut stream: TcpStream) -> Vec<u8> {
    let mut said = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut said)).await;
    // A connection that is reset is closed too.
    let _ = read.expect("the server does not close the connection");
    said
}

async fn serves(running: &Running) {
    let fresh = tokio::time::timeout(Duration::from_secs(5), Client::connect(&running.address)).await;
    let fresh = fresh.expect("the server takes connections").unwrap();
    assert!(fresh.generate(&request(greedy("alive", 2))).await.is_ok());
}

#[tokio::test]
async fn a_killed_server_is_noticed_and_its_successor_serves() {
    let model = TinyModel::default().write_hf().unwrap();
    let mut process = Process::serve(model.path(), &[]);
    let client = Client::connect(&process.address).await.unwrap();
    let mut generate = greedy("until it dies", 200);
    generate.n = 16;
    let mut stream = client.generate_stream(&request(generate)).await.unwrap();
    assert!(matches!(stream.next().await, Some(Ok(Event::Started(_)))));
    process.child.kill().unwrap();
    process.child.wait().unwrap();
    let rest: Vec<_> = stream.collect().await;
    assert!(matches!(rest.last(), Some(Err(_))), "a stream that was cut does not end as if it were whole");
    let address = process.address.strip_prefix("http://").unwrap().to_owned();
    let again = Process::serve(model.path(), &["--listen", &address]);
    assert_eq!(again.address, process.address);
    assert!(client.generate(&request(greedy("again", 2))).await.is_ok(), "the same client reaches the new server");
}

#[tokio::test]
async fn sigterm_under_load_loses_no_accepted_request() {
    let model = TinyModel::default().write_hf().unwrap();
    let mut process = Process::serve(model.path(), &["--sequences-max", "2", "--grace-s", "30"]);
    let client = Client::connect(&process.address).await.unwrap();
    let generate = request(greedy("accepted", 100));
    let accepted = futures::future::join_all((0..24).map(|_| client.generate_stream(&generate))).await;
    process.signal("TERM");
    for stream in accepted {
        let events: Vec<_> = stream.unwrap().collect().await;
        assert!(matches!(events.last(), Some(Ok(Event::Finished(_)))), "{:?}", events.last());
        assert_eq!(events.len(), 102);
    }
    drop(client);
    let status = tokio::task::spawn_blocking(move || process.child.wait().unwrap()).await.unwrap();
    assert_eq!(status.code(), Some(0));
}

#[tokio::test]
async fn a_thousand_connections_come_and_go() {
    let running = Running::tiny(|config| config.limits.connections_max = 64).await;
    for round in 0..1000 {
        let begun: &[u8] = [&[], PREFACE, &PREFACE[..7], b"GET / HTTP/1.1\r\n", &[0; 40]][round % 5];
        // The server may close it before all is written.
        let address = running.address.strip_prefix("http://").unwrap();
        let mut stream = TcpStream::connect(address).await.unwrap();
        let _ = stream.write_all(begun).await;
    }
    serves(&running).await;
    running.idle().await;
}

#[tokio::test]
async fn slow_beginners_hold_no_place() {
    let running = Running::tiny(|config| {
        config.limits.connections_max = 6;
        config.limits.handshake_timeout = Duration::from_millis(300);
        config.limits.keepalive_interval = Duration::from_millis(200);
        config.limits.keepalive_timeout = Duration::from_millis(200);
    })
    .await;
    // The client of `running` has the sixth place. A HEADERS frame of 100 bytes never comes to its end.
    let dribbled = [PREFACE, &SETTINGS, &[0, 0, 100, 1, 4, 0, 0, 0, 1], &[0x82, 0x86]].concat();
    let slow = [
        raw(&running, b"").await,
        raw(&running, &PREFACE[..12]).await,
        raw(&running, &dribbled).await,
        raw(&running, b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ").await,
        raw(&running, PREFACE).await,
    ];
    assert!(running.client.generate(&request(greedy("meanwhile", 2))).await.is_ok());
    let seventh = TcpStream::connect(running.address.strip_prefix("http://").unwrap()).await.unwrap();
    assert!(closed(seventh).await.is_empty(), "there are no more than six places");
    for stream in slow {
        closed(stream).await;
    }
    serves(&running).await;
}

#[tokio::test]
async fn a_message_that_does_not_come_is_not_waited_for() {
    let running = Running::tiny(|config| config.limits.message_timeout = Duration::from_millis(200)).await;
    let channel = tonic::transport::Channel::from_shared(running.address.clone()).unwrap().connect().await.unwrap();
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.unwrap();
    let path = tonic::codegen::http::uri::PathAndQuery::from_static("/bespoke.v1.GenerationService/Generate");
    let codec = tonic_prost::ProstCodec::<bespoke_proto::GenerateRequest, bespoke_proto::GenerateResponse>::default();
    let never = futures::stream::pending::<bespoke_proto::GenerateRequest>();
    let called = grpc.client_streaming(tonic::Request::new(never), path, codec);
    let status = tokio::time::timeout(Duration::from_secs(5), called).await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
}

#[tokio::test]
async fn frames_that_are_too_large_or_make_no_sense_end_their_connection_only() {
    let running = Running::tiny(|_| {}).await;
    let frames: [&[u8]; 5] = [
        // A DATA frame of 16 MiB, one on a stream that was never opened, a SETTINGS frame of a wrong size, a HEADERS frame
        // on stream 0, one whose header block makes no sense.
        &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1],
        &[0, 0, 1, 0, 0, 0, 0, 0, 7, 0],
        &[0, 0, 5, 4, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5],
        &[0, 0, 1, 1, 4, 0, 0, 0, 0, 0x82],
        &[0, 0, 4, 1, 5, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff],
    ];
    for frame in frames {
        let stream = raw(&running, &[PREFACE, &SETTINGS, frame].concat()).await;
        let said = closed(stream).await;
        assert!(!said.is_empty(), "the server says why before it closes");
        assert!(running.client.generate(&request(greedy("others", 2))).await.is_ok());
    }
    let mut large = tonic::Request::new(bespoke_proto::GetServerInfoRequest {});
    large.metadata_mut().insert("x-large", "x".repeat(40_000).parse().unwrap());
    let channel = tonic::transport::Channel::from_shared(running.address.clone()).unwrap().connect().await.unwrap();
    let mut service = bespoke_proto::model_service_client::ModelServiceClient::new(channel);
    assert!(service.get_server_info(large).await.is_err(), "headers are limited");
    serves(&running).await;
}

#[tokio::test]
async fn a_connection_at_its_age_takes_no_more_requests_and_loses_none() {
    let running = Running::slow(|config| config.limits.connection_age = Some(Duration::from_millis(100))).await;
    let begun = Instant::now();
    let stream = running.client.generate_stream(&request(greedy("long", 150))).await.unwrap();
    let events: Vec<_> = stream.collect().await;
    assert!(matches!(events.last(), Some(Ok(Event::Finished(_)))), "{:?}", events.last());
    assert!(begun.elapsed() > Duration::from_millis(120), "the test was too fast to see anything");
    // The client connects anew by itself.
    for _ in 0..5 {
        assert!(running.client.server_info().await.is_ok());
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
}

#[tokio::test]
async fn a_full_disk_for_the_log_stops_nothing() {
    let model = TinyModel::default().write_hf().unwrap();
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let process = Process::serve_logging(model.path(), &["--log-filter", "debug"], Stdio::from(full));
    let client = Client::connect(&process.address).await.unwrap();
    for _ in 0..5 {
        assert_eq!(client.generate(&request(greedy("on", 4))).await.unwrap().choices[0].token_ids.len(), 4);
    }
}

#[tokio::test]
async fn a_log_that_nobody_reads_stops_nothing() {
    let model = TinyModel::default().write_hf().unwrap();
    let (unread, pipe) = std::io::pipe().unwrap();
    let process = Process::serve_logging(model.path(), &["--log-filter", "trace"], Stdio::from(pipe));
    let client = Client::connect(&process.address).await.unwrap();
    // Each request logs some kilobytes at this level, and a pipe holds 64.
    for _ in 0..60 {
        assert!(client.generate(&request(greedy("on", 4))).await.is_ok());
    }
    drop(unread);
}

#[tokio::test]
async fn a_client_that_goes_leaves_nothing_at_any_stage() {
    let running = Running::slow(|config| config.sequences_max = 1).await;
    let decoding = running.client.generate_stream(&request(greedy("decode", 200))).await.unwrap();
    running.runs(1).await;
    // In the queue.
    let waiting = running.client.generate_stream(&request(greedy("queue", 200))).await.unwrap();
    let load = running.client.server_info().await.unwrap().load.unwrap();
    assert_eq!((load.num_running, load.num_waiting), (1, 1));
    drop(waiting);
    let deadline = Instant::now() + Duration::from_secs(5);
    while running.client.server_info().await.unwrap().load.unwrap().num_waiting > 0 {
        assert!(Instant::now() < deadline, "a request whose client has gone still waits");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    // While it decodes.
    drop(decoding);
    running.idle().await;
    // While its prompt is computed, which takes some steps.
    let prefilling = running.client.generate_stream(&request(greedy(&"long prompt ".repeat(25), 5))).await.unwrap();
    running.runs(1).await;
    drop(prefilling);
    running.idle().await;
    serves(&running).await;
}
