//! LoRA SFT and DPO on persona-annotated preference data.
//!
//! The way of a run, in the order in which to read the files: `recipe.rs` (what is wanted) -> `data.rs`, `example.rs` (rows become
//! tokens through the one renderer of the domain) -> `base.rs`, `lora.rs` (frozen weights, adapter) -> `run.rs` (the loop) with
//! `batch.rs`, `pass.rs` (forward and backward), `loss.rs`, `optimizer.rs` -> `checkpoint.rs`, `adapter.rs`, `merge.rs` (what is left).

mod adapter;
mod base;
mod batch;
mod checkpoint;
mod data;
mod error;
mod example;
mod files;
mod folder;
mod frozen;
mod items;
mod lora;
mod loss;
mod merge;
mod metrics;
mod optimizer;
mod pass;
mod plot;
mod random;
mod recipe;
mod reference;
mod run;
mod step;
mod target;
mod tensorboard;

pub use adapter::{read_adapter, write_adapter};
pub use base::{Base, BaseDtype, BaseLayer, BaseLinear, Numbers};
pub use batch::{Batch, Scored};
pub use checkpoint::State;
pub use data::{PlacedRow, RowFile};
pub use error::TrainError;
pub use example::{Example, ExampleMaker, Made, make_all};
pub use frozen::{Compute, Frozen};
pub use lora::{Factors, Lora, LoraShape};
pub use loss::{Answer, DpoLoss, PairLoss, Preference};
pub use merge::{MergedDtype, merge};
pub use metrics::{Kind, Record};
pub use optimizer::{AdamSettings, AdamW, Schedule, clip};
pub use pass::{Adapted, Pass};
pub use random::Dropout;
pub use recipe::{
    DataRecipe, DpoRecipe, LoraRecipe, LossOn, Method, ModelRecipe, Recipe, TemplateName, TrainRecipe, TrainingType,
};
pub use reference::references;
pub use run::{Ending, Outcome, Run, Watcher};
pub use step::{Item, Means, Objective, PreferenceMeans, StepSettings, run_items};
pub use target::Target;
