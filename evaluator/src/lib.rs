//! Infers personas, generates and judges tailored answers, and reports: the experiments of the paper, in batches, against our
//! engine and external services.
//!
//! Place in the flow: a command ([`Arguments`]) reads its input and makes one case for each row it wants (`stage/`,
//! `comparison.rs`, `case.rs`), a session opens provider and run folder (`session.rs`, `provider/`, `run_folder.rs`), the
//! batch calls the model and keeps each answer (`batch.rs`, `limits.rs`), and the statistics are drawn from the finished rows
//! ([`judging`], `report.rs`). `pipeline.rs` runs several commands in order.
//!
//! The evaluator never builds the engine: it speaks gRPC through `bespoke-client`.

mod arguments;
mod batch;
mod case;
mod comparison;
mod dataset;
mod error;
pub mod judging;
mod limits;
mod options;
mod pipeline;
mod progress;
mod prompts;
mod provider;
mod report;
mod run_folder;
mod session;
mod stage;

pub use arguments::{Arguments, run};
