//! What the server shows of itself: `/metrics` for Prometheus, `/healthz` and `/readyz` for probes, on an address of their own.
//!
//! The page is there before the model is: `/readyz` tells when it is loaded.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
};

use anyhow::Context;
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use bespoke_engine::Engine;
use prometheus_client::{encoding::text, registry::Registry};
use tokio::task::JoinSet;

use crate::{
    Config,
    listener::Listener,
    metrics::{EngineMetrics, Metrics},
};

/// The type of the text format that `prometheus-client` writes.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How far the server is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The model is being loaded.
    #[default]
    Loading,
    /// Requests are answered.
    Ready,
    /// No new request is taken in.
    Draining,
}

/// The page and what it shows. The page ends with it.
pub(crate) struct Observation {
    shown: Arc<Shown>,
    address: Option<SocketAddr>,
    _page: JoinSet<()>,
}

struct Shown {
    metrics: Arc<Metrics>,
    registry: OnceLock<Registry>,
    engine: OnceLock<Engine>,
    is_draining: OnceLock<()>,
}

impl Observation {
    /// Starts the page, if the configuration has an address for it.
    ///
    /// **Errors**: an address that cannot be listened on.
    pub(crate) fn start(config: &Config) -> anyhow::Result<Self> {
        let metrics = Arc::new(Metrics::default());
        let engine = OnceLock::new();
        let shown = Shown { metrics, engine, registry: OnceLock::new(), is_draining: OnceLock::new() };
        let shown = Arc::new(shown);
        let mut page = JoinSet::new();
        let mut address = None;
        if let Some(wanted) = config.observability.metrics_address {
            let socket = Listener::bind(wanted).context("metrics_address")?;
            address = Some(socket.local_addr()?);
            let app = Router::new()
                .route("/metrics", get(metrics_page))
                .route("/healthz", get(|| async { "alive\n" }))
                .route("/readyz", get(ready))
                .with_state(shown.clone());
            let listener = Listener::new(socket, config.limits.clone(), Arc::default());
            page.spawn(listener.serve(app, std::future::pending()));
            tracing::info!(address = %wanted, "metrics");
        }
        Ok(Self { shown, address, _page: page })
    }

    /// Returns the address of the page.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Returns where requests and connections are counted.
    pub(crate) fn metrics(&self) -> &Arc<Metrics> {
        &self.shown.metrics
    }

    /// Shows an engine from now on; the server is ready with it.
    pub(crate) fn show(&self, engine: Engine, config: &Config) {
        let mut registry = Registry::default();
        let limits = (config.sequences_max, config.queue_max);
        registry.register_collector(Box::new(EngineMetrics::new(engine.clone(), limits)));
        self.shown.metrics.register(&mut registry);
        let _ = self.shown.registry.set(registry);
        let _ = self.shown.engine.set(engine);
    }

    /// Is not ready any more.
    pub(crate) fn drain(&self) {
        let _ = self.shown.is_draining.set(());
    }
}

impl Shown {
    fn phase(&self) -> Phase {
        match self.engine.get() {
            None => Phase::Loading,
            Some(engine) if self.is_draining.get().is_some() || engine.has_failed() => Phase::Draining,
            Some(_) => Phase::Ready,
        }
    }
}

async fn metrics_page(State(shown): State<Arc<Shown>>) -> Response {
    let mut page = String::new();
    let written = match shown.registry.get() {
        Some(registry) => text::encode(&mut page, registry),
        // An empty page is a page.
        None => text::encode(&mut page, &Registry::default()),
    };
    match written {
        Ok(()) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], page).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn ready(State(shown): State<Arc<Shown>>) -> Response {
    match shown.phase() {
        Phase::Ready => (StatusCode::OK, "ready\n").into_response(),
        Phase::Loading => (StatusCode::SERVICE_UNAVAILABLE, "loading\n").into_response(),
        Phase::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining\n").into_response(),
    }
}
