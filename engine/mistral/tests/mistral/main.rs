//! mistral.rs behind the engine, on tiny models: the contract of every backend, and what mistral.rs makes hard to keep.

#![expect(clippy::unwrap_used, reason = "a test that fails may panic")]

mod answers;
#[path = "../../../tests/engine/contract.rs"]
mod contract;
#[path = "../../../tests/engine/support.rs"]
#[allow(dead_code, reason = "the engine's own tests use all of it")]
mod support;
