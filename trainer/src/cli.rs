//! The commands: flags become recipes, recipes become runs, runs leave their outputs.

mod flags;
mod manifest;
mod merge;
mod preview;
mod setup;
mod train;
mod watch;

pub(crate) use flags::TrainArguments;
pub(crate) use merge::{MergeArguments, merge};
pub(crate) use preview::{PreviewArguments, preview};
pub(crate) use train::train;
