//! The loaders and the serving pass against an independent reference, PyTorch's numbers, and broken files.

#![expect(clippy::unwrap_used, reason = "the whole crate is tests; clippy knows only functions marked as such")]

mod encoder;
mod equivalence;
mod errors;
mod fixtures;
mod fuzz;
mod naive;
mod quantize;
mod reference;
mod runner;
