//! Tests of the trainer against golden values, against itself, and as a process.

mod golden;
mod gradients;
