//! Typed streaming client of the Bespoke engine.
//!
//! Place in the flow: domain requests go out as wire messages, wire events come back as domain events; what the server
//! refuses comes back as a [`ClientError`] with its code, the fields that are wrong and when to try again.
//!
//! ```no_run
//! use bespoke_client::{Client, Event, Generate, Persona, PersonaSource, Request};
//! use futures::StreamExt;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect("http://127.0.0.1:50051").await?;
//! let mut generate = Generate::text("How do I cook rice?");
//! generate.spec.persona = PersonaSource::Text(Persona::new("The user is a novice cook and prefers short steps.")?);
//! generate.max_new_tokens = 200;
//! let request = Request::try_from(generate)?;
//! let mut events = client.generate_stream(&request).await?;
//! while let Some(event) = events.next().await {
//!     match event? {
//!         Event::Started(started) => eprintln!("{} tokens of prompt", started.prompt_tokens),
//!         Event::Delta(delta) => print!("{}", delta.text),
//!         Event::Finished(finished) => eprintln!("\n{:?}", finished.choices[0].reason),
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod builder;
mod call;
mod client;
mod error;

pub use bespoke_domain::{
    Choice, Continuation, Delta, Event, FinishReason, Finished, Generate, Invalid, Logprobs, MatchedStop, Message,
    Persona, PersonaId, PersonaSource, Priority, Prompt, PromptSpec, Request, RequestId, Role, Sampling,
    SamplingParams, Score, ScoreRequest, Span, SpanKind, Started, Stop, Template, Timings, TokenId, TokenLogprob,
    TopLogprob, Usage,
};
pub use bespoke_proto::{
    EmbedRequest, EmbedResponse, Embedding, Generated, GeneratedText, GetServerInfoResponse, RenderedPrompt, Resource,
    TokenizeRequest, TokenizeResponse,
};
pub use builder::Builder;
pub use client::{Client, EventStream};
pub use error::ClientError;
pub use tonic::Code;
