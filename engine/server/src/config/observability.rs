//! What the server shows of itself.

use std::net::SocketAddr;

use clap::Args;
use serde::Deserialize;

/// The table `observability`.
#[derive(Args, Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ObservabilityOptions {
    /// Address of /metrics for Prometheus, /healthz and /readyz, over plain HTTP and without tokens. Default: none.
    #[arg(long, env = "BESPOKE_METRICS_ADDRESS", value_name = "ADDRESS:PORT")]
    pub metrics_address: Option<SocketAddr>,
    /// Collector that traces are sent to over OTLP/gRPC, such as `http://127.0.0.1:4317`. Default: none.
    #[arg(long, env = "BESPOKE_OTLP_ENDPOINT", value_name = "URI")]
    pub otlp_endpoint: Option<String>,
}

/// What the server shows of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observability {
    /// Where metrics can be read.
    pub metrics_address: Option<SocketAddr>,
    /// Where traces are sent.
    pub otlp_endpoint: Option<String>,
}

impl ObservabilityOptions {
    /// Takes each option from here, or where it is not given, from `other`.
    pub(super) fn or(self, other: Self) -> Self {
        Self {
            metrics_address: self.metrics_address.or(other.metrics_address),
            otlp_endpoint: self.otlp_endpoint.or(other.otlp_endpoint),
        }
    }

    /// Fills in the defaults.
    pub(super) fn checked(self) -> Observability {
        Observability { metrics_address: self.metrics_address, otlp_endpoint: self.otlp_endpoint }
    }
}
