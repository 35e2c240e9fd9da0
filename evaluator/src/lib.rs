//! Infers personas, generates and judges tailored answers, and reports: the experiments of the paper, in batches, against our
//! engine and external services.
//!
//! Place in the flow: a command ([`Arguments`]) reads its input and makes one case for each row it wants (`stage/`,
//! `comparison.rs`, `case.rs`), a session opens provider and run folder (`session.rs`, `provider/`, `run_folder.rs`), the
//! batch calls the model and keeps each answer (`batch.rs`, `limits.rs`), and the statistics are drawn from the finished rows
//! ([`judging`], `report.rs`). `pipeline.rs` runs several commands in order.
//!
//! # Glossary
//! - **stage**: a command that makes rows or concludes from them; **run**: a stage with its options, in a run folder.
//! - **case**: what is asked of a model for one row; **completion**: what comes back; **task**: a case with the row it makes.
//! - **comparison**: a question about two things that a judge sees in both orders; **pair**: the verdicts of both.
//! - **verdict**: what a judge says about one order; **outcome**: win, tie, loss or unparsable, of both orders.
//! - **rubric**: the question that a judge answers.
//!
//! The evaluator never builds the engine: it speaks gRPC through `bespoke-client`.

mod arguments;
mod batch;
mod case;
mod comparison;
mod dataset;
mod error;
mod hub;
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
mod table;

pub use arguments::{Arguments, run};
