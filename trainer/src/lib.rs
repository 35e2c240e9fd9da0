//! LoRA SFT and DPO on persona-annotated preference data.
//!
//! The way of a run, in the order in which to read the files: `recipe.rs` (what is wanted) -> `data.rs`, `example.rs` (rows become
//! tokens through the one renderer of the domain) -> `base.rs`, `lora.rs` (frozen weights, adapter) -> `run.rs` (the loop) with
//! `batch.rs`, `pass.rs` (forward and backward), `loss.rs`, `optimizer.rs` -> `checkpoint.rs`, `adapter.rs`, `merge.rs` (what is left).

mod adapter;
mod base;
mod batch;
mod error;
mod files;
mod lora;
mod loss;
mod optimizer;
mod pass;
mod random;
mod target;

pub use adapter::{read_adapter, write_adapter};
pub use base::{Base, BaseDtype, BaseLayer, BaseLinear};
pub use batch::{Batch, Scored};
pub use error::TrainError;
pub use lora::{Factors, Lora, LoraShape};
pub use loss::{Answer, DpoLoss, PairLoss, Preference};
pub use optimizer::{AdamSettings, AdamW, Schedule, clip};
pub use pass::{Adapted, Pass};
pub use random::Dropout;
pub use target::Target;
