//! What the server costs beside its engine: 16 streams in process and over gRPC on the same engine, in turn.
//!
//! `BESPOKE_BENCH_MODEL=path cargo bench -p bespoke-server --bench overhead` prints both in tokens a second, medians of 5 rounds,
//! and the share that gRPC costs; the client and its decoding are in this process too. Without the variable a tiny model is
//! used, whose steps are so short that the share says nothing about real ones. Threads: `BESPOKE_BENCH_THREADS`, 2 by default.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use anyhow::Context;
use bespoke_client::Client;
use bespoke_domain::{Event, Generate, Prompt, PromptSpec, Request, Sampling, Template};
use bespoke_engine::Engine;
use bespoke_server::{Config, Server};
use bespoke_testkit::TinyModel;
use futures::{StreamExt, future::try_join_all};
use tokio::net::TcpListener;

const STREAMS: usize = 16;

/// How much is measured.
struct Size {
    rounds: usize,
    tokens: u32,
}

fn main() -> anyhow::Result<()> {
    // Cargo says `--bench` to what it measures; the tests run each bench once.
    let measured = std::env::args().any(|argument| argument == "--bench");
    let size = if measured { Size { rounds: 5, tokens: 128 } } else { Size { rounds: 1, tokens: 4 } };
    let tiny = TinyModel::default().write_hf()?;
    let path = std::env::var_os("BESPOKE_BENCH_MODEL").map_or_else(|| tiny.path().to_owned(), Into::into);
    let num_threads = std::env::var("BESPOKE_BENCH_THREADS").ok().and_then(|n| n.parse().ok()).unwrap_or(2);
    let engine = Engine::builder().model(path).num_threads(num_threads).sequences_max(STREAMS).build()?;
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(compare(engine, &size))
}

async fn compare(engine: Engine, size: &Size) -> anyhow::Result<()> {
    let config = Config { listen: "127.0.0.1:0".parse()?, ..Config::default() };
    let socket = TcpListener::bind(config.listen).await?;
    let server = Server::new(engine.clone(), config, socket)?;
    let client = Client::connect(format!("http://{}", server.address())).await?;
    tokio::spawn(server.run(std::future::pending()));
    let (mut within, mut over) = (Vec::new(), Vec::new());
    // The first round warms up.
    for round in 0..=size.rounds {
        let requests: Vec<_> = (0..STREAMS).map(|stream| request(stream, size.tokens)).collect::<Result<_, _>>()?;
        let begun = Instant::now();
        let counts = requests.iter().map(|request| in_process(&engine, request.clone()));
        let first = rate(try_join_all(counts).await?, begun.elapsed());
        let begun = Instant::now();
        let second = rate(try_join_all(requests.iter().map(|request| grpc(&client, request))).await?, begun.elapsed());
        if round > 0 {
            within.push(first);
            over.push(second);
        }
    }
    let (within, over) = (median(within), median(over));
    let cost = (1.0 - over / within) * 100.0;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{STREAMS} streams: {within:.1} tokens/s in process, {over:.1} over gRPC: {cost:.1} % less")?;
    Ok(())
}

fn request(stream: usize, tokens: u32) -> anyhow::Result<Request> {
    let prompt = Prompt::Text(format!("Story {stream}: once upon a time"));
    let mut generate = Generate::new(PromptSpec { template: Some(Template::None), ..PromptSpec::new(prompt) });
    generate.sampling = Sampling::greedy();
    generate.max_new_tokens = tokens;
    generate.stop.ignore_end = true;
    Request::try_from(generate).context("a request that is right")
}

async fn in_process(engine: &Engine, request: Request) -> anyhow::Result<usize> {
    let mut events = engine.generate(request)?;
    let mut num_tokens = 0;
    while let Some(event) = events.next().await {
        if let Event::Delta(delta) = event? {
            num_tokens += delta.token_ids.len();
        }
    }
    Ok(num_tokens)
}

async fn grpc(client: &Client, request: &Request) -> anyhow::Result<usize> {
    let mut events = client.generate_stream(request).await?;
    let mut num_tokens = 0;
    while let Some(event) = events.next().await {
        if let bespoke_client::Event::Delta(delta) = event? {
            num_tokens += delta.token_ids.len();
        }
    }
    Ok(num_tokens)
}

fn rate(counts: Vec<usize>, time: Duration) -> f64 {
    counts.into_iter().sum::<usize>() as f64 / time.as_secs_f64()
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}
