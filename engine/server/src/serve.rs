//! `serve`: load the model, listen, answer until a signal, drain, exit.

use std::{
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use bespoke_engine::{Embedder, Engine};
use bespoke_store::{Store, TerminalProgress};
use tokio::{net::TcpListener, signal::unix::SignalKind, sync::watch, task::JoinSet};
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    Config,
    app::{self, end_health, set_health},
    door::Door,
    http,
    listener::Listener,
    observation::Observation,
    services::{OpenCalls, Services},
    tls::Tls,
    tokens::Tokens,
    traces::Traces,
};

/// How often a draining server looks whether its requests have ended.
const DRAIN_LOOK: Duration = Duration::from_millis(20);
/// How often the server looks whether its engine has failed.
const FAILURE_LOOK: Duration = Duration::from_millis(500);
/// How long connections have to close after the last request; streams that never end by themselves, as those of health
/// watchers, are cut then.
const CLOSE_TIME: Duration = Duration::from_secs(1);

/// Serves until SIGTERM or SIGINT.
///
/// **Errors**: a model that cannot be had or loaded, an address that cannot be bound.
pub fn serve(config: Config) -> anyhow::Result<()> {
    tracing::info!(?config, "starting");
    let begun = Instant::now();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let served = runtime.block_on(async {
        // Signals are caught before the model loads, so that one at start ends the process cleanly too.
        let mut signals = Signals::new()?;
        // An address that is taken is told before a model is loaded; clients that come early wait to be accepted.
        let listener = Listener::bind(config.listen)?;
        let http = config.http.address.map(Listener::bind).transpose()?;
        let observation = Observation::start(&config)?;
        let loading = tokio::task::spawn_blocking({
            let config = config.clone();
            move || anyhow::Ok((load(&config)?, load_embedder(&config)?))
        });
        let (engine, embedder) = tokio::select! {
            loaded = loading => loaded??,
            () = signals.next() => return Ok(()),
        };
        let server = Server::observed(engine, config, listener, observation)?.with_embedder(embedder).with_http(http)?;
        let http_address = server.http_address().map(tracing::field::display);
        tracing::info!(address = %server.address(), http_address, startup_ms = begun.elapsed().as_millis() as u64, "ready");
        server
            .run(async move {
                signals.next().await;
                tokio::spawn(async move {
                    signals.next().await;
                    tracing::warn!("a second signal: exiting at once");
                    std::process::exit(1);
                });
            })
            .await
    });
    // A load that a signal has cut short is not waited for.
    runtime.shutdown_background();
    served
}

fn load(config: &Config) -> anyhow::Result<Engine> {
    let path = Store::open(None)?.pull(&config.model, &TerminalProgress::new())?;
    let mut builder = Engine::builder()
        .sequences_max(config.sequences_max)
        .queue_max(config.queue_max)
        .step_tokens_max(config.step_tokens_max)
        .quantization(config.quantization)
        .personas(config.personas.clone());
    if let Some(num_threads) = config.num_threads {
        builder = builder.num_threads(num_threads);
    }
    if let Some(kv_dtype) = config.kv_dtype {
        builder = builder.kv_dtype(kv_dtype);
    }
    if let Some(kv_tokens) = config.kv_tokens {
        builder = builder.kv_tokens(kv_tokens);
    }
    if let Some(context_tokens_max) = config.context_tokens_max {
        builder = builder.context_tokens_max(context_tokens_max);
    }
    if let Some(persona) = &config.system_persona {
        builder = builder.system_persona(persona.clone());
    }
    config.backend.build(builder, &path)
}

fn load_embedder(config: &Config) -> anyhow::Result<Option<Embedder>> {
    let Some(model) = &config.embedding_model else { return Ok(None) };
    let path = Store::open(None)?.pull(model, &TerminalProgress::new())?;
    let num_threads = config.num_threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, Into::into));
    let embedder = Embedder::load(&path, num_threads, config.queue_max);
    embedder.map(Some).with_context(|| format!("the embedding model {}", path.display()))
}

/// A bound server.
pub struct Server {
    engine: Engine,
    embedder: Option<Embedder>,
    config: Arc<Config>,
    listener: Listener,
    door: Arc<Door>,
    /// What follows files that may change; ends with the server.
    followers: JoinSet<()>,
    observation: Observation,
    address: SocketAddr,
    tls: Option<Tls>,
    http: Option<(Listener, SocketAddr)>,
}

impl Server {
    /// Takes a bound socket, reads the files of certificates and tokens, writes the port file and listens for those who
    /// observe. Works within a runtime.
    ///
    /// **Errors**: a file that is wrong or cannot be written, an address that cannot be listened on.
    pub fn new(engine: Engine, config: Config, socket: TcpListener) -> anyhow::Result<Self> {
        let observation = Observation::start(&config)?;
        Self::observed(engine, config, socket, observation)
    }

