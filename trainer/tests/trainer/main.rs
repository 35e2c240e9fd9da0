//! Tests of the trainer against golden values, against itself, and as a process.

#![expect(clippy::unwrap_used, reason = "a test that fails may panic")]

mod cli;
mod equivalence;
mod golden;
mod gradients;
