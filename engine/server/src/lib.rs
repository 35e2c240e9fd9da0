//! The `bespoke-engine` server: gRPC services over an engine, its configuration, its start and its drain.
//!
//! A request's way in here: a connection comes in (`listener`, `tls`, `connection`), the door lets the request in (`door`,
//! `tokens`), a service (`services`) turns the wire message into a checked request, hands it to the engine on a blocking
//! thread, and sends on its events; what goes wrong becomes a status with details (`status`).

mod allowance;
mod app;
mod backend;
mod bench;
mod call;
mod config;
mod connection;
mod deadline;
mod door;
mod http;
mod kv_dtype;
mod listener;
mod logs;
mod metrics;
mod models;
mod observation;
mod perplexity;
mod quantize;
mod serve;
mod services;
mod sha256;
mod status;
mod tls;
mod token;
mod tokens;
mod top;
mod traces;
mod try_prompt;
mod watched;

pub use backend::BackendName;
pub use bench::{Bench, bench};
pub use config::{
    Config, ConnectionLimits, Http, HttpOptions, LimitOptions, LogFormat, Observability, ObservabilityOptions, Options,
    Security, SecurityOptions,
};
pub use kv_dtype::KvDTypeName;
pub use logs::{Logs, start_logs};
pub use models::{Listing, Pull, list_models, pull};
pub use perplexity::{Perplexity, perplexity};
pub use quantize::{QuantizationName, Quantize, quantize};
pub use serve::{Server, serve};
pub use tls::TlsFiles;
pub use token::{Token, make_token};
pub use top::{Top, top};
pub use try_prompt::{Try, try_prompt};
