//! The server as its clients see it: real gRPC on a free port, the real binary as a process.

mod answers;
mod command_line;
mod malformed;
mod operations;
mod refusals;
mod support;
