//! The mistral.rs backend of the engine: GPUs, and architectures that the native model lacks.
//!
//! mistral.rs computes logits and nothing else. Its hook for logits hands each row of them to the engine's thread and waits
//! for the token that the engine takes, so sampling, seeds, log-probabilities, stops and lengths are the engine's own and mean
//! what they mean on the native backend. What it does worse by itself is kept away from requests: there is one sequence in
//! flight, its prefix cache is off, its own end of a text is off, and nobody waits for its channels.
//!
//! Read `mistral` (the engine's end), `hook` (mistral.rs's end), `facts` (what a model is), `gemma` (a GGUF file that
//! mistral.rs cannot read becomes a folder that it can).

mod error;
mod facts;
mod gemma;
mod hook;
mod mistral;

pub use error::MistralError;
pub use mistral::Mistral;
