//! The load generator behind the binary `load`: drives a server over its real protocol and reports what its clients feel.
//!
//! Place in the flow: `prompts` makes seeded texts, sized by the server's own tokenizer; `load` sends them, in a closed loop
//! or at a rate; `target` speaks gRPC through `bespoke-client` or the OpenAI protocol (`openai`, `sse`), so that every server
//! gets the same prompts from the same client; `report` sums up. The criterion benches are in `benches/`, one per layer.

mod load;
mod openai;
mod prompts;
mod random;
mod report;
mod sse;
mod target;

pub use load::{LoadOptions, Mode, run};
pub use report::{Milliseconds, Report};
pub use target::Protocol;
