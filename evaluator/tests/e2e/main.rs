//! End-to-end tests: the program as a process, against a real engine in this process and against servers that speak the
//! recorded protocols of external services, with their faults.

#![expect(clippy::unwrap_used, reason = "a test that fails may panic")]

mod fake_service;
mod flow;
mod hub;
mod kill;
mod offline;
mod pipeline;
mod services;
mod support;
