//! Stages: one module for each command.

pub(crate) mod accuracy;
pub(crate) mod agreement;
pub(crate) mod augment;
pub(crate) mod doctor;
pub(crate) mod generate;
pub(crate) mod infer;
pub(crate) mod judge;
pub(crate) mod prefs;
pub(crate) mod retrieve;
pub(crate) mod saliency;
pub(crate) mod win_rate;
