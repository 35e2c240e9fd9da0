//! Tests of the trainer against golden values, against itself, and as a process.

mod cli;
mod equivalence;
mod golden;
mod gradients;
