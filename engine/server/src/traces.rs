//! Traces: each call as a span with its stages as children, sent to a collector over OTLP. No text of a user is in them.
//!
//! A caller's trace goes on where it sends `traceparent` (W3C trace context); the caller decides then whether it is sampled.
//! The SDK's own variables hold, such as OTEL_TRACES_SAMPLER and OTEL_RESOURCE_ATTRIBUTES.

use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use axum::http::HeaderMap;
use opentelemetry::{
    Context, KeyValue,
    propagation::{Extractor, TextMapPropagator},
    trace::{Span, SpanBuilder, SpanKind, Status, TraceContextExt, TracerProvider},
};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{SdkTracer, SdkTracerProvider},
};
use tonic::Code;

use crate::{call::Call, metrics::code_name};

/// The name of the service, unless OTEL_SERVICE_NAME says another.
const SERVICE: &str = "bespoke-engine";
/// How long the end of the server waits for spans that are still to be sent.
const FLUSH_TIME: Duration = Duration::from_secs(2);

/// Sends spans. Those that wait are sent when it is dropped.
pub(crate) struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

/// Where in a caller's trace a call belongs, and when it began.
pub(crate) struct Origin {
    parent: Context,
    begun: SystemTime,
}

impl Traces {
    /// Sends to a collector that speaks OTLP over gRPC. A collector that is away harms nothing: its spans are lost.
    ///
    /// **Errors**: an address that is none.
    pub(crate) fn start(endpoint: &str) -> anyhow::Result<Self> {
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build();
        let exporter = exporter.with_context(|| format!("otlp_endpoint `{endpoint}`"))?;
        let resource = match std::env::var_os("OTEL_SERVICE_NAME") {
            Some(_) => Resource::builder(),
            None => Resource::builder().with_service_name(SERVICE),
        };
        let resource = resource.with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
        let provider =
            SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build()).build();
        let tracer = provider.tracer(SERVICE);
        Ok(Self { provider, tracer })
    }

    /// Reads where a call comes from; a header that makes no sense begins a new trace.
    pub(crate) fn origin(&self, headers: &HeaderMap) -> Origin {
        let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(headers));
        Origin { parent, begun: SystemTime::now() }
    }

    /// Sends the spans of a call that has ended.
    pub(crate) fn note(&self, call: &Call, origin: &Origin, code: Code) {
        let attributes = [
            KeyValue::new("rpc.method", call.method().to_owned()),
            KeyValue::new("rpc.grpc.status_code", code as i64),
            KeyValue::new("bespoke.token", call.identity().map_or("", |identity| identity.name()).to_owned()),
            KeyValue::new("bespoke.request_id", call.request_id().unwrap_or_default().to_owned()),
            KeyValue::new("bespoke.prompt_tokens", call.prompt_tokens() as i64),
            KeyValue::new("bespoke.generated_tokens", call.generated_tokens() as i64),
        ];
        let builder = SpanBuilder::from_name(call.method().trim_start_matches('/').to_owned())
            .with_kind(SpanKind::Server)
            .with_start_time(origin.begun)
            .with_attributes(attributes);
        let mut span = builder.start_with_context(&self.tracer, &origin.parent);
        if span.is_recording() {
            self.note_stages(call, &Context::new().with_remote_span_context(span.span_context().clone()));
        }
        // A caller's own mistakes are no errors of the server.
        if matches!(code, Code::Internal | Code::Unavailable | Code::DeadlineExceeded | Code::Unknown | Code::DataLoss)
        {
            span.set_status(Status::error(code_name(code)));
        }
        span.end();
    }

    fn note_stages(&self, call: &Call, parent: &Context) {
        let Some((timings, end)) = call.timings() else { return };
        let mut stage_end = end;
        for (name, time) in [("decode", timings.decode), ("prefill", timings.prefill), ("queue", timings.queue)] {
            let stage_begin = stage_end.checked_sub(time).unwrap_or(stage_end);
            let builder = SpanBuilder::from_name(name).with_kind(SpanKind::Internal).with_start_time(stage_begin);
            let mut stage = builder.start_with_context(&self.tracer, parent);
            stage.end_with_timestamp(stage_end);
            stage_end = stage_begin;
        }
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        let _ = self.provider.shutdown_with_timeout(FLUSH_TIME);
    }
}

/// The headers of a request, as the propagator reads them.
struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(axum::http::HeaderName::as_str).collect()
    }
}
