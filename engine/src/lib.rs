//! The embeddable engine: queues requests, runs them in batches and streams their events. No network in here.
//!
//! A request's way: [`Engine::generate`] renders and tokenizes it (`language`), hands it over (`outlet`, `active`), the
//! engine's thread (`worker`) plans steps (`scheduler`, `block_pool`), runs the model and takes tokens (`sequence`,
//! `sampler`, `rng`, `logprob`), and the caller reads [`Event`]s from a [`Generation`]. Where another library runs the model
//! (`backend`), the thread is `backend_worker`; all else is the same.
//!
//! ```
//! use bespoke_engine::{Engine, domain::{Event, Generate, Persona, PersonaSource, Request}};
//! use futures::StreamExt;
//!
//! # let tiny = bespoke_testkit::TinyModel::default().write_hf()?;
//! # let path_of_a_model = tiny.path();
//! # futures::executor::block_on(async {
//! let engine = Engine::builder().model(path_of_a_model).build()?;
//!
//! let mut generate = Generate::text("How do I cook rice?");
//! generate.spec.persona = PersonaSource::Text(Persona::new("The user is a novice and prefers short steps.")?);
//! generate.max_new_tokens = 16;
//!
//! let mut events = engine.generate(Request::try_from(generate)?)?;
//! while let Some(event) = events.next().await {
//!     match event? {
//!         Event::Started(started) => println!("{} prompt tokens", started.prompt_tokens),
//!         Event::Delta(delta) => print!("{}", delta.text),
//!         Event::Finished(finished) => println!("\n{:?}", finished.usage),
//!     }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod active;
mod backend;
mod backend_worker;
mod block_pool;
mod builder;
mod draft;
mod embedder;
mod engine;
mod error;
mod language;
mod logprob;
mod measures;
mod outlet;
mod pace;
#[doc(hidden)]
pub mod probe;
mod rng;
mod sampler;
mod scheduler;
mod sequence;
mod status;
mod worker;

pub use backend::{Backend, BackendError, BackendInfo, Bell};
/// The vocabulary of requests and events.
pub use bespoke_domain as domain;
pub use bespoke_domain::Event;
pub use bespoke_model::{KvDType, ModelError, Quantization, Tokenizer};
pub use builder::EngineBuilder;
pub use embedder::{EmbeddedText, Embedder, EmbedderInfo, Embedding};
pub use engine::{Engine, Load, ModelInfo, Scoring};
pub use error::{EngineError, Stage};
pub use language::RenderedPrompt;
pub use measures::{Distribution, Measures};
pub use outlet::Generation;
pub use status::Totals;
