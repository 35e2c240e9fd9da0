//! `serve`: load the model, listen, answer until a signal, drain, exit.

use std::{
    future::Future,
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use bespoke_engine::Engine;
use bespoke_proto::{
    FILE_DESCRIPTOR_SET, generation_service_server::GenerationServiceServer, model_service_server::ModelServiceServer,
    tokenizer_service_server::TokenizerServiceServer,
};
use bespoke_store::{Store, TerminalProgress};
use tokio::{net::TcpListener, signal::unix::SignalKind};
use tonic::transport::server::TcpIncoming;
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    Config,
    services::{OpenCalls, Services},
};

/// How often a draining server looks whether its requests have ended.
const DRAIN_LOOK: Duration = Duration::from_millis(20);
/// How often the server looks whether its engine has failed.
const FAILURE_LOOK: Duration = Duration::from_millis(500);
/// How long connections have to close after the last request; streams that never end by themselves, as those of health
/// watchers, are cut then.
const CLOSE_TIME: Duration = Duration::from_secs(1);
/// How often a connection without traffic is probed, so that clients that vanished free their requests.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// Streams that one connection may have open: enough for any client, too few to flood the queue's owner.
const STREAMS_MAX: u32 = 1024;

/// The services that have a health status of their own beside that of the whole server, which is "".
const SERVICES: [&str; 4] =
    ["", "bespoke.v1.GenerationService", "bespoke.v1.TokenizerService", "bespoke.v1.ModelService"];

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
        let listener = TcpListener::bind(config.listen).await;
        let listener = listener.with_context(|| format!("cannot listen on {}", config.listen))?;
        let loading = tokio::task::spawn_blocking({
            let config = config.clone();
            move || load(&config)
        });
        let engine = tokio::select! {
            engine = loading => engine??,
            () = signals.next() => return Ok(()),
        };
        let server = Server::new(engine, config, listener)?;
        tracing::info!(address = %server.address(), startup_ms = begun.elapsed().as_millis() as u64, "ready");
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
        .model(path)
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
    Ok(builder.build()?)
}

/// A bound server.
pub struct Server {
    engine: Engine,
    config: Arc<Config>,
    listener: TcpListener,
    address: SocketAddr,
}

impl Server {
    /// Takes a bound listener and writes the port file.
    ///
    /// **Errors**: a file that cannot be written.
    pub fn new(engine: Engine, config: Config, listener: TcpListener) -> anyhow::Result<Self> {
        let address = listener.local_addr()?;
        if let Some(file) = &config.port_file {
            write_atomically(file, &address.to_string())?;
        }
        Ok(Self { engine, config: Arc::new(config), listener, address })
    }

    /// Returns the bound address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `stop` is ready, then drains: refuses new requests, lets those taken in end within the grace period,
    /// and ends what is left with UNAVAILABLE.
    ///
    /// **Errors**: a transport that fails.
    pub async fn run(self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let Self { engine, config, listener, .. } = self;
        let (health, health_service) = tonic_health::server::health_reporter();
        set_health(&health, ServingStatus::Serving).await;
        let services = Services::new(engine.clone(), config.clone());
        let bytes_max = config.message_bytes_max;
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let (close, closing) = tokio::sync::oneshot::channel::<()>();
        let calls = services.calls();
        let router = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE))
            .max_concurrent_streams(STREAMS_MAX)
            // A client may cancel all it has at once; the default of 20 would end its connection.
            .http2_max_pending_accept_reset_streams(Some(STREAMS_MAX as usize))
            .http2_max_local_error_reset_streams(Some(STREAMS_MAX as usize))
            .add_service(GenerationServiceServer::new(services.clone()).max_decoding_message_size(bytes_max))
            .add_service(TokenizerServiceServer::new(services.clone()).max_decoding_message_size(bytes_max))
            .add_service(ModelServiceServer::new(services))
            .add_service(health_service)
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?);
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let serving = router.serve_with_incoming_shutdown(incoming, async {
            let _ = closing.await;
        });
        tokio::pin!(serving);
        tokio::select! {
            ended = &mut serving => return ended.context("the transport ended"),
            () = failed(&engine) => {
                set_health(&health, ServingStatus::NotServing).await;
                bail!("the engine has failed");
            }
            () = stop => {}
        }
        let deadline = Instant::now() + config.grace;
        tokio::select! {
            ended = &mut serving => return ended.context("the transport ended"),
            () = drain(&engine, &calls, &health, deadline) => {}
        }
        let _ = close.send(());
        for service in SERVICES {
            health.clone().clear_service_status(service).await;
        }
        // What does not close in time is cut.
        let _ = tokio::time::timeout(CLOSE_TIME, serving).await;
        if let Some(file) = &config.port_file {
            let _ = std::fs::remove_file(file);
        }
        tracing::info!("stopped");
        Ok(())
    }
}

/// Waits until the engine's thread has ended after a defect.
async fn failed(engine: &Engine) {
    while !engine.has_failed() {
        tokio::time::sleep(FAILURE_LOOK).await;
    }
}

/// Refuses new requests and waits until those taken in have been sent to their ends, at most until the deadline.
async fn drain(engine: &Engine, calls: &OpenCalls, health: &HealthReporter, deadline: Instant) {
    tracing::info!(num_calls = calls.count(), load = ?engine.load(), "draining");
    set_health(health, ServingStatus::NotServing).await;
    engine.close();
    while (!engine.is_idle() || calls.count() > 0) && Instant::now() < deadline {
        tokio::time::sleep(DRAIN_LOOK).await;
    }
    if !engine.is_idle() || calls.count() > 0 {
        tracing::warn!(num_calls = calls.count(), load = ?engine.load(), "the grace period is over");
    }
    engine.stop();
}

async fn set_health(health: &HealthReporter, status: ServingStatus) {
    for service in SERVICES {
        health.set_service_status(service, status).await;
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