    fn observed(engine: Engine, config: Config, socket: TcpListener, observation: Observation) -> anyhow::Result<Self> {
        let address = socket.local_addr()?;
        let metrics = observation.metrics().clone();
        let mut followers = JoinSet::new();
        let interval = config.security.reload_interval;
        let tls = match &config.security.tls {
            None => None,
            Some(files) => {
                let (tls, watched) = Tls::load(files)?;
                followers.spawn(watched.follow(interval));
                Some(tls)
            }
        };
        let tokens = match &config.security.tokens {
            None => None,
            Some(path) => {
                let watched = Tokens::load(path)?;
                let tokens = watched.subscribe();
                followers.spawn(watched.follow(interval));
                Some(tokens)
            }
        };
        let listener = Listener::new(socket, config.limits.clone(), metrics.connections.clone()).with_tls(tls.clone());
        let audits = config.security.authenticates();
        let traces = config.observability.otlp_endpoint.as_deref().map(Traces::start).transpose()?;
        let door = Door { tokens, audits, message_timeout: config.limits.message_timeout, metrics, traces };
        let door = Arc::new(door);
        if let Some(file) = &config.port_file {
            write_atomically(file, &address.to_string())?;
        }
        let config = Arc::new(config);
        Ok(Self { engine, embedder: None, config, listener, door, followers, observation, address, tls, http: None })
    }

    /// Serves an encoder too.
    #[must_use]
    pub fn with_embedder(self, embedder: Option<Embedder>) -> Self {
        Self { embedder, ..self }
    }

    /// Answers HTTP on a bound socket too, and writes its port file.
    ///
    /// **Errors**: a file that cannot be written.
    pub fn with_http(self, socket: Option<TcpListener>) -> anyhow::Result<Self> {
        let Some(socket) = socket else { return Ok(self) };
        let address = socket.local_addr()?;
        if let Some(file) = &self.config.http.port_file {
            write_atomically(file, &address.to_string())?;
        }
        let counts = self.door.metrics.connections.clone();
        let listener = Listener::new(socket, self.config.limits.clone(), counts).with_tls(self.tls.clone());
        Ok(Self { http: Some((listener, address)), ..self })
    }

    /// Returns the bound HTTP address, if there is one.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http.as_ref().map(|(_, address)| *address)
    }

    /// Returns the bound address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the address of the page of metrics, if there is one.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.observation.address()
    }

    /// Answers until `stop` is ready, then drains: refuses new requests, lets those taken in end within the grace period,
    /// and ends what is left with UNAVAILABLE.
    ///
    /// **Errors**: an engine that fails.
    pub async fn run(self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let Self { engine, embedder, config, listener, door, followers: _followers, observation, http, .. } = self;
        let (health, health_service) = tonic_health::server::health_reporter();
        set_health(&health, ServingStatus::Serving, embedder.is_some()).await;
        observation.show(engine.clone(), &config);
        let services = Services::new(engine.clone(), embedder.clone(), config.clone());
        let calls = services.calls();
        let web = http::router(&services, &door);
        let app = door.guard(app::grpc(services, health_service)?);
        let (close, closing) = watch::channel(false);
        let serving = async {
            let web = async {
                if let Some((listener, _)) = http {
                    listener.serve(web, closed(closing.clone())).await;
                }
            };
            tokio::join!(listener.serve(app, closed(closing.clone())), web);
        };
        tokio::pin!(serving);
        tokio::select! {
            () = &mut serving => bail!("the listener ended"),
            () = failed(&engine) => {
                set_health(&health, ServingStatus::NotServing, embedder.is_some()).await;
                bail!("the engine has failed");
            }
            () = stop => {}
        }
        let deadline = Instant::now() + config.grace;
        observation.drain();
        tokio::select! {
            () = &mut serving => bail!("the listener ended"),
            () = drain((&engine, embedder.as_ref()), &calls, &health, deadline) => {}
        }
        let _ = close.send(true);
        end_health(&health).await;
        // What does not close in time is cut.
        let _ = tokio::time::timeout(CLOSE_TIME, serving).await;
        for file in [&config.port_file, &config.http.port_file].into_iter().flatten() {
            let _ = std::fs::remove_file(file);
        }
        tracing::info!("stopped");
        Ok(())
    }
}

/// Waits until the server closes.
async fn closed(mut closing: watch::Receiver<bool>) {
    let _ = closing.wait_for(|closed| *closed).await;
}

/// Waits until the engine's thread has ended after a defect.
async fn failed(engine: &Engine) {
    while !engine.has_failed() {
        tokio::time::sleep(FAILURE_LOOK).await;
    }
}

/// Refuses new requests and waits until those taken in have been sent to their ends, at most until the deadline.
async fn drain(
    (engine, embedder): (&Engine, Option<&Embedder>),
    calls: &OpenCalls,
    health: &HealthReporter,
    deadline: Instant,
) {
    tracing::info!(num_calls = calls.count(), load = ?engine.load(), "draining");
    set_health(health, ServingStatus::NotServing, embedder.is_some()).await;
    engine.close();
    if let Some(embedder) = embedder {
        embedder.close();
    }
    while (!engine.is_idle() || calls.count() > 0) && Instant::now() < deadline {
        tokio::time::sleep(DRAIN_LOOK).await;
    }
    if !engine.is_idle() || calls.count() > 0 {
        tracing::warn!(num_calls = calls.count(), load = ?engine.load(), "the grace period is over");
    }
    engine.stop();
    if let Some(embedder) = embedder {
        embedder.stop();
    }
}

/// SIGTERM and SIGINT; the second one ends the process at once.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: tokio::signal::unix::signal(SignalKind::terminate())?,
            interrupt: tokio::signal::unix::signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Writes a file so that a reader sees all of it or nothing.
fn write_atomically(file: &Path, text: &str) -> anyhow::Result<()> {
    let mut part = file.as_os_str().to_owned();
    part.push(".part");
    let part = Path::new(&part);
    std::fs::write(part, text).with_context(|| format!("cannot write {}", part.display()))?;
    std::fs::rename(part, file).with_context(|| format!("cannot write {}", file.display()))
}
