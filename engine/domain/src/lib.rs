//! The vocabulary of Bespoke: every idea that crosses a crate border is named and checked here, once.
//!
//! Place in the flow: a request enters as wire bytes (`bespoke-proto`), becomes a [`Request`] here, is rendered by the one
//! [`render`] function, runs in the engine, and leaves as [`Event`]s. Trainer and evaluator read [`Row`]s and call the same
//! [`render`]. The crate has no I/O but the data set reader, and no clock, channel or randomness.
//!
//! # Glossary
//! - **prompt**: what the user asks: text, chat messages or token ids.
//! - **persona**: one sentence about the user for whom the answer is meant. A **persona source** says where it comes from.
//! - **template**: how prompt and persona become the text that the model continues.
//! - **span**: a piece of rendered text that knows whether it is a control token and whether it is trained on.
//! - **request**: one call; **sequence**: one run of tokens that the engine extends (a request with `n` = 3 has three).
//! - **choice**: what a sequence produced, by its number from 0.
//! - **event**: one message of the stream of a request: started, delta, finished.
//! - **row**: one line of a preference data set.
//! - **step**: one forward pass over a **batch**, the ragged concatenation of **chunks** of sequences; a **plan** says which.
//! - **draft**: tokens guessed from earlier text, computed with the next token and kept as far as they are what is sampled.
//! - **call**: a request at the server's door, with who asks and what it has used, to the end of its answer.
//! - **identity**: who calls, told by a bearer token or a certificate; it has limits of its own.
//! - **prefix cache**: blocks kept after their sequence ended, for later ones that begin with the same tokens; where prompts are computed
//!   in another way than answers, only blocks of prompts.
//! - **block**: a fixed number of token places in the KV cache.

mod chat_template;
mod error;
mod event;
mod persona;
mod render;
mod request;
mod row;
mod sampling;
mod span;

pub use chat_template::ChatTemplate;
pub use error::{Invalid, RenderError, RowError};
pub use event::{
    Choice, Delta, Event, FinishReason, Finished, MatchedStop, Started, Timings, TokenLogprob, TopLogprob, Usage,
};
pub use persona::{Persona, PersonaId, PersonaSource};
pub use render::{RenderInput, Template, mnemonic_prefix, render};
pub use request::{
    Continuation, Generate, Logprobs, Message, PrefixCache, Priority, Prompt, PromptSpec, Request, RequestId, Role,
    Score, ScoreRequest, Stop,
};
pub use row::{Row, read_rows, rows};
pub use sampling::{Sampling, SamplingParams};
pub use span::{Rendered, Span, SpanKind};

/// The number of a token in the vocabulary of a model.
pub type TokenId = u32;
