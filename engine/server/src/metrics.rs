//! What the server counts, and the names under which Prometheus reads it. No text of a user or a model is in here.

mod engine;

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

pub(crate) use engine::EngineMetrics;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet},
    metrics::{MetricType, counter::Counter, family::Family},
    registry::Registry,
};
use tonic::Code;

use crate::call::Call;

/// The most different methods that are counted apart: what is asked for is up to the caller.
const METHODS_MAX: usize = 64;
/// The label of what has no name of its own.
const OTHER: &str = "other";

/// What the server counts beside its engine.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// Connections, over all addresses.
    pub(crate) connections: Arc<ConnectionCounts>,
    /// Requests that have ended.
    requests: Family<RequestLabels, Counter>,
    /// Requests that have ended, by who called.
    token_requests: Family<TokenLabels, Counter>,
    /// Tokens of prompts, by who called.
    token_prompt_tokens: Family<TokenLabels, Counter>,
    /// Tokens of answers, by who called.
    token_generated_tokens: Family<TokenLabels, Counter>,
    methods: Mutex<BTreeSet<String>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: String,
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TokenLabels {
    token: String,
}

impl Metrics {
    /// Counts a request that has ended.
    pub(crate) fn note(&self, call: &Call, code: Code) {
        let labels = RequestLabels { method: self.method(call, code), code: code_name(code) };
        self.requests.get_or_create(&labels).inc();
        let Some(identity) = call.identity() else { return };
        let labels = TokenLabels { token: identity.name().to_owned() };
        self.token_requests.get_or_create(&labels).inc();
        self.token_prompt_tokens.get_or_create(&labels).inc_by(call.prompt_tokens());
        self.token_generated_tokens.get_or_create(&labels).inc_by(call.generated_tokens());
    }

    /// Puts what is counted on the page.
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register("bespoke_requests", "Requests that have ended", self.requests.clone());
        let families = [
            ("bespoke_token_requests", "Requests that have ended, by who called", &self.token_requests),
            ("bespoke_token_prompt_tokens", "Tokens of prompts, by who called", &self.token_prompt_tokens),
            ("bespoke_token_generated_tokens", "Tokens of answers, by who called", &self.token_generated_tokens),
        ];
        for (name, help, family) in families {
            registry.register(name, help, family.clone());
        }
        registry.register_collector(Box::new(self.connections.clone()));
    }

    /// Returns the method as a label: those that exist, and no more than a bounded number.
    fn method(&self, call: &Call, code: Code) -> String {
        if call.identity().is_none() || code == Code::Unimplemented {
            return OTHER.to_owned();
        }
        let mut methods = self.methods.lock().unwrap_or_else(PoisonError::into_inner);
        if methods.contains(call.method()) || methods.len() < METHODS_MAX {
            methods.insert(call.method().to_owned());
            return call.method().to_owned();
        }
        OTHER.to_owned()
    }
}

/// Connections of all addresses.
#[derive(Debug, Default)]
pub(crate) struct ConnectionCounts {
    num_open: AtomicU64,
    num_accepted: AtomicU64,
    num_refused: AtomicU64,
}

/// A connection that is open, until it is dropped.
pub(crate) struct OpenConnection(Arc<ConnectionCounts>);

impl ConnectionCounts {
    /// Counts a connection that was accepted.
    pub(crate) fn open(self: &Arc<Self>) -> OpenConnection {
        self.num_accepted.fetch_add(1, Ordering::Relaxed);
        self.num_open.fetch_add(1, Ordering::Relaxed);
        OpenConnection(self.clone())
    }

    /// Counts a connection that was closed because there are too many.
    pub(crate) fn note_refused(&self) {
        self.num_refused.fetch_add(1, Ordering::Relaxed);
    }
}

impl Collector for ConnectionCounts {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let open = self.num_open.load(Ordering::Relaxed);
        encoder
            .encode_descriptor("bespoke_connections", "Connections that are open", None, MetricType::Gauge)?
            .encode_gauge(&open)?;
        let counters = [
            ("bespoke_connections_accepted", "Connections that were accepted", &self.num_accepted),
            ("bespoke_connections_refused", "Connections that were one too many", &self.num_refused),
        ];
        for (name, help, counter) in counters {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            metric.encode_counter::<NoLabelSet, u64, f64>(&counter.load(Ordering::Relaxed), None)?;
        }
        Ok(())
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.num_open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Returns the name of a code as gRPC writes it.
pub(crate) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
