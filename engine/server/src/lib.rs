//! The `bespoke-engine` server: gRPC services over an engine, its configuration, its start and its drain.
//!
//! A request's way in here: a service (`services`) turns the wire message into a checked request, hands it to the engine on
//! a blocking thread, and sends on its events; what goes wrong becomes a status with details (`status`).

mod bench;
mod config;
mod deadline;
mod kv_dtype;
mod logs;
mod models;
mod perplexity;
mod quantize;
mod serve;
mod services;
mod status;
mod try_prompt;

pub use bench::{Bench, bench};
pub use config::{Config, LogFormat, Options};
pub use kv_dtype::KvDTypeName;
pub use logs::start_logs;
pub use models::{Listing, Pull, list_models, pull};
pub use perplexity::{Perplexity, perplexity};
pub use quantize::{QuantizationName, Quantize, quantize};
pub use serve::{Server, serve};
pub use try_prompt::{Try, try_prompt};
