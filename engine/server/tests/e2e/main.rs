//! The server as its clients see it: real gRPC on a free port, the real binary as a process.

#![expect(clippy::unwrap_used, reason = "a test that fails may panic")]

mod answers;
mod browser;
mod certificates;
mod command_line;
mod documents;
mod embeddings;
mod faults;
mod http_call;
mod malformed;
mod measures;
#[cfg(feature = "mistralrs")]
mod mistral;
mod observation;
mod openai;
mod operations;
mod quantize;
mod refusals;
mod security;
mod support;
mod traces;
