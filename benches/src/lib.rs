//! The load generator behind the binary `load`: drives a server over its real protocol and reports what its clients feel.
//!
//! Place in the flow: `prompts` makes seeded texts, sized by the server's own tokenizer; `load` sends them, in a closed loop
//! or at a rate; `target` speaks gRPC through `bespoke-client` or the OpenAI protocol (`openai`, `sse`), so that every server
//! gets the same prompts from the same client; `report` sums up. `soak` sends random requests for a long time and looks at what
//! they leave behind; `overload` asks for more than there is. The criterion benches are in `benches/`, one per layer.

mod load;
mod openai;
mod overload;
mod prompts;
mod random;
mod report;
mod soak;
mod sse;
mod target;

pub use load::{LoadOptions, Mode, run};
pub use overload::{OverloadOptions, OverloadReport, Phase, overload};
pub use report::{Milliseconds, Report};
pub use soak::{SoakOptions, SoakReport, soak};
pub use target::Protocol;
