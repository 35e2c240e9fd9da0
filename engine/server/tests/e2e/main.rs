//! The server as its clients see it: real gRPC on a free port, the real binary as a process.

#![expect(clippy::unwrap_used, reason = "a test that fails may panic")]

mod answers;
mod command_line;
mod malformed;
mod measures;
mod operations;
mod quantize;
mod refusals;
mod support;
