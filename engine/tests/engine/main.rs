//! The engine as its callers see it, on a tiny random model.

#![expect(clippy::unwrap_used, reason = "a test that fails may panic")]

mod backend;
mod contract;
mod embedder;
mod equivalence;
mod lifecycle;
mod loaned;
mod reference;
mod support;
